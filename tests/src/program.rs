//! Where the product's programs are, for tests of one crate that need the program of another.
//!
//! `cargo test --workspace` builds all programs before the first test runs. A test of one package alone finds what is there and has cargo build
//! what is not; a program that is there is taken as it is.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process;

/// How long building one program may take on a loaded machine.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// The path of program `name` of the package of that name, in the profile that the running test was built in.
///
/// # Errors
/// When it is not there and cannot be built.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running test")?;
    // target/<profile>/deps/<test>
    let profile = own.ancestors().nth(2).with_context(|| format!("find the build directory of {}", own.display()))?;
    let program = profile.join(name);
    if !program.exists() {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["build", "--quiet", "--locked", "--package", name, "--bin", name]);
        if profile.ends_with("release") {
            command.arg("--release");
        }
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        process::run(&mut command, BUILD_LIMIT).with_context(|| format!("build {name}"))?;
    }
    Ok(program)
}
