//! What a person sees while the lab works: one line for each step, with its time and its evidence.
//!
//! Goes to stderr only, so that results on stdout stay clean. Owns no timing decisions: a step reports, it never limits.

use std::io::Write;
use std::time::{Duration, Instant};

/// Where step lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Audience {
    /// A person: lines on stderr.
    #[default]
    Stderr,
    /// Nobody: tests that have their own words.
    Nobody,
}

/// A named run of steps.
#[derive(Debug, Clone)]
pub struct Progress {
    name: String,
    audience: Audience,
    start: Instant,
}

impl Progress {
    /// Starts a run called `name`; its name begins each line.
    #[must_use]
    pub fn new(name: &str, audience: Audience) -> Self {
        Self { name: name.to_owned(), audience, start: Instant::now() }
    }

    /// Begins a step. A step dropped without [`Step::done`] is shown as failed.
    #[must_use]
    pub fn step(&self, title: &str) -> Step<'_> {
        Step { progress: self, title: title.to_owned(), start: Instant::now(), ended: false }
    }

    /// Time since the run began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// A line of its own.
    pub fn say(&self, text: &str) {
        if self.audience == Audience::Stderr {
            // A closed stderr must not stop the work.
            writeln!(std::io::stderr().lock(), "{:>6.1}s {}: {text}", self.elapsed().as_secs_f64(), self.name).ok();
        }
    }
}

/// One step under way.
#[derive(Debug)]
pub struct Step<'run> {
    progress: &'run Progress,
    title: String,
    start: Instant,
    ended: bool,
}

impl Step<'_> {
    /// Says something in the middle of the step.
    pub fn note(&self, text: &str) {
        self.progress.say(&format!("{}: {text}", self.title));
    }

    /// Ends the step well; `evidence` says what was seen. Returns its time.
    pub fn done(mut self, evidence: &str) -> Duration {
        self.ended = true;
        let time = self.start.elapsed();
        self.progress.say(&format!("{} ok, {:.1} s: {evidence}", self.title, time.as_secs_f64()));
        time
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.progress.say(&format!("{} FAILED after {:.1} s", self.title, self.start.elapsed().as_secs_f64()));
        }
    }
}
