//! What the project commands share. Built before anything else, so with few dependencies.

pub mod counts;
pub mod kernel;
pub mod project;
pub mod results;
pub mod test_programs;
pub mod toolchain;
