//! A blocking client of the control socket, for the node agent and for tests.
//!
//! Every wait is bounded: a call ends with a result, a [`ClientError::Refused`] from the monitor, or an error of the connection. After an error
//! that is not a refusal the connection is out of step and must be dropped.

use crate::config::VmConfig;
use crate::control::{Call, Event, LINE_MAX, Metrics, Refusal, Request, Response, StateReport};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a call may take unless said otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `configure` and `start` may take: a kernel is decompressed, or a cluster's lock is waited for (30 s by default).
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The socket could not be reached: there is no monitor behind it.
    #[error("connect to the monitor at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The connection broke; the monitor may have ended.
    #[error("speak to the monitor at {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("the monitor at {path} did not answer {method} within {timeout:?}")]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        method: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// The answer was not in the language of [`crate::control`].
    #[error("the monitor at {path} answered {method} with something else: {reason}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        method: &'static str,
        /// What was wrong with it.
        reason: String,
    },
    /// The monitor refused.
    #[error("the monitor refused {method}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// Its reason.
        #[source]
        refusal: Refusal,
    },
}

/// A connection to one monitor.
#[derive(Debug)]
pub struct Client {
    lines: Lines,
    next_id: u64,
    call_timeout: Duration,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream =
            UnixStream::connect(path).map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let lines = Lines { path: path.to_owned(), stream, buffer: Vec::new() };
        Ok(Self { lines, next_id: 1, call_timeout: CALL_TIMEOUT })
    }

    /// Sets how long calls other than `configure` and `start` may take.
    pub const fn set_call_timeout(&mut self, timeout: Duration) {
        self.call_timeout = timeout;
    }

    /// Checks a configuration and opens what it names.
    ///
    /// # Errors
    /// [`ClientError`]; refused with `invalid_config` or `unavailable` when the configuration is at fault.
    pub fn configure(&mut self, config: &VmConfig) -> Result<(), ClientError> {
        self.call(Call::Configure(Box::new(config.clone())), OPEN_TIMEOUT).map(drop)
    }

    /// Builds and runs the machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn start(&mut self) -> Result<(), ClientError> {
        self.call(Call::Start, OPEN_TIMEOUT).map(drop)
    }

    /// Stops vCPUs and devices where they are.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pause(&mut self) -> Result<(), ClientError> {
        self.plain(Call::Pause)
    }

    /// Lets vCPUs and devices go on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.plain(Call::Resume)
    }

    /// Presses the power button. The guest decides when it ends; wait for [`Event::Shutdown`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        self.plain(Call::Shutdown)
    }

    /// Starts the machine again from its kernel.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reset(&mut self) -> Result<(), ClientError> {
        self.plain(Call::Reset)
    }

    /// Ends the machine now; the process stays until [`Client::quit`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stop(&mut self) -> Result<(), ClientError> {
        self.plain(Call::Stop)
    }

    /// Ends the process.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn quit(mut self) -> Result<(), ClientError> {
        self.plain(Call::Quit)
    }

    /// The state of the machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn state(&mut self) -> Result<StateReport, ClientError> {
        let timeout = self.call_timeout;
        self.typed(Call::State, timeout)
    }

    /// The counters of the machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn metrics(&mut self) -> Result<Metrics, ClientError> {
        let timeout = self.call_timeout;
        self.typed(Call::Metrics, timeout)
    }

    /// Turns the connection into a stream of events. The report tells the state from which the events go on, without a gap.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn events(mut self) -> Result<(StateReport, EventStream), ClientError> {
        let timeout = self.call_timeout;
        let report = self.typed(Call::Events, timeout)?;
        Ok((report, EventStream { lines: self.lines }))
    }

    fn plain(&mut self, call: Call) -> Result<(), ClientError> {
        let timeout = self.call_timeout;
        self.call(call, timeout).map(drop)
    }

    fn typed<T: DeserializeOwned>(&mut self, call: Call, timeout: Duration) -> Result<T, ClientError> {
        let method = call.method();
        let value = self.call(call, timeout)?;
        serde_json::from_value(value).map_err(|error| self.lines.answer(method, error.to_string()))
    }

    fn call(&mut self, call: Call, timeout: Duration) -> Result<Value, ClientError> {
        let (id, method) = (self.next_id, call.method());
        self.next_id += 1;
        self.lines.send(&Request { id, call }.to_line(), timeout)?;
        let line = self.lines.receive(method, timeout)?;
        let response = Response::parse(&line).map_err(|reason| self.lines.answer(method, reason))?;
        match response.outcome {
            Err(refusal) => Err(ClientError::Refused { method, refusal }),
            Ok(_) if response.id != Some(id) => {
                Err(self.lines.answer(method, format!("the answer has id {:?}, the request {id}", response.id)))
            }
            Ok(value) => Ok(value),
        }
    }
}

/// The events of one machine, in order.
#[derive(Debug)]
pub struct EventStream {
    lines: Lines,
}

impl EventStream {
    /// Waits for the next event, at most `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Timeout`] when there was none, after which the stream can be asked again; [`ClientError::Io`] with `UnexpectedEof` once the
    /// process ended.
    pub fn next(&mut self, timeout: Duration) -> Result<Event, ClientError> {
        let line = self.lines.receive("events", timeout)?;
        Event::parse(&line).map_err(|reason| self.lines.answer("events", reason))
    }
}

impl AsFd for EventStream {
    /// For waiting on several machines at once.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lines.stream.as_fd()
    }
}

/// Lines over the socket; `buffer` holds what was read past the last line.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    fn send(&mut self, line: &str, timeout: Duration) -> Result<(), ClientError> {
        self.stream.set_write_timeout(Some(timeout)).map_err(|source| self.io(source))?;
        self.stream.write_all(line.as_bytes()).map_err(|source| self.io(source))
    }

    fn receive(&mut self, method: &'static str, timeout: Duration) -> Result<String, ClientError> {
        self.stream.set_read_timeout(Some(timeout)).map_err(|source| self.io(source))?;
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return String::from_utf8(line).map_err(|error| self.answer(method, error.to_string()));
            }
            if self.buffer.len() >= LINE_MAX {
                return Err(self.answer(method, format!("a line longer than {LINE_MAX} bytes")));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.io(ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(ClientError::Timeout { path: self.path.clone(), method, timeout });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
    }

    fn io(&self, source: io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }

    fn answer(&self, method: &'static str, reason: String) -> ClientError {
        ClientError::Answer { path: self.path.clone(), method, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ErrorCode;
    use crate::state::State;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    /// A monitor that answers the n-th line with the n-th text, then closes.
    fn monitor(name: &str, answers: Vec<&'static str>) -> (PathBuf, JoinHandle<Vec<String>>) {
        let path = std::env::temp_dir().join(format!("vmm-client-{}-{name}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut seen = Vec::new();
            for answer in answers {
                seen.push(lines.next().unwrap().unwrap());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            seen
        });
        (path, thread)
    }

    #[test]
    fn calls_are_answered_in_order_and_refusals_keep_their_code() {
        let (path, thread) = monitor(
            "calls",
            vec![
                "{\"id\":1,\"result\":{}}\n",
                "{\"id\":2,\"error\":{\"code\":\"illegal_state\",\"message\":\"no\"}}\n",
                "{\"id\":3,\"result\":{\"state\":\"paused\",\"resets\":0,\"pid\":1,\"version\":\"v\"}}\n{\"event\":\"running\"}\n",
            ],
        );
        let mut client = Client::connect(&path).unwrap();
        client.start().unwrap();
        let error = client.pause().unwrap_err();
        assert!(matches!(error, ClientError::Refused { refusal: Refusal { code: ErrorCode::IllegalState, .. }, .. }));
        let (report, mut events) = client.events().unwrap();
        assert_eq!(report.state, State::Paused);
        assert_eq!(events.next(CALL_TIMEOUT).unwrap(), Event::Running);
        let seen = thread.join().unwrap();
        assert_eq!(seen[0], r#"{"id":1,"method":"start"}"#);
        assert!(matches!(events.next(CALL_TIMEOUT), Err(ClientError::Io { .. })));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn silence_ends_in_a_timeout_that_names_the_call() {
        let (path, thread) = monitor("silence", vec![""]);
        let mut client = Client::connect(&path).unwrap();
        let hold = client.lines.stream.try_clone().unwrap();
        client.set_call_timeout(Duration::from_millis(20));
        let error = client.state().unwrap_err();
        assert!(matches!(error, ClientError::Timeout { method: "state", .. } | ClientError::Io { .. }), "{error}");
        drop(hold);
        thread.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_answer_to_another_request_is_an_error() {
        let (path, thread) = monitor("other", vec!["{\"id\":9,\"result\":{}}\n"]);
        let error = Client::connect(&path).unwrap().start().unwrap_err();
        assert!(matches!(error, ClientError::Answer { .. }), "{error}");
        thread.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn nobody_listening_is_said_with_the_path() {
        let error = Client::connect(Path::new("/nonexistent/vmm.sock")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vmm.sock"));
    }
}
