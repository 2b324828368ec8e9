//! `cargo xtask check`: everything that can be said about the tree without running it.
//!
//! Each stage is one command of the toolchain, or [`crate::tidy`]. All stages run even when one fails, so that one run tells all.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::process;
use basalt_tests::skip::find_program;
use hw_tests::lab::progress::Progress;

use crate::tidy;

/// The version of cargo-deny that is built when the machine has none.
const DENY_VERSION: &str = "0.20.2";

/// One stage: a name, and the words after `cargo`.
struct Stage {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const STAGES: &[Stage] = &[
    Stage { name: "format", arguments: &["fmt", "--all", "--check"], environment: &[] },
    Stage {
        name: "clippy",
        arguments: &[
            "clippy",
            "--quiet",
            "--locked",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ],
        environment: &[],
    },
    Stage {
        name: "docs",
        arguments: &["doc", "--quiet", "--locked", "--workspace", "--no-deps", "--all-features"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
    },
];

/// Runs all stages on the tree at `root`.
///
/// # Errors
/// Names the stages that failed; what each found is on standard error.
pub(crate) fn run(root: &Path, progress: &Progress) -> Result<()> {
    let mut failed = Vec::new();
    for stage in STAGES {
        let step = progress.step(stage.name);
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(root).args(stage.arguments).envs(stage.environment.iter().copied());
        match succeed(&mut command) {
            Ok(()) => drop(step.done("clean")),
            Err(error) => {
                step.note(&format!("{error:#}"));
                failed.push(stage.name);
            }
        }
    }
    for (name, stage) in [("licences", licences as fn(&Path) -> Result<()>), ("tidy", tidy_tree)] {
        let step = progress.step(name);
        match stage(root) {
            Ok(()) => drop(step.done("clean")),
            Err(error) => {
                step.note(&format!("{error:#}"));
                failed.push(name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("check failed: {}", failed.join(", ")) }
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} ended with {status}") }
}

/// Licences, bans and sources of all dependencies, by cargo-deny; it is built into `target/tools` when the machine has none. It runs for a second
/// and is built once, so it is built without optimisation.
fn licences(root: &Path) -> Result<()> {
    let tools = root.join("target/tools");
    let built = tools.join("bin/cargo-deny");
    let program = match find_program("cargo-deny") {
        Some(program) => program,
        None if built.exists() => built,
        None => {
            let mut install = Command::new(env!("CARGO"));
            install.args(["install", "--quiet", "--locked", "--debug", "--root"]).arg(&tools).args([
                "--version",
                DENY_VERSION,
                "cargo-deny",
            ]);
            succeed(&mut install)?;
            built
        }
    };
    let mut command = Command::new(program);
    command.current_dir(root).args([
        "--offline",
        "--log-level",
        "error",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]);
    succeed(&mut command)
}

fn tidy_tree(root: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = process::run(&mut list, Duration::from_secs(30)).context("list the files of the tree")?;
    let mut found = Vec::new();
    for path in listed.lines().filter(|path| root.join(path).is_file()) {
        // Images and other binary files have no lines to look at.
        let Ok(text) = std::fs::read_to_string(root.join(path)) else { continue };
        found.extend(tidy::look(Path::new(path), &text));
    }
    if found.is_empty() { Ok(()) } else { bail!("{} untidy places:\n{}", found.len(), found.join("\n")) }
}
