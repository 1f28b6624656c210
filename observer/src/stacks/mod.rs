//! From the addresses of stacks to functions.
//!
//! [`mappings`] finds the files behind the addresses of a process while it lives, and keeps them open.
//! [`symbolize`] looks up functions, in the kernel's own list, in the symbol tables of files, and in the
//! table of the Go runtime, which stripped binaries keep as well. The files of the target may be made to
//! harm whoever reads them, so [`worker`] reads each of them in a process of its own that may do nothing else.

mod go;
pub mod mappings;
pub mod symbolize;
pub mod worker;
