//! TCP of tests: everything is waited for with a limit, so that a test that goes wrong ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Result;

use crate::netns::Namespace;
use crate::process::wait_for;

/// How long what should arrive may take, on a loaded machine and with a segment that has to be sent again.
pub const REACH: Duration = Duration::from_secs(12);

/// Takes a connection that its client believes to stand: its last word may still be on the way, or have to be said again.
///
/// # Errors
/// None comes within `limit`, or the listener fails.
pub fn accept(listener: &TcpListener, limit: Duration) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let server = wait_for("a connection at its server", limit, || match listener.accept() {
        Ok((server, _)) => Ok(Some(server)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    server.set_nonblocking(false)?;
    Ok(server)
}

/// Whether an octet arrives within a time.
///
/// # Errors
/// The connection fails.
pub fn arrives(stream: &mut TcpStream, octet: u8, within: Duration) -> Result<bool> {
    stream.set_read_timeout(Some(within))?;
    let mut read = [0];
    match stream.read(&mut read) {
        Ok(1) => Ok(read[0] == octet),
        Ok(_) => Ok(false),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Both ends of a connection.
#[derive(Debug)]
pub struct Pair {
    /// The end that began it.
    pub client: TcpStream,
    /// The other one.
    pub server: TcpStream,
}

impl Pair {
    /// Connects from a machine to a server that listens at an address of another one.
    ///
    /// # Errors
    /// No connection comes about within [`REACH`].
    pub fn connect(from: &Namespace, listener: &TcpListener, to: IpAddr) -> Result<Self> {
        let address = SocketAddr::from((to, listener.local_addr()?.port()));
        let client = from.enter(|| TcpStream::connect_timeout(&address, REACH))??;
        let server = accept(listener, REACH)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        Ok(Self { client, server })
    }

    /// Whether an octet gets there and another back.
    ///
    /// # Errors
    /// The connection fails.
    pub fn speaks(&mut self) -> Result<bool> {
        self.client.write_all(b"q")?;
        let there = arrives(&mut self.server, b'q', REACH)?;
        self.server.write_all(b"a")?;
        Ok(there && arrives(&mut self.client, b'a', REACH)?)
    }
}
