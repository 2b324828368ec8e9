//! Servers of tests: connections are waited for with a limit, so that a test that goes wrong ends.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Result;

use crate::process::wait_for;

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
