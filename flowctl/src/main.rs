//! The program: see the library of this crate.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // One TLS provider in the whole project; a second call could only find it installed already.
    rustls::crypto::ring::default_provider().install_default().ok();
    flowctl::cli::run(flowctl::cli::Cli::parse()).await
}
