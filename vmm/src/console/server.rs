//! The console's shell on the control thread: clients of the unix socket, and the log.
//!
//! A new client gets the output that is kept, then all that follows; what it sends goes to the guest. Nothing here waits.

use crate::console::Hub;
use crate::console::log::Log;
use crate::poll::{Interest, Poller};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

/// The most clients at once; more are turned away.
pub const CLIENTS_MAX: usize = 8;

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    position: u64,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    /// What it is watched for. Told anew only when it changes: one that has hung up while its input waits for room would wake us for ever.
    interest: Interest,
}

/// Clients and log of one console.
#[derive(Debug)]
pub struct Server {
    hub: Arc<Hub>,
    listener: Option<UnixListener>,
    log: Option<Log>,
    logged: u64,
    clients: BTreeMap<u64, Client>,
    next: u64,
}

/// Where the tokens of one server lie: `base` for output, `base + 1` for the listener, the rest for clients.
const OUTPUT: u64 = 0;
const LISTENER: u64 = 1;
const FIRST_CLIENT: u64 = 2;

impl Server {
    /// A server over what was opened.
    #[must_use]
    pub const fn new(hub: Arc<Hub>, listener: Option<UnixListener>, log: Option<Log>) -> Self {
        Self { hub, listener, log, logged: 0, clients: BTreeMap::new(), next: FIRST_CLIENT }
    }

    /// Starts watching; tokens count from `base`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn watch(&self, poller: &Poller, base: u64) -> io::Result<()> {
        poller.add(self.hub.output_event(), base + OUTPUT, Interest::Read)?;
        if let Some(listener) = &self.listener {
            listener.set_nonblocking(true)?;
            poller.add(listener, base + LISTENER, Interest::Read)?;
        }
        Ok(())
    }

    /// Serves an event of token `base + which`.
    pub fn serve(&mut self, poller: &Poller, base: u64, which: u64) {
        match which {
            OUTPUT => {
                self.hub.served();
                self.flush(poller, base);
            }
            LISTENER => self.accept(poller, base),
            client => {
                self.read(client);
                self.push(poller, base, client);
            }
        }
    }

    /// Moves output to the log and to every client.
    pub fn flush(&mut self, poller: &Poller, base: u64) {
        let (end, bytes) = self.hub.scrollback(self.logged);
        self.logged = end;
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(&bytes)
        {
            tracing::warn!(%error, "the console log is given up");
            self.log = None;
        }
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        clients.into_iter().for_each(|client| self.push(poller, base, client));
    }

    fn accept(&mut self, poller: &Poller, base: u64) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if self.clients.len() >= CLIENTS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let token = self.next;
            self.next += 1;
            if let Err(error) = poller.add(&stream, base + token, Interest::Read) {
                tracing::warn!(%error, "a console client could not be watched");
                continue;
            }
            self.clients.insert(token, Client { stream, position: 0, unsent: Vec::new(), interest: Interest::Read });
            self.push(poller, base, token);
        }
    }

    /// Reads as much input as the guest has room for.
    fn read(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let mut bytes = [0; 1024];
        let room = self.hub.input_room().min(bytes.len());
        if room == 0 {
            return;
        }
        match client.stream.read(&mut bytes[..room]) {
            Ok(count) if count > 0 => {
                self.hub.input(&bytes[..count]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::info!(%error, "a console client is gone");
                self.clients.remove(&token);
            }
            Ok(_) => {
                self.clients.remove(&token);
            }
        }
    }

    /// Sends what the client has not had, and says what to wait for.
    fn push(&mut self, poller: &Poller, base: u64, token: u64) {
        let room = self.hub.input_room() > 0;
        let Some(client) = self.clients.get_mut(&token) else { return };
        let sent = loop {
            if client.unsent.is_empty() {
                (client.position, client.unsent) = self.hub.scrollback(client.position);
            }
            if client.unsent.is_empty() {
                break Ok(());
            }
            match client.stream.write(&client.unsent) {
                Ok(count) => drop(client.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let interest = match (room, client.unsent.is_empty()) {
            (true, true) => Interest::Read,
            (true, false) => Interest::Both,
            (false, false) => Interest::Write,
            (false, true) => Interest::HangUp,
        };
        if sent.is_err() {
            // It does not listen any more, but may have said something before it left.
            self.read(token);
            self.clients.remove(&token);
            return;
        }
        if std::mem::replace(&mut client.interest, interest) == interest {
            return;
        }
        if let Err(error) = poller.change(&client.stream, base + token, interest) {
            tracing::warn!(%error, "a console client is given up: it cannot be watched");
            self.clients.remove(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::INPUT_MAX_BYTES;

    /// Serves what is ready; returns whether anything was.
    fn serve_ready(server: &mut Server, poller: &Poller) -> bool {
        let ready = poller.wait(0).unwrap();
        ready.iter().for_each(|token| server.serve(poller, 0, *token));
        !ready.is_empty()
    }

    /// A client that says more than the guest takes and leaves wakes nobody until the guest goes on, and all it said arrives.
    #[test]
    fn a_client_that_left_with_input_waiting_costs_nothing_and_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.sock");
        let hub = Arc::new(Hub::new().unwrap());
        let mut server = Server::new(Arc::clone(&hub), Some(UnixListener::bind(&path).unwrap()), None);
        let poller = Poller::new().unwrap();
        server.watch(&poller, 0).unwrap();

        let said: Vec<u8> = (0..INPUT_MAX_BYTES + 1000).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(&said).unwrap();
        drop(client);
        let rounds = (0..100).take_while(|_| serve_ready(&mut server, &poller)).count();
        assert!(rounds < 100, "the server is woken for ever");
        assert!(!serve_ready(&mut server, &poller));

        let mut heard = hub.take_input(INPUT_MAX_BYTES);
        while serve_ready(&mut server, &poller) {
            heard.extend(hub.take_input(INPUT_MAX_BYTES));
        }
        assert_eq!(heard, said);
        assert!(server.clients.is_empty(), "the client is not given up");
    }
}
