//! Shows that every input in the corpora, and every input that once broke a promise, keeps the targets' promises.
//!
//! How: `corpus/TARGET/*` and `crashes/TARGET/*` are read from the tree and run, each named where it fails.

use std::{fs, panic, path::Path};

use anyhow::{Context, Result, ensure};
use wire_fuzz::TARGETS;

/// Inputs under `directory`, sorted by name; none when it is not there.
fn inputs(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    if directory.exists() {
        for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
            let path = entry?.path();
            found.push((path.display().to_string(), fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn corpora_and_crashes_pass() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, target) in TARGETS {
        let corpus = inputs(&root.join("corpus").join(name))?;
        ensure!(!corpus.is_empty(), "{name} has no corpus");
        for (path, input) in corpus.into_iter().chain(inputs(&root.join("crashes").join(name))?) {
            ensure!(panic::catch_unwind(|| target(&input)).is_ok(), "{name} broke its promise for {path}");
        }
    }
    Ok(())
}
