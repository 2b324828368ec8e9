//! The life of one machine: which states there are and which steps lead from one to another.
//!
//! ```text
//!             configure            start
//!  created ---------------> configured ---------> running <----------+ reset (also from paused, which stays paused)
//!     |      (again: replaces)  |                 |  ^  |            |
//!     |                         |           pause |  |  +------------+
//!     |                         |                 v  | resume
//!     |                         |                paused
//!     |                         |                 |
//!     |  stop                   | stop            | stop, guest powers off       guest or monitor fails
//!     +-------------------------+-----------------+-----> shutdown     running, paused ------------> crashed
//! ```
//!
//! `shutdown` and `crashed` are final: the process answers questions until it is told to quit, so that an agent which was away learns how the
//! machine ended. [`State::after`] is the only place that lists legal steps; nothing here does I/O.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The process runs and knows nothing of its machine yet.
    Created,
    /// A configuration was accepted and its resources were opened.
    Configured,
    /// vCPUs run guest code.
    Running,
    /// vCPUs and devices stand still; guest memory is kept.
    Paused,
    /// The guest powered itself off or was stopped. Final.
    Shutdown,
    /// The guest or the monitor failed in a way that cannot be continued. Final.
    Crashed,
}

/// Something that happens to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// A configuration was accepted.
    Configure,
    /// vCPUs start to run.
    Start,
    /// vCPUs and devices stop where they are.
    Pause,
    /// vCPUs and devices go on.
    Resume,
    /// The machine starts again from its kernel, asked by the guest or by a client.
    Reset,
    /// The guest powered itself off.
    PowerOff,
    /// A client ended the machine without asking the guest.
    Stop,
    /// The guest or the monitor failed.
    Crash,
}

/// Every state, for tests and tables.
pub const STATES: [State; 6] =
    [State::Created, State::Configured, State::Running, State::Paused, State::Shutdown, State::Crashed];

/// Every step, for tests and tables.
pub const STEPS: [Step; 8] =
    [Step::Configure, Step::Start, Step::Pause, Step::Resume, Step::Reset, Step::PowerOff, Step::Stop, Step::Crash];

/// A step that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step} a machine that is {state}")]
pub struct IllegalStep {
    /// The state that was met.
    pub state: State,
    /// The step that was tried.
    pub step: Step,
}

impl State {
    /// The state after `step`.
    ///
    /// # Errors
    /// [`IllegalStep`] when the step is not possible from this state.
    pub fn after(self, step: Step) -> Result<Self, IllegalStep> {
        match (self, step) {
            (Self::Created | Self::Configured, Step::Configure) => Ok(Self::Configured),
            (Self::Configured, Step::Start) | (Self::Paused, Step::Resume) => Ok(Self::Running),
            (Self::Running, Step::Pause) => Ok(Self::Paused),
            (Self::Running | Self::Paused, Step::Reset) => Ok(self),
            (Self::Running | Self::Paused, Step::PowerOff) => Ok(Self::Shutdown),
            (Self::Created | Self::Configured | Self::Running | Self::Paused, Step::Stop) => Ok(Self::Shutdown),
            (Self::Configured | Self::Running | Self::Paused, Step::Crash) => Ok(Self::Crashed),
            (state, step) => Err(IllegalStep { state, step }),
        }
    }

    /// True when nothing can follow: the process only waits to be told to quit.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Shutdown | Self::Crashed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Shutdown => "shut down",
            Self::Crashed => "crashed",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configure => "configure",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::PowerOff => "power off",
            Self::Stop => "stop",
            Self::Crash => "crash",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks long random sequences of steps: a refused step changes nothing, a final state is never left, and a machine only runs after it was
    /// configured and started.
    #[test]
    fn a_random_walk_keeps_the_promises() {
        let mut seed: u64 = 0x5eed_0001;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..2_000 {
            let (mut state, mut configured, mut started) = (State::Created, false, false);
            for _ in 0..40 {
                let step = STEPS[usize::try_from(next() % 8).unwrap()];
                match state.after(step) {
                    Ok(after) => {
                        assert!(!state.is_final(), "{state} was left by {step}");
                        configured |= step == Step::Configure;
                        started |= step == Step::Start;
                        state = after;
                    }
                    Err(refused) => assert_eq!((refused.state, refused.step), (state, step)),
                }
                if matches!(state, State::Running | State::Paused) {
                    assert!(configured && started);
                }
            }
        }
    }

    /// Every state but the first is reached from the first, so no row of the table is dead.
    #[test]
    fn every_state_is_reachable() {
        let mut reached = vec![State::Created];
        for index in 0..STATES.len() {
            let Some(state) = reached.get(index).copied() else { break };
            for step in STEPS {
                if let Ok(after) = state.after(step)
                    && !reached.contains(&after)
                {
                    reached.push(after);
                }
            }
        }
        assert_eq!(reached.len(), STATES.len());
    }

    #[test]
    fn a_refusal_names_state_and_step() {
        let refused = State::Created.after(Step::Pause).unwrap_err();
        assert_eq!(refused.to_string(), "cannot pause a machine that is created");
    }
}
