//! A terminal joined to a machine's console socket: bytes both ways, until Ctrl-], the end of input or the end of the machine.

use std::io::IsTerminal;
use std::path::Path;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::failure::Failure;

/// Ctrl-]: leaves the console, as telnet and virsh do.
const LEAVE: u8 = 0x1d;

/// The terminal in raw mode; as it was before once this is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let Some(before) = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten() else { return Self(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        Self(tcsetattr(&stdin, SetArg::TCSANOW, &raw).is_ok().then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            tcsetattr(std::io::stdin(), SetArg::TCSANOW, before).ok();
        }
    }
}

/// Joins standard input and output to the console at `socket`.
///
/// # Errors
/// [`Failure::Unreachable`] when it can not be connected to or breaks.
pub async fn attach(socket: &Path) -> Result<(), Failure> {
    let broken = |error: std::io::Error| Failure::Unreachable {
        peer: format!("the console at {}", socket.display()),
        reason: error.to_string(),
        remedy: "does the machine run on this host, and may you open its socket?".to_owned(),
    };
    let (mut from_machine, mut to_machine) = UnixStream::connect(socket).await.map_err(broken)?.into_split();
    let _raw = Raw::enter();
    let (mut input, mut output) = (tokio::io::stdin(), tokio::io::stdout());
    let (mut typed, mut said) = ([0; 1024], [0; 8192]);
    let mut listening = true;
    loop {
        tokio::select! {
            count = from_machine.read(&mut said) => {
                let count = count.map_err(broken)?;
                if count == 0 {
                    return Ok(());
                }
                output.write_all(&said[..count]).await.map_err(broken)?;
                output.flush().await.map_err(broken)?;
            }
            count = input.read(&mut typed), if listening => {
                let count = count.map_err(broken)?;
                let keys = &typed[..count];
                let leave = keys.iter().position(|key| *key == LEAVE);
                to_machine.write_all(&keys[..leave.unwrap_or(count)]).await.map_err(broken)?;
                if leave.is_some() {
                    return Ok(());
                }
                // The end of input from a pipe: what the machine still says is shown until it ends or we are ended.
                listening = count > 0;
            }
        }
    }
}
