//! The control socket's connections: bytes in become requests, responses and events become bytes out.
//!
//! Nothing here waits or knows what a request means. Invariant: a connection holds at most one line of input and [`OUTPUT_MAX_BYTES`] of output; one
//! that reads too slowly loses events, and is told how many, or is closed when it does not even take its responses.

use crate::control::{Event, LINE_MAX, Request, Response};
use crate::poll::{Interest, Poller};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// The most connections at once; more are turned away.
pub const CLIENTS_MAX: usize = 32;
/// Output that waits for a client, bytes.
pub const OUTPUT_MAX_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    wants_events: bool,
    missed: u64,
}

/// What a connection sent: a request, or the response to what was none.
pub type Asked = Result<Request, Response>;

/// All connections of one socket.
#[derive(Debug)]
pub struct Clients {
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    first: u64,
}

impl Clients {
    /// Connections of `listener`; their tokens count from `first`, the listener's is `listener_token`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(listener: UnixListener, poller: &Poller, listener_token: u64, first: u64) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        poller.add(&listener, listener_token, Interest::Read)?;
        Ok(Self { listener, connections: BTreeMap::new(), next: first, first })
    }

    /// Takes new connections.
    pub fn accept(&mut self, poller: &Poller) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= CLIENTS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let token = self.next;
            self.next += 1;
            if poller.add(&stream, token, Interest::Read).is_ok() {
                let connection =
                    Connection { stream, input: Vec::new(), output: Vec::new(), wants_events: false, missed: 0 };
                self.connections.insert(token, connection);
            }
        }
    }

    /// Whether `token` is one of ours.
    #[must_use]
    pub fn owns(&self, token: u64) -> bool {
        (self.first..self.next).contains(&token)
    }

    /// Reads what connection `token` sent, and sends what waits for it.
    pub fn read(&mut self, poller: &Poller, token: u64) -> Vec<Asked> {
        let Some(connection) = self.connections.get_mut(&token) else { return Vec::new() };
        let open = connection.fill();
        let asked = connection.take_requests();
        if open {
            self.push(poller, token);
        } else {
            self.connections.remove(&token);
        }
        asked
    }

    /// Sends a response.
    pub fn respond(&mut self, poller: &Poller, token: u64, response: &Response) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.output.extend(response.to_line().into_bytes());
            self.push(poller, token);
        }
    }

    /// From now on connection `token` gets events.
    pub fn subscribe(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.wants_events = true;
        }
    }

    /// Sends an event to all who want them.
    pub fn broadcast(&mut self, poller: &Poller, event: &Event) {
        let line = event.to_line();
        let tokens: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.wants_events)
            .map(|(&token, _)| token)
            .collect();
        for token in tokens {
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.add_event(&line);
            }
            self.push(poller, token);
        }
    }

    fn push(&mut self, poller: &Poller, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let sent = connection.drain();
        let interest = if connection.output.is_empty() { Interest::Read } else { Interest::Both };
        let over = connection.output.len() > OUTPUT_MAX_BYTES;
        if over || sent.is_err() || poller.change(&connection.stream, token, interest).is_err() {
            self.connections.remove(&token);
        }
    }
}

impl Connection {
    /// Reads until nothing waits; false when the other side is gone.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 4096];
        while self.input.len() <= LINE_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes whole lines. One that is too long is refused, and what follows it read as a new line.
    fn take_requests(&mut self) -> Vec<Asked> {
        let mut asked = Vec::new();
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            asked.push(Request::parse(&String::from_utf8_lossy(&line)));
        }
        if self.input.len() > LINE_MAX {
            self.input.clear();
            asked.push(Request::parse("a line that is longer than allowed"));
        }
        asked
    }

    fn add_event(&mut self, line: &str) {
        if self.output.len() + line.len() > OUTPUT_MAX_BYTES / 2 {
            self.missed += 1;
            return;
        }
        let missed = std::mem::take(&mut self.missed);
        if missed > 0 {
            self.output.extend(Event::Missed { count: missed }.to_line().into_bytes());
        }
        self.output.extend_from_slice(line.as_bytes());
    }

    fn drain(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
