//! The language of the control socket: one JSON object a line, requests one way, responses and events the other.
//!
//! ```text
//! -> {"id":1,"method":"configure","params":{...}}      <- {"id":1,"result":{}}
//! -> {"id":2,"method":"start"}                         <- {"id":2,"error":{"code":"start_failed","message":"..."}}
//! -> {"id":3,"method":"events"}                        <- {"id":3,"result":{...the state...}}, then one event a line until the client leaves
//! ```
//!
//! Text becomes a [`Request`] here or an error with a code and, where the line had one, its id. Nothing here reads a socket or touches a machine.

use crate::config::VmConfig;
use crate::state::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The longest line either side sends, bytes with its newline.
pub const LINE_MAX: usize = 256 * 1024;

/// A request with the number its response will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client; not interpreted.
    pub id: u64,
    /// What is asked.
    pub call: Call,
}

/// What a client can ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Check a configuration and open what it names; replaces an earlier one before `start`.
    Configure(Box<VmConfig>),
    /// Build the machine and run it.
    Start,
    /// Stop vCPUs and devices where they are.
    Pause,
    /// Let vCPUs and devices go on.
    Resume,
    /// Press the power button; the guest decides.
    Shutdown,
    /// Start the machine again from its kernel.
    Reset,
    /// End the machine now, without asking the guest.
    Stop,
    /// Report the state.
    State,
    /// Report the counters.
    Metrics,
    /// Turn this connection into a stream of events.
    Events,
    /// End the process; the machine is stopped first.
    Quit,
}

impl Call {
    /// The method's name on the wire.
    #[must_use]
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Configure(_) => "configure",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Shutdown => "shutdown",
            Self::Reset => "reset",
            Self::Stop => "stop",
            Self::State => "state",
            Self::Metrics => "metrics",
            Self::Events => "events",
            Self::Quit => "quit",
        }
    }
}

/// Why a request was refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The line is not a request.
    Parse,
    /// There is no such method.
    UnknownMethod,
    /// The parameters are not those of the method.
    InvalidParams,
    /// No machine can have this configuration.
    InvalidConfig,
    /// Something the configuration names could not be opened.
    Unavailable,
    /// The state does not allow the method.
    IllegalState,
    /// The machine could not be built or run.
    StartFailed,
    /// The machine did not do as told in time.
    Timeout,
    /// The monitor failed in a way its client cannot mend.
    Internal,
}

/// The `error` of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was attempted and every cause, outermost first.
    pub message: String,
}

impl Refusal {
    /// A refusal whose message is `error` with its chain of causes.
    pub fn new(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self { code, message }
    }
}

/// The answer to one request. Exactly one of `result` and `error` is present on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The request's number; none when the request could not be read so far.
    pub id: Option<u64>,
    /// The method's result, or why there is none.
    pub outcome: Result<Value, Refusal>,
}

/// What `state` and the start of an event stream report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReport {
    /// Where the machine is in its life.
    pub state: State,
    /// Why it crashed or shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The configured name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How often the machine started again since `start`.
    pub resets: u64,
    /// The monitor's process.
    pub pid: u32,
    /// The monitor's version.
    pub version: String,
}

/// Counters since `start`; names carry their units. `devices` is keyed by the configured id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Time since the process made the machine, milliseconds.
    pub uptime_ms: u64,
    /// Counters of the vCPUs together.
    pub vcpus: BTreeMap<String, u64>,
    /// Counters of each device.
    pub devices: BTreeMap<String, BTreeMap<String, u64>>,
    /// Proportional set size of the process without guest memory, KiB; 0 when the kernel did not tell.
    pub overhead_kib: u64,
}

/// A change of state, as one line of an event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A configuration was accepted.
    Configured,
    /// vCPUs run.
    Running,
    /// vCPUs and devices stand still.
    Paused,
    /// The machine started again.
    Reset,
    /// The machine ended.
    Shutdown {
        /// Who ended it.
        reason: String,
    },
    /// The machine failed.
    Crashed {
        /// How.
        reason: String,
    },
    /// The client read too slowly and missed this many events.
    Missed {
        /// How many.
        count: u64,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    id: u64,
    method: String,
    #[serde(default)]
    params: Option<Value>,
}

#[derive(Serialize)]
struct RequestOut<'a> {
    id: u64,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a VmConfig>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResponseLine {
    id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Refusal>,
}

impl Request {
    /// Reads one line.
    ///
    /// # Errors
    /// The response to send instead: `parse`, `unknown_method` or `invalid_params`, with the id where the line had one.
    pub fn parse(line: &str) -> Result<Self, Response> {
        let refuse = |id, code, message| Response { id, outcome: Err(Refusal { code, message }) };
        let request: RequestLine = serde_json::from_str(line).map_err(|error| {
            // A line that is JSON but not a request may still say which request it was.
            let id = serde_json::from_str::<Value>(line).ok().and_then(|value| value.get("id")?.as_u64());
            refuse(id, ErrorCode::Parse, format!("read the request: {error}"))
        })?;
        let (id, method) = (request.id, request.method.as_str());
        let call = match (method, request.params) {
            ("configure", Some(params)) => Call::Configure(serde_json::from_value(params).map_err(|error| {
                refuse(Some(id), ErrorCode::InvalidParams, format!("read the parameters of configure: {error}"))
            })?),
            ("configure", None) => {
                return Err(refuse(Some(id), ErrorCode::InvalidParams, "configure needs params".to_owned()));
            }
            (method, params) => {
                let call = plain_call(method).ok_or_else(|| {
                    refuse(Some(id), ErrorCode::UnknownMethod, format!("there is no method {method:?}"))
                })?;
                if params.is_some_and(|params| !params.as_object().is_some_and(serde_json::Map::is_empty)) {
                    let message = format!("{method} takes no params");
                    return Err(refuse(Some(id), ErrorCode::InvalidParams, message));
                }
                call
            }
        };
        Ok(Self { id, call })
    }

    /// The line to send, with its newline.
    #[must_use]
    pub fn to_line(&self) -> String {
        let params = match &self.call {
            Call::Configure(config) => Some(config.as_ref()),
            _ => None,
        };
        to_line(&RequestOut { id: self.id, method: self.call.method(), params })
    }
}

fn plain_call(method: &str) -> Option<Call> {
    Some(match method {
        "start" => Call::Start,
        "pause" => Call::Pause,
        "resume" => Call::Resume,
        "shutdown" => Call::Shutdown,
        "reset" => Call::Reset,
        "stop" => Call::Stop,
        "state" => Call::State,
        "metrics" => Call::Metrics,
        "events" => Call::Events,
        "quit" => Call::Quit,
        _ => return None,
    })
}

impl Response {
    /// A success without a value.
    #[must_use]
    pub fn done(id: u64) -> Self {
        Self { id: Some(id), outcome: Ok(Value::Object(serde_json::Map::new())) }
    }

    /// Reads one line.
    ///
    /// # Errors
    /// What was wrong with it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let response: ResponseLine = serde_json::from_str(line).map_err(|error| error.to_string())?;
        match (response.result, response.error) {
            (Some(result), None) => Ok(Self { id: response.id, outcome: Ok(result) }),
            (None, Some(error)) => Ok(Self { id: response.id, outcome: Err(error) }),
            _ => Err("a response has either a result or an error".to_owned()),
        }
    }

    /// The line to send, with its newline.
    #[must_use]
    pub fn to_line(&self) -> String {
        let (result, error) = match &self.outcome {
            Ok(value) => (Some(value.clone()), None),
            Err(error) => (None, Some(error.clone())),
        };
        to_line(&ResponseLine { id: self.id, result, error })
    }
}

impl Event {
    /// Reads one line.
    ///
    /// # Errors
    /// What was wrong with it.
    pub fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| error.to_string())
    }

    /// The line to send, with its newline.
    #[must_use]
    pub fn to_line(&self) -> String {
        to_line(self)
    }
}

/// One line of JSON. The types of this module have string keys and finite numbers, so writing them cannot fail.
fn to_line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_else(|error| unreachable!("write a message: {error}"));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> (Option<u64>, ErrorCode) {
        let response = Request::parse(line).unwrap_err();
        (response.id, response.outcome.unwrap_err().code)
    }

    #[test]
    fn plain_requests_are_read_and_written_alike() {
        for method in ["start", "pause", "resume", "shutdown", "reset", "stop", "state", "metrics", "events", "quit"] {
            let request = Request::parse(&format!(r#"{{"id":7,"method":"{method}"}}"#)).unwrap();
            assert_eq!(request.call.method(), method);
            assert_eq!(Request::parse(&request.to_line()), Ok(request));
        }
        assert!(Request::parse(r#"{"id":7,"method":"start","params":{}}"#).is_ok());
    }

    #[test]
    fn configure_carries_a_configuration() {
        let config = serde_json::json!({"name":"a","vcpus":1,"memory_mib":64,"boot":{"kernel":"/k"}});
        let line = serde_json::json!({"id":1,"method":"configure","params":config}).to_string();
        let request = Request::parse(&line).unwrap();
        assert_eq!(Request::parse(&request.to_line()), Ok(request));
    }

    #[test]
    fn each_kind_of_bad_line_has_its_code_and_its_id() {
        assert_eq!(code(""), (None, ErrorCode::Parse));
        assert_eq!(code("[]"), (None, ErrorCode::Parse));
        assert_eq!(code("{\"id\":1"), (None, ErrorCode::Parse));
        assert_eq!(code(r#"{"id":-1,"method":"start"}"#), (None, ErrorCode::Parse));
        assert_eq!(code(r#"{"id":5,"method":"start","more":1}"#), (Some(5), ErrorCode::Parse));
        assert_eq!(code(r#"{"id":5}"#), (Some(5), ErrorCode::Parse));
        assert_eq!(code(r#"{"id":5,"method":"fly"}"#), (Some(5), ErrorCode::UnknownMethod));
        assert_eq!(code(r#"{"id":5,"method":"start","params":{"x":1}}"#), (Some(5), ErrorCode::InvalidParams));
        assert_eq!(code(r#"{"id":5,"method":"start","params":[1]}"#), (Some(5), ErrorCode::InvalidParams));
        assert_eq!(code(r#"{"id":5,"method":"configure"}"#), (Some(5), ErrorCode::InvalidParams));
        assert_eq!(code(r#"{"id":5,"method":"configure","params":{"name":"a"}}"#), (Some(5), ErrorCode::InvalidParams));
    }

    #[test]
    fn responses_and_events_round_trip() {
        let refusal = Refusal { code: ErrorCode::IllegalState, message: "no".to_owned() };
        for response in [Response::done(3), Response { id: None, outcome: Err(refusal) }] {
            assert_eq!(Response::parse(&response.to_line()), Ok(response));
        }
        assert!(Response::parse(r#"{"id":1}"#).is_err());
        let crashed = Event::Crashed { reason: "triple fault".to_owned() };
        assert_eq!(crashed.to_line(), "{\"event\":\"crashed\",\"reason\":\"triple fault\"}\n");
        assert_eq!(Event::parse(&crashed.to_line()), Ok(crashed));
    }
}
