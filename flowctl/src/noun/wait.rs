//! Waiting for an object to become what was asked for, with a limit, saying each change.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::output;
use crate::scheduler::Scheduler;

/// How often the scheduler is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// Whether to wait, and how long.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Wait until it is done, at most this many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "120")]
    pub wait: Option<u64>,
}

impl Wait {
    /// The limit, where waiting was asked for.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        self.wait.map(Duration::from_secs)
    }
}

/// Waits until `/state` of the object at `path` is `goal`, and returns the object.
///
/// # Errors
/// [`Failure::TimedOut`] with the last state and problem; [`Failure`] when the scheduler refuses.
pub async fn until_state(scheduler: &Scheduler, path: &str, goal: &str, limit: Duration) -> Result<Value, Failure> {
    let end = Instant::now() + limit;
    let mut last = String::new();
    loop {
        let object = scheduler.get(path).await?;
        let now = describe(&object);
        if now != last {
            output::note(&now);
            last = now;
        }
        if object.pointer("/state").and_then(Value::as_str) == Some(goal) {
            return Ok(object);
        }
        if Instant::now() >= end {
            return Err(Failure::TimedOut(format!("wait {} s for {goal}: {last}", limit.as_secs())));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits until there is no object at `path`.
///
/// # Errors
/// [`Failure::TimedOut`]; [`Failure`] when the scheduler refuses otherwise.
pub async fn until_gone(scheduler: &Scheduler, path: &str, limit: Duration) -> Result<(), Failure> {
    let end = Instant::now() + limit;
    loop {
        match scheduler.get(path).await {
            Err(Failure::NotFound(_)) => return Ok(()),
            Err(failure) => return Err(failure),
            Ok(object) if Instant::now() >= end => {
                let text = format!("wait {} s until it is gone: {}", limit.as_secs(), describe(&object));
                return Err(Failure::TimedOut(text));
            }
            Ok(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}

/// An object's name, state and problem in one line.
fn describe(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let (name, state) = (text("/name").unwrap_or("it"), text("/state").unwrap_or("without a state"));
    match text("/problem/message") {
        Some(problem) => format!("{name} is {state}: {problem}"),
        None => format!("{name} is {state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_described_with_its_problem() {
        let object =
            json!({"name": "web1", "state": "error", "problem": {"message": "no host takes it", "remedy": ""}});
        assert_eq!(describe(&object), "web1 is error: no host takes it");
        assert_eq!(describe(&json!({"name": "web1", "state": "running", "problem": null})), "web1 is running");
    }
}
