//! The program: see the library of this crate.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    flowctl::cli::run(flowctl::cli::Cli::parse()).await
}
