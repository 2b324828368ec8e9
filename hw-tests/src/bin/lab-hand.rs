//! The lab's hand inside a host: the exec server, and small tools for tests that need no further package there.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail};
use hw_tests::lab::exec::server;

const USAGE: &str = "usage: lab-hand serve PORT | relay UNIX-SOCKET | kvm";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last word before the end: there is nowhere else to say it.
            writeln!(std::io::stderr(), "lab-hand: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["serve", port] => server::serve(port.parse().context("the port")?),
        ["relay", path] => relay(path),
        ["kvm"] => kvm(),
        _ => bail!(USAGE),
    }
}

/// Makes a virtual machine with one processor, which is what a working KVM can do.
fn kvm() -> Result<()> {
    let machine = kvm_ioctls::Kvm::new().context("opening /dev/kvm")?.create_vm().context("making a machine")?;
    machine.create_vcpu(0).context("making a processor")?;
    writeln!(std::io::stdout(), "a virtual machine with one processor was made")?;
    Ok(())
}

/// Joins standard input and output to a unix socket, such as a guest's console, until either side ends.
fn relay(path: &str) -> Result<()> {
    let mut from = UnixStream::connect(path).with_context(|| format!("connecting to {path}"))?;
    let mut to = from.try_clone()?;
    thread::spawn(move || {
        copy(&mut std::io::stdin().lock(), &mut to).ok();
        to.shutdown(std::net::Shutdown::Write).ok();
    });
    copy(&mut from, &mut std::io::stdout().lock())
}

/// Copies without holding bytes back.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}
