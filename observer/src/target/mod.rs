//! Who is watched, and following it through exec, fork and exit.
