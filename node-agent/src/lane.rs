//! Which lanes are busy and which rest after a failure: the memory of the loop between two plans.
//!
//! ```text
//!   idle --begin--> busy --ok--> idle
//!                    |
//!                    +--failed, or done again and again without effect--> resting (1 s, 2 s, 4 s .. RETRY_MAX) --due--> idle
//! ```
//!
//! A step that says it is done and is planned again the same had no effect. It rests like one that failed, so that no step spins.

use std::collections::{BTreeMap, BTreeSet};

use model::observed::Problem;
use serde::Serialize;

use crate::plan::{Lane, Plan, Step};

/// The first rest after a failure, milliseconds.
pub const RETRY_MIN_MS: u64 = 1_000;
/// The longest rest after a failure, milliseconds.
pub const RETRY_MAX_MS: u64 = 60_000;
/// How often one and the same step may be done in a row before it rests: a look may be a moment older than what the step did.
pub const REPEATS_MAX: u32 = 2;
/// The most steps under way at once.
pub const BUSY_MAX: usize = 8;

/// A lane whose last step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resting {
    /// The step that failed.
    pub step: &'static str,
    /// What went wrong.
    pub problem: Problem,
    /// How often in a row.
    pub failures: u32,
    /// When it is tried again, milliseconds since 1970.
    pub retry_at_ms: u64,
}

/// Which lanes are busy and which rest.
#[derive(Debug, Clone, Default)]
pub struct Lanes {
    busy: BTreeMap<Lane, &'static str>,
    resting: BTreeMap<Lane, Resting>,
    /// The step that each lane began last, and how often in a row.
    last: BTreeMap<Lane, (Step, u32)>,
}

impl Lanes {
    /// The steps of a plan to begin now; they are busy from here on.
    pub fn begin(&mut self, plan: &Plan, now_ms: u64) -> Vec<Step> {
        // A lane that has nothing to do any more has nothing to rest from.
        self.resting.retain(|lane, _| plan.steps.contains_key(lane) || self.busy.contains_key(lane));
        self.last.retain(|lane, _| plan.steps.contains_key(lane) || self.busy.contains_key(lane));
        let mut begun = Vec::new();
        for (lane, step) in &plan.steps {
            let rests = self.resting.get(lane).is_some_and(|resting| now_ms < resting.retry_at_ms);
            if self.busy.len() < BUSY_MAX && !rests && !self.busy.contains_key(lane) {
                self.busy.insert(lane.clone(), step.verb());
                self.count(lane, step);
                begun.push(step.clone());
            }
        }
        begun
    }

    fn count(&mut self, lane: &Lane, step: &Step) {
        match self.last.get_mut(lane) {
            Some((last, times)) if last == step => *times = times.saturating_add(1),
            _ => drop(self.last.insert(lane.clone(), (step.clone(), 1))),
        }
    }

    /// Takes the outcome of a step.
    pub fn finish(&mut self, lane: &Lane, outcome: Result<(), Problem>, now_ms: u64) {
        let step = self.busy.remove(lane).unwrap_or("step");
        let times = self.last.get(lane).map_or(0, |(_, times)| *times);
        let problem = match outcome {
            Err(problem) => problem,
            Ok(()) if times > REPEATS_MAX => without_effect(step, times),
            Ok(()) => return drop(self.resting.remove(lane)),
        };
        let failures = self.resting.get(lane).map_or(0, |resting| resting.failures).saturating_add(1);
        let wait_ms = RETRY_MIN_MS.saturating_mul(1 << (failures - 1).min(10)).min(RETRY_MAX_MS);
        let resting = Resting { step, problem, failures, retry_at_ms: now_ms.saturating_add(wait_ms) };
        self.resting.insert(lane.clone(), resting);
    }

    /// Lets every resting lane try at once: something changed that may have been in its way.
    pub fn wake(&mut self) {
        for resting in self.resting.values_mut() {
            resting.retry_at_ms = 0;
        }
    }

    /// What is under way.
    #[must_use]
    pub const fn busy(&self) -> &BTreeMap<Lane, &'static str> {
        &self.busy
    }

    /// What failed last and waits to be tried again.
    #[must_use]
    pub const fn resting(&self) -> &BTreeMap<Lane, Resting> {
        &self.resting
    }

    /// The lanes under way.
    #[must_use]
    pub fn busy_lanes(&self) -> BTreeSet<Lane> {
        self.busy.keys().cloned().collect()
    }

    /// When the next resting lane is due, milliseconds since 1970.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.resting.values().map(|resting| resting.retry_at_ms).min()
    }
}

fn without_effect(step: &str, times: u32) -> Problem {
    Problem {
        message: format!("{step}: done {times} times in a row, and the next look wants the same again"),
        remedy: "look for what undoes it: another program that manages this bridge, tap, image or process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let step = Step::DeleteTap("tap1".to_owned());
        Plan { steps: [(step.lane(), step)].into(), ..Plan::default() }
    }

    fn problem() -> Result<(), Problem> {
        Err(Problem { message: "no".to_owned(), remedy: String::new() })
    }

    #[test]
    fn a_busy_lane_is_not_begun_again_and_a_failed_one_rests_longer_each_time() {
        let (mut lanes, plan, mut now) = (Lanes::default(), plan(), 0);
        let lane = Lane::Tap("tap1".to_owned());
        let mut rests = Vec::new();
        for _ in 0..9 {
            assert_eq!(lanes.begin(&plan, now).len(), 1);
            assert!(lanes.begin(&plan, now).is_empty(), "busy");
            lanes.finish(&lane, problem(), now);
            let due = lanes.next_due_ms().unwrap();
            assert!(lanes.begin(&plan, due - 1).is_empty(), "resting");
            rests.push(due - now);
            now = due;
        }
        assert_eq!(rests, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        lanes.begin(&Plan::default(), now);
        assert!(lanes.resting().is_empty(), "nothing to do any more");
    }

    #[test]
    fn success_ends_the_rest_and_waking_cuts_it_short() {
        let (mut lanes, plan) = (Lanes::default(), plan());
        let lane = Lane::Tap("tap1".to_owned());
        lanes.begin(&plan, 0);
        lanes.finish(&lane, problem(), 0);
        lanes.wake();
        assert_eq!(lanes.begin(&plan, 1).len(), 1);
        lanes.finish(&lane, Ok(()), 1);
        assert!(lanes.resting().is_empty() && lanes.busy().is_empty());
    }

    /// A step that succeeds and is wanted again at once rests, longer each time, and says so; another step of the lane, or none, begins anew.
    #[test]
    fn a_step_without_effect_does_not_spin() {
        let (mut lanes, plan) = (Lanes::default(), plan());
        let lane = Lane::Tap("tap1".to_owned());
        for _ in 0..REPEATS_MAX {
            assert_eq!(lanes.begin(&plan, 0).len(), 1);
            lanes.finish(&lane, Ok(()), 0);
        }
        let mut now = 0;
        for rest in [RETRY_MIN_MS, 2 * RETRY_MIN_MS] {
            assert_eq!(lanes.begin(&plan, now).len(), 1);
            lanes.finish(&lane, Ok(()), now);
            assert!(lanes.begin(&plan, now + rest - 1).is_empty(), "resting");
            now += rest;
        }
        assert!(lanes.resting()[&lane].problem.message.contains("times in a row"));
        lanes.begin(&Plan::default(), now);
        assert!(lanes.resting().is_empty());
        assert_eq!(lanes.begin(&plan, now).len(), 1);
        lanes.finish(&lane, Ok(()), now);
        assert!(lanes.resting().is_empty(), "counted anew");
    }
}
