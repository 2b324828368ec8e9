//! `cargo xtask test`: every test there is, on the real things, with one count at the end.
//!
//! Installs what the tests need, then runs the workspace's tests. A test that skips writes a line into a file named in the environment
//! (see `basalt_tests::skip`), so that no skip hides behind a green run. The last line is `N passed, N failed, N skipped`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use hw_tests::lab::progress::Progress;

use crate::packages;

/// How a run of tests ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Tests that ran to their end and held.
    pub(crate) passed: u64,
    /// Tests that did not hold.
    pub(crate) failed: u64,
    /// Tests that lacked something, or are marked as ignored.
    pub(crate) skipped: u64,
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs every test of the tree at `root`.
///
/// # Errors
/// When something can not be installed or built, or a test fails; the count has been printed then.
pub(crate) fn run(root: &Path, progress: &Progress) -> Result<()> {
    packages::ensure(&[], progress)?;
    let skips = tempfile::NamedTempFile::new().context("make a file for skip lines")?;
    let step = progress.step("workspace tests");
    let mut child = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--locked", "--workspace", "--all-features", "--no-fail-fast"])
        .env("BASALT_SKIP_LOG", skips.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run cargo test")?;
    let output = child.stdout.take().context("read what the tests print")?;
    let mut count = Count::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("read what the tests print")?;
        show(&line)?;
        count_line(&line, &mut count);
    }
    let status = child.wait().context("wait for cargo test")?;
    let lines = std::fs::read_to_string(skips.path()).context("read the skip lines")?;
    for line in lines.lines() {
        show(line)?;
        count.skipped += 1;
        count.passed = count.passed.saturating_sub(1);
    }
    if status.success() {
        step.done(&count.to_string());
    } else {
        drop(step);
    }
    show(&count.to_string())?;
    if status.success() && count.failed == 0 { Ok(()) } else { bail!("tests failed ({status})") }
}

/// Standard output is the result of this command: what the tests said, and the count.
fn show(line: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{line}").context("write to standard output")
}

/// Adds a line of the form `test result: ok. 3 passed; 0 failed; 1 ignored; …` to the count.
fn count_line(line: &str, count: &mut Count) {
    let Some(rest) = line.strip_prefix("test result: ") else { return };
    for part in rest.split(['.', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(word)) = (words.next(), words.next()) else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match word {
            "passed" => count.passed += number,
            "failed" => count.failed += number,
            "ignored" => count.skipped += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted_and_other_lines_are_not() {
        let mut count = Count::default();
        count_line(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            &mut count,
        );
        count_line(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.01s",
            &mut count,
        );
        count_line("test wire::tests::round_trip ... ok", &mut count);
        assert_eq!(count, Count { passed: 15, failed: 2, skipped: 1 });
        assert_eq!(count.to_string(), "15 passed, 2 failed, 1 skipped");
    }
}
