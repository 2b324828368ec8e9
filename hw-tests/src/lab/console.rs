//! A person at a host's serial console: the terminal becomes raw, keys go in, bytes come out, Ctrl-] ends it.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::Result;
use nix::sys::termios::{self, SetArg, Termios};

/// The key that ends the session: Ctrl-].
pub const ESCAPE: u8 = 0x1d;

/// Gives the terminal back as it was.
#[derive(Debug)]
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone by now.
            termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, before).ok();
        }
    }
}

/// Joins standard input and output to the console until Ctrl-], the end of input, or the end of the host.
///
/// # Errors
/// The terminal or the connection fails.
pub fn attach(console: UnixStream) -> Result<()> {
    let _raw = RawTerminal::enter()?;
    let mut keys = console.try_clone()?;
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            let end = buffer[..count].iter().position(|byte| *byte == ESCAPE);
            if keys.write_all(&buffer[..end.unwrap_or(count)]).is_err() || end.is_some() {
                break;
            }
        }
        keys.shutdown(std::net::Shutdown::Both).ok();
    });
    let (mut screen, mut bytes) = (std::io::stdout().lock(), console);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = bytes.read(&mut buffer) {
        screen.write_all(&buffer[..count])?;
        screen.flush()?;
    }
    Ok(())
}
