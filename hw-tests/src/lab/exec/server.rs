//! The exec server, which runs in the lab host as root: one thread for each connection and each stream.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::frame::{Ending, Frame, Request};

/// After the command has ended, how long its last output may take while a background process holds the pipe open.
const DRAIN_LIMIT: Duration = Duration::from_millis(300);
const BUFFER_BYTES: usize = 64 * 1024;

/// Serves on `port` of every address for ever.
///
/// # Errors
/// The port is taken or accepting fails.
pub fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("listening on {port}"))?;
    serve_on(&listener)
}

/// Serves connections of `listener` for ever.
///
/// # Errors
/// Accepting fails.
pub fn serve_on(listener: &TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().context("accepting a connection")?;
        // A connection that fails concerns nobody but its client, who sees it close.
        thread::Builder::new().name("exec".to_owned()).spawn(move || handle(stream).ok())?;
    }
}

/// The running child's process group, emptied in the moment before it is reaped, so that no stranger is ever killed.
type Group = Arc<Mutex<Option<Pid>>>;
type Shared = Arc<Mutex<TcpStream>>;

fn handle(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let Some(Frame::Start(request)) = Frame::read(&mut stream)? else { anyhow::bail!("no request came first") };
    let output: Shared = Arc::new(Mutex::new(stream.try_clone()?));
    let ending = match start(&request) {
        Ok(child) => run(child, &request, stream.try_clone()?, &output)?,
        Err(error) => Ending::NotStarted(error.to_string()),
    };
    send(&output, &Frame::Exit(ending))?;
    stream.shutdown(Shutdown::Write).ok();
    Ok(())
}

fn start(request: &Request) -> io::Result<Child> {
    let Some((program, arguments)) = request.words.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program was named"));
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(request.environment.iter().map(|(key, value)| (key, value)));
    if let Some(directory) = &request.directory {
        command.current_dir(directory);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()
}

fn run(mut child: Child, request: &Request, input: TcpStream, output: &Shared) -> Result<Ending> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let group: Group = Arc::new(Mutex::new(Some(pid)));
    let (drained, streams) = mpsc::channel();
    pump(child.stdout.take(), Arc::clone(output), Frame::Stdout, drained.clone())?;
    pump(child.stderr.take(), Arc::clone(output), Frame::Stderr, drained)?;
    let stdin = child.stdin.take();
    let watched = Arc::clone(&group);
    thread::Builder::new().name("exec-stdin".to_owned()).spawn(move || feed(input, stdin, &watched))?;

    let (ended, end) = mpsc::channel();
    let waiter = thread::Builder::new().name("exec-wait".to_owned()).spawn({
        let group = Arc::clone(&group);
        move || -> io::Result<Ending> {
            // Seen but not reaped: the process id stays ours until the group is forgotten.
            waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
            lock(&group).take();
            let status = child.wait()?;
            ended.send(()).ok();
            let code = status.code().map(Ending::Code);
            Ok(code.unwrap_or_else(|| Ending::Signal(status.signal().unwrap_or_default())))
        }
    })?;
    let timed_out = end.recv_timeout(Duration::from_millis(request.timeout_ms)).is_err();
    if timed_out {
        kill(&group);
    }
    let ending = waiter.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))??;
    for _ in 0..2 {
        streams.recv_timeout(DRAIN_LIMIT).ok();
    }
    Ok(if timed_out { Ending::TimedOut } else { ending })
}

/// Carries one output stream of the command to the client.
fn pump(
    pipe: Option<impl Read + Send + 'static>,
    output: Shared,
    wrap: fn(Vec<u8>) -> Frame,
    drained: mpsc::Sender<()>,
) -> io::Result<()> {
    let copy = move || {
        let mut buffer = vec![0; BUFFER_BYTES];
        if let Some(mut pipe) = pipe {
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                if send(&output, &wrap(buffer[..count].to_vec())).is_err() {
                    break;
                }
            }
        }
        drained.send(()).ok();
    };
    thread::Builder::new().name("exec-output".to_owned()).spawn(copy).map(drop)
}

/// Carries the client's input to the command; kills the command when the client goes away before it ends.
fn feed(mut input: TcpStream, stdin: Option<impl Write>, group: &Group) {
    let mut stdin = stdin;
    loop {
        match Frame::read(&mut input) {
            // A command that does not read its input is no reason to kill it.
            Ok(Some(Frame::Stdin(bytes))) => {
                if stdin.as_mut().is_some_and(|pipe| pipe.write_all(&bytes).is_err()) {
                    stdin = None;
                }
            }
            Ok(Some(Frame::StdinEnd)) => stdin = None,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return kill(group),
        }
    }
}

fn kill(group: &Group) {
    if let Some(pid) = *lock(group) {
        // It may have ended in this moment, which is what we want.
        killpg(pid, Signal::SIGKILL).ok();
    }
}

fn send(output: &Shared, frame: &Frame) -> io::Result<()> {
    frame.write(&mut *lock(output))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
