//! What was proven and how: named checks with their time and what was seen.
//!
//! A check is a function that returns its evidence or an error; it never decides what a report looks like. A check that
//! fails stops none of the others.

use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::lab::progress::Progress;

/// One check and how it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What was to be shown.
    pub name: String,
    /// Whether it was.
    pub ok: bool,
    /// How long it took.
    pub seconds: f64,
    /// What was seen, or what went wrong.
    pub evidence: String,
}

/// All checks of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Whether every check succeeded.
    pub ok: bool,
    /// The whole run, from the command's start.
    pub seconds: f64,
    /// Number of hosts.
    pub hosts: u8,
    /// The checks in their order.
    pub checks: Vec<Check>,
}

/// Runs checks one after the other and keeps their results.
#[derive(Debug)]
pub struct Examiner<'run> {
    progress: &'run Progress,
    checks: Vec<Check>,
}

impl<'run> Examiner<'run> {
    /// Starts with nothing checked.
    #[must_use]
    pub fn new(progress: &'run Progress) -> Self {
        Self { progress, checks: Vec::new() }
    }

    /// Runs one check; says whether it succeeded.
    pub fn check(&mut self, name: &str, body: impl FnOnce() -> Result<String>) -> bool {
        let start = Instant::now();
        let outcome = body();
        let seconds = rounded(start.elapsed().as_secs_f64());
        let ok = outcome.is_ok();
        let evidence = outcome.unwrap_or_else(|error| format!("{error:#}"));
        self.progress.say(&format!("check {} {name}, {seconds} s: {evidence}", if ok { "ok" } else { "FAILED" }));
        self.checks.push(Check { name: name.to_owned(), ok, seconds, evidence });
        ok
    }

    /// Says what is no check's verdict and should not go unseen.
    pub fn note(&self, text: &str) {
        self.progress.say(text);
    }

    /// The report of all checks so far.
    #[must_use]
    pub fn report(self, hosts: u8) -> Report {
        let ok = !self.checks.is_empty() && self.checks.iter().all(|check| check.ok);
        Report { ok, seconds: rounded(self.progress.elapsed().as_secs_f64()), hosts, checks: self.checks }
    }
}

/// Seconds with one digit after the point: more would pretend.
fn rounded(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    //! Shows that a failed check fails the report, stops nothing and keeps its cause.
    use super::*;
    use crate::lab::progress::Audience;

    #[test]
    fn a_failure_is_kept_and_the_rest_goes_on() {
        let progress = Progress::new("test", Audience::Nobody);
        let mut examiner = Examiner::new(&progress);
        assert!(!examiner.check("first", || anyhow::bail!("a cause")));
        assert!(examiner.check("second", || Ok("seen".to_owned())));
        let report = examiner.report(2);
        assert!(!report.ok);
        let kept: Vec<_> = report.checks.iter().map(|check| (check.ok, check.evidence.as_str())).collect();
        assert_eq!(kept, [(false, "a cause"), (true, "seen")]);
    }

    #[test]
    fn nothing_checked_is_no_success() {
        assert!(!Examiner::new(&Progress::new("test", Audience::Nobody)).report(2).ok);
    }
}
