//! Why a command did not do what was asked, and the exit code that says so to a script.

use std::process::ExitCode;

/// Exit codes, as `flowctl --help` lists them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; for a question: the answer is good (it passes, it agrees, the host is healthy)
  1  failed in a way that none of the others names
  2  the command line is wrong
  3  the scheduler or the agent can not be reached
  4  there is no such object
  5  the request was refused: the message names the field or the object in the way
  6  the answer is bad: it is dropped, it disagrees, the host has a fault
  7  the time limit of --wait is over";

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The other side does not answer.
    #[error("reach {peer}: {reason}; {remedy}")]
    Unreachable {
        /// Who was asked.
        peer: String,
        /// What went wrong.
        reason: String,
        /// What to look at.
        remedy: String,
    },
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// The request was refused.
    #[error("{0}")]
    Refused(String),
    /// The question was answered, and the answer is bad. It has been printed already.
    #[error("{0}")]
    BadAnswer(String),
    /// What was waited for did not happen in time.
    #[error("{0}")]
    TimedOut(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The code of its kind.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Other(_) => 1,
            Self::Unreachable { .. } => 3,
            Self::NotFound(_) => 4,
            Self::Refused(_) => 5,
            Self::BadAnswer(_) => 6,
            Self::TimedOut(_) => 7,
        }
    }

    /// The process' exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// What an HTTP status of the scheduler or the agent means, with the message that came with it.
    #[must_use]
    pub fn of_status(status: u16, message: String) -> Self {
        match status {
            404 => Self::NotFound(message),
            400..=499 => Self::Refused(message),
            _ => Self::Other(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_the_code_that_the_help_lists() {
        let kinds = [
            Failure::Other(String::new()),
            Failure::Unreachable { peer: String::new(), reason: String::new(), remedy: String::new() },
            Failure::of_status(404, String::new()),
            Failure::of_status(409, String::new()),
            Failure::BadAnswer(String::new()),
            Failure::TimedOut(String::new()),
        ];
        let codes: Vec<u8> = kinds.iter().map(Failure::code).collect();
        assert_eq!(codes, [1, 3, 4, 5, 6, 7]);
        for code in codes {
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "{code}");
        }
    }
}
