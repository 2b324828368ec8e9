//! The program: see the library of this crate.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

#[expect(clippy::print_stderr, reason = "the edge of the program, where errors are shown")]
fn main() -> ExitCode {
    match scheduler::cli::run(scheduler::cli::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}
