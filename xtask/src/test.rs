//! `cargo xtask test`: every test there is, on the real things, with one count at the end.
//!
//! Installs what the tests need, runs the workspace's tests, then `up --check`, whose proofs count as tests. A test that skips writes a line into a file named in the environment
//! (see `basalt_tests::skip`), so that no skip hides behind a green run. The last line is `N passed, N failed, N skipped`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use hw_tests::lab::progress::Progress;
use serde_json::Value;

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

/// What failed tests said: said again before the count, for thousands of lines lie between.
#[derive(Debug, Default)]
struct Failures {
    lines: Vec<String>,
    /// Lines that the test spoken of may still say.
    left: usize,
}

impl Failures {
    const LINES_MAX: usize = 1000;
    const LINES_EACH_MAX: usize = 30;

    /// Takes what the test harness prints between `---- NAME stdout ----` and the stack or the next test.
    fn hear(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.left = Self::LINES_EACH_MAX;
        } else if line == "failures:" || line.eq_ignore_ascii_case("stack backtrace:") {
            self.left = 0;
        }
        if self.left > 0 && !line.trim().is_empty() && self.lines.len() < Self::LINES_MAX {
            self.lines.push(line.to_owned());
            self.left -= 1;
        }
    }
}

/// Runs every test of the tree at `root`, then the whole way through in the lab.
///
/// # Errors
/// When something can not be installed or built, or a test or proof fails; the count has been printed then.
pub(crate) fn run(root: &Path, progress: &Progress) -> Result<()> {
    packages::ensure(&[], progress)?;
    let (mut count, mut failures) = (Count::default(), Failures::default());
    let tests = progress.step("workspace tests");
    let held = workspace(root, &mut count, &mut failures)?;
    if held {
        tests.done(&count.to_string());
    } else {
        drop(tests);
    }
    let cloud = progress.step("a cloud of two hosts, proven");
    let proven = proofs(&mut count)?;
    if proven {
        cloud.done("every proof holds");
    } else {
        drop(cloud);
    }
    failures.lines.iter().try_for_each(|line| show(line))?;
    show(&count.to_string())?;
    if held && proven && count.failed == 0 { Ok(()) } else { bail!("tests failed") }
}

/// Runs the workspace's tests and says whether all held.
fn workspace(root: &Path, count: &mut Count, failures: &mut Failures) -> Result<bool> {
    let skips = tempfile::NamedTempFile::new().context("make a file for skip lines")?;
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(root)
        .args(["test", "--locked", "--workspace", "--all-features", "--no-fail-fast"])
        .env("BASALT_SKIP_LOG", skips.path());
    let ended = follow(&mut command, |line| {
        count_line(line, count);
        failures.hear(line);
        show(line)
    })?;
    let lines = std::fs::read_to_string(skips.path()).context("read the skip lines")?;
    for line in lines.lines() {
        show(line)?;
        count.skipped += 1;
        count.passed = count.passed.saturating_sub(1);
    }
    Ok(ended)
}

/// Runs `up --check` and counts its proofs; says whether it brought up the cloud and all held.
fn proofs(count: &mut Count) -> Result<bool> {
    let own = std::env::current_exe().context("find this program")?;
    let mut last = String::new();
    let ended = follow(Command::new(own).args(["up", "--check", "--output", "json"]), |line| {
        line.clone_into(&mut last);
        Ok(())
    })?;
    let report: Value = serde_json::from_str(&last).unwrap_or(Value::Null);
    let checks = report.pointer("/checks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for check in checks {
        let text = |name| check.pointer(name).and_then(Value::as_str).unwrap_or_default();
        let ok = check.pointer("/ok").and_then(Value::as_bool) == Some(true);
        *(if ok { &mut count.passed } else { &mut count.failed }) += 1;
        show(&format!("proof {} ... {}: {}", text("/name"), if ok { "ok" } else { "FAILED" }, text("/evidence")))?;
    }
    if checks.is_empty() {
        count.failed += 1;
        show("proof of the whole way through ... FAILED: no cloud came up; see above")?;
    }
    Ok(ended && !checks.is_empty())
}

/// Runs a command, gives each line that it prints to `each`, and says whether it succeeded.
fn follow(command: &mut Command, mut each: impl FnMut(&str) -> Result<()>) -> Result<bool> {
    let what = format!("{command:?}");
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("run {what}"))?;
    let output = child.stdout.take().with_context(|| format!("read what {what} prints"))?;
    for line in BufReader::new(output).lines() {
        each(&line.with_context(|| format!("read what {what} prints"))?)?;
    }
    Ok(child.wait().with_context(|| format!("wait for {what}"))?.success())
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
    fn failures_are_kept_without_stacks_and_names_alone() {
        let mut failures = Failures::default();
        let output = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n\nthread 'a' panicked at a.rs:1:1:\nno answer\n\
                      stack backtrace:\n   0: rust_begin_unwind\n\n---- b stdout ----\nno disk\n\nfailures:\n    a\n    b\n";
        output.lines().for_each(|line| failures.hear(line));
        let kept =
            ["---- a stdout ----", "thread 'a' panicked at a.rs:1:1:", "no answer", "---- b stdout ----", "no disk"];
        assert_eq!(failures.lines, kept);
        "---- c stdout ----\n".lines().chain(std::iter::repeat_n("word", 99)).for_each(|line| failures.hear(line));
        assert_eq!(failures.lines.len(), kept.len() + Failures::LINES_EACH_MAX);
    }

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
