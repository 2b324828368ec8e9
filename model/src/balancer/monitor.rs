//! Health monitors: how a host asks the members on it whether they serve, and when it believes what it hears.
//!
//! Owns [`Monitor`] with its ranges and defaults. Never asks anybody: that is the agent's of the member's host. The words are those of Octavia; times
//! are whole seconds, as there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Transport;

/// The longest time between two checks, in seconds.
pub const DELAY_MAX: u16 = 3600;
/// The longest time that an answer is waited for, in seconds, whatever a monitor from before says: what waits takes room from others.
pub const TIMEOUT_MAX: u16 = 60;
/// The most checks in a row that a verdict may want.
pub const RETRIES_MAX: u8 = 10;
/// The longest path of a request, in octets.
pub const URL_PATH_MAX: usize = 255;
/// The most codes and ranges of codes that may be expected.
pub const CODES_MAX: usize = 16;

/// How members of a listener are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    /// What is asked.
    pub check: Check,
    /// From one check to the next, in seconds: 1 to [`DELAY_MAX`].
    pub delay_seconds: u16,
    /// How long an answer may take, in seconds: 1 to the delay.
    pub timeout_seconds: u16,
    /// How many checks in a row must go well before a member in error is one that serves: 1 to [`RETRIES_MAX`].
    pub max_retries: u8,
    /// How many checks in a row must fail before a member is in error: 1 to [`RETRIES_MAX`].
    pub max_retries_down: u8,
    /// Whether members are checked at all; where not, each is taken for one that serves.
    pub admin_state_up: bool,
}

/// What a member is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// Whether it takes a connection.
    Tcp,
    /// Whether it answers a request with an expected code.
    Http {
        /// What is requested.
        method: Method,
        /// Of which path.
        url_path: UrlPath,
        /// The codes of an answer that is well.
        expected_codes: Codes,
    },
    /// Whether it answers an ICMP echo request.
    Ping,
    /// Whether a datagram finds its port open: it fails where the member says by ICMP that it is not.
    UdpConnect,
}

/// The method of a request (RFC 9110 §9).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// GET.
    #[default]
    Get,
    /// HEAD.
    Head,
}

/// The path of a request, with its query: a slash and graphic ASCII.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UrlPath(String);

/// Codes of answers (RFC 9110 §15), one by one or in ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Codes(Vec<(u16, u16)>);

/// What does not fit within a health monitor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MonitorError {
    /// No such type of check.
    #[error("{text:?} is none of the types TCP, HTTP, PING and UDP-CONNECT")]
    Type {
        /// What was said, cut short.
        text: String,
    },
    /// No such method.
    #[error("{text:?} is none of the methods GET and HEAD")]
    Method {
        /// What was said, cut short.
        text: String,
    },
    /// No path.
    #[error("{text:?} is no path of a request: want a slash and graphic ASCII, {URL_PATH_MAX} octets at most")]
    UrlPath {
        /// What was said, cut short.
        text: String,
    },
    /// No codes.
    #[error(
        "{text:?} names no codes from 100 to 599: want them as in 200, 200,202 or 200-299, {CODES_MAX} parts at most"
    )]
    Codes {
        /// What was said, cut short.
        text: String,
    },
    /// The delay is out of its range.
    #[error("its delay is {delay_seconds} s, want 1 to {DELAY_MAX}")]
    Delay {
        /// In seconds.
        delay_seconds: u16,
    },
    /// The timeout is out of its range.
    #[error("its timeout is {timeout_seconds} s, want 1 to the delay of {delay_seconds} s")]
    Timeout {
        /// In seconds.
        timeout_seconds: u16,
        /// In seconds.
        delay_seconds: u16,
    },
    /// So many checks in a row can not be asked for.
    #[error("its {field} is {count}, want 1 to {RETRIES_MAX}")]
    Retries {
        /// Which of the two.
        field: &'static str,
        /// How many.
        count: u8,
    },
    /// A check that says nothing of such a listener's members.
    #[error("a member that is given connections of {protocol} can not be checked by {check}")]
    Protocol {
        /// The type of the check.
        check: &'static str,
        /// The listener's protocol.
        protocol: Transport,
    },
}

impl Monitor {
    /// A monitor with the times and counts that are taken where nothing is said: a check every 5 s, an answer within 3 s, three in a row.
    #[must_use]
    pub const fn new(check: Check) -> Self {
        Self { check, delay_seconds: 5, timeout_seconds: 3, max_retries: 3, max_retries_down: 3, admin_state_up: true }
    }

    /// Whether it fits members of a listener for `protocol`.
    ///
    /// # Errors
    /// The first [`MonitorError`] found.
    pub fn check_for(&self, protocol: Transport) -> Result<(), MonitorError> {
        let Self { delay_seconds, timeout_seconds, .. } = *self;
        if !(1..=DELAY_MAX).contains(&delay_seconds) {
            return Err(MonitorError::Delay { delay_seconds });
        }
        if !(1..=delay_seconds).contains(&timeout_seconds) {
            return Err(MonitorError::Timeout { timeout_seconds, delay_seconds });
        }
        for (field, count) in [("max_retries", self.max_retries), ("max_retries_down", self.max_retries_down)] {
            if !(1..=RETRIES_MAX).contains(&count) {
                return Err(MonitorError::Retries { field, count });
            }
        }
        if self.check == Check::UdpConnect && protocol != Transport::Udp {
            return Err(MonitorError::Protocol { check: self.check.name(), protocol });
        }
        Ok(())
    }
}

impl Check {
    /// Its name, as Octavia has it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Http { .. } => "HTTP",
            Self::Ping => "PING",
            Self::UdpConnect => "UDP-CONNECT",
        }
    }

    /// A request for / that is to be answered with 200.
    #[must_use]
    pub fn http() -> Self {
        Self::Http { method: Method::Get, url_path: UrlPath("/".to_owned()), expected_codes: Codes(vec![(200, 200)]) }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

impl FromStr for Check {
    type Err = MonitorError;

    /// Reads a type of check; a request is one for /.
    fn from_str(text: &str) -> Result<Self, MonitorError> {
        [Self::Tcp, Self::http(), Self::Ping, Self::UdpConnect]
            .into_iter()
            .find(|check| check.name() == text)
            .ok_or_else(|| MonitorError::Type { text: clip(text) })
    }
}

impl Method {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

impl FromStr for Method {
    type Err = MonitorError;

    fn from_str(text: &str) -> Result<Self, MonitorError> {
        let found = [Self::Get, Self::Head].into_iter().find(|method| method.name() == text);
        found.ok_or_else(|| MonitorError::Method { text: clip(text) })
    }
}

impl UrlPath {
    /// As it is requested.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UrlPath {
    type Error = MonitorError;

    fn try_from(text: String) -> Result<Self, MonitorError> {
        let is_path = text.starts_with('/') && text.bytes().all(|octet| octet.is_ascii_graphic());
        if is_path && text.len() <= URL_PATH_MAX {
            Ok(Self(text))
        } else {
            Err(MonitorError::UrlPath { text: clip(&text) })
        }
    }
}

impl From<UrlPath> for String {
    fn from(path: UrlPath) -> Self {
        path.0
    }
}

impl Codes {
    /// Whether a code is one of them.
    #[must_use]
    pub fn holds(&self, code: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&code))
    }
}

impl TryFrom<String> for Codes {
    type Error = MonitorError;

    fn try_from(text: String) -> Result<Self, MonitorError> {
        let wrong = || MonitorError::Codes { text: clip(&text) };
        let code = |text: &str| {
            let is_number = text.len() == 3 && text.bytes().all(|octet| octet.is_ascii_digit());
            text.parse::<u16>().ok().filter(|code| is_number && (100..=599).contains(code))
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            code(first).zip(code(last)).filter(|(first, last)| first <= last)
        };
        let parts: Option<Vec<_>> = text.split(',').map(|part| range(part.trim())).collect();
        parts.filter(|parts| parts.len() <= CODES_MAX).map(Self).ok_or_else(wrong)
    }
}

impl From<Codes> for String {
    fn from(codes: Codes) -> Self {
        codes.to_string()
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts_have_ranges() {
        let says = |change: &dyn Fn(&mut Monitor)| {
            let mut monitor = Monitor::new(Check::Ping);
            change(&mut monitor);
            monitor.check_for(Transport::Tcp).map_or_else(|error| error.to_string(), |()| "fits".to_owned())
        };
        assert_eq!(says(&|_| {}), "fits");
        assert_eq!(says(&|it| (it.delay_seconds, it.timeout_seconds) = (3600, 3600)), "fits");
        assert_eq!(says(&|it| it.delay_seconds = 0), "its delay is 0 s, want 1 to 3600");
        assert_eq!(says(&|it| it.delay_seconds = 3601), "its delay is 3601 s, want 1 to 3600");
        assert_eq!(says(&|it| it.timeout_seconds = 0), "its timeout is 0 s, want 1 to the delay of 5 s");
        assert_eq!(says(&|it| it.timeout_seconds = 6), "its timeout is 6 s, want 1 to the delay of 5 s");
        assert_eq!(says(&|it| it.max_retries = 0), "its max_retries is 0, want 1 to 10");
        assert_eq!(says(&|it| it.max_retries_down = 11), "its max_retries_down is 11, want 1 to 10");
        let udp = "a member that is given connections of tcp can not be checked by UDP-CONNECT";
        assert_eq!(says(&|it| it.check = Check::UdpConnect), udp);
        assert_eq!(Monitor::new(Check::UdpConnect).check_for(Transport::Udp), Ok(()));
    }

    #[test]
    fn words_read_as_they_were_written() {
        for name in ["TCP", "HTTP", "PING", "UDP-CONNECT"] {
            assert_eq!(name.parse::<Check>().map(|check| check.name()), Ok(name));
        }
        assert_eq!(
            "tcp".parse::<Check>().unwrap_err().to_string(),
            "\"tcp\" is none of the types TCP, HTTP, PING and UDP-CONNECT"
        );
        assert_eq!("HEAD".parse(), Ok(Method::Head));
        assert!("POST".parse::<Method>().is_err());
        for (text, held, not_held) in [("200", 200, 201), ("200,202", 202, 201), ("200-299,404", 250, 300)] {
            let codes = Codes::try_from(text.to_owned()).unwrap();
            assert_eq!((codes.to_string().as_str(), codes.holds(held), codes.holds(not_held)), (text, true, false));
        }
        for wrong in ["", "2", "99", "600", "+20", "300-200", "200,", "abc", "200-", &"200,".repeat(17)] {
            assert!(Codes::try_from(wrong.to_owned()).is_err(), "{wrong:?}");
        }
        for wrong in ["", "index", "/a b", "/\u{e4}", "/a\r\nb", &format!("/{}", "a".repeat(255))] {
            assert!(UrlPath::try_from(wrong.to_owned()).is_err(), "{wrong:?}");
        }
        let monitor = Monitor::new(Check::http());
        let text = serde_json::to_string(&monitor).unwrap();
        assert_eq!(serde_json::from_str::<Monitor>(&text).unwrap(), monitor);
        assert!(text.contains(r#""check":{"http":{"method":"GET","url_path":"/","expected_codes":"200"}}"#), "{text}");
    }
}
