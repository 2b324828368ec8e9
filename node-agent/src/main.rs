//! The program: see the library of this crate.

fn main() {}
