//! `cargo xtask fuzz`: runs the fuzz targets of the wire crates with libFuzzer, on the stable compiler.
//!
//! Owns building the program and running its targets one after the other. Never writes into the tree: corpora grow under `target/`.
//! Invariant: a target that finds something makes the command fail, with the path of the input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hw_tests::lab::progress::Progress;

/// What LLVM has to add to the code for libFuzzer to see where an input goes.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// Naming the platform keeps the flags away from build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// The longest input that is tried.
const INPUT_OCTETS_MAX: &str = "4096";

/// Run fuzz targets.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// Only these targets: directories of dataplane/fuzz/corpus. All when none is named.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Builds the program and runs the targets.
pub(crate) fn run(root: &Path, arguments: &Fuzz, progress: &Progress) -> Result<()> {
    let own = root.join("dataplane/fuzz");
    let corpora = own.join("corpus");
    let known = names(&corpora)?;
    let wanted = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("no fuzz target is called {unknown}: there are {}", known.join(", "));
    }
    let work = root.join("target/fuzz");
    progress.say("build the targets with libFuzzer");
    let mut build = Command::new("cargo");
    build
        .current_dir(own.join("libfuzzer"))
        .args(["build", "--release", "--target", PLATFORM, "--target-dir"])
        .arg(&work);
    let built = build.env("RUSTFLAGS", COVERAGE).status().context("cannot start cargo")?;
    ensure!(built.success(), "cargo build of dataplane/fuzz/libfuzzer: {built}");
    let program = work.join(PLATFORM).join("release/wire-libfuzzer");
    for name in wanted {
        progress.say(&format!("{name}: {} s", arguments.seconds));
        fuzz(&program, &corpora.join(name), &work.join("run").join(name), arguments.seconds, name)?;
    }
    Ok(())
}

/// Runs one target on a copy of its corpus.
fn fuzz(program: &Path, seeds: &Path, run: &Path, seconds: u32, name: &str) -> Result<()> {
    let (grown, found) = (run.join("corpus"), run.join("found"));
    for directory in [&grown, &found] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut command = Command::new(program);
    command.env("BASALT_FUZZ_TARGET", name).arg(&grown).arg(seeds);
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={INPUT_OCTETS_MAX}"));
    command.arg(format!("-artifact_prefix={}/", found.display())).arg("-print_final_stats=1");
    let ended = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(ended.success(), "{name} found something ({ended}): look in {}", found.display());
    Ok(())
}

/// The targets, by their corpora.
fn names(corpora: &Path) -> Result<Vec<String>> {
    let list = fs::read_dir(corpora).with_context(|| format!("cannot list {}", corpora.display()))?;
    let mut paths = list.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
}
