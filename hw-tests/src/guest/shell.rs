//! Drives a guest's root shell over its console, which is nothing but a stream of bytes both ways.
//!
//! Works with any console that has an interactive busybox or Debian shell on a terminal. Commands are told from their
//! echo, from kernel messages and from each other by marks: a mark's first byte is written as an escape in what we type
//! and only the shell's `printf` makes it a byte, so an echo never looks like an answer.
//!
//! ```text
//!  waiting for a shell ──probe answered──> in the interactive shell
//!  interactive shell ──"stty -echo; sh /dev/tty; stty echo"──> a shell without line editing: commands and answers
//!  a command over its limit ──Ctrl-C──> interactive shell again (entered anew by the next command)
//!  leave, drop ──Ctrl-D──> interactive shell, echo on, as it was found
//! ```

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A terminal in line mode takes this many bytes at most, its end included.
const LINE_BYTES_MAX: usize = 4000;
/// How often a shell that does not answer yet is asked again.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How much of the console an error shows.
const TAIL_BYTES: usize = 2000;
const MARK_BEGIN: u8 = 1;
const MARK_END: u8 = 2;
const CONTROL_C: u8 = 3;
const CONTROL_D: u8 = 4;

/// What a command in the guest said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// What it wrote to the console, line ends as `\n`.
    pub output: String,
}

/// The way to a console's input, which can be hung up so that its reader ends as well.
pub trait Console: Write {
    /// Ends the connection in both directions.
    fn hang_up(&mut self);
}

impl Console for UnixStream {
    fn hang_up(&mut self) {
        // It may have ended already.
        self.shutdown(Shutdown::Both).ok();
    }
}

/// A guest's shell. Dropping it gives the interactive shell back and hangs up.
#[derive(Debug)]
pub struct Shell<W: Console> {
    writer: W,
    bytes: Receiver<io::Result<Vec<u8>>>,
    console: Vec<u8>,
    entered: bool,
    count: u32,
}

impl<W: Console> Shell<W> {
    /// Takes the console and waits until a shell answers on it.
    ///
    /// # Errors
    /// None did within `limit`, or the console ended; the message has the console's last lines.
    pub fn attach(reader: impl Read + Send + 'static, writer: W, limit: Duration) -> Result<Self> {
        let (sender, bytes) = channel();
        thread::Builder::new().name("guest-console".to_owned()).spawn(move || read_all(reader, &sender))?;
        let mut shell = Self { writer, bytes, console: Vec::new(), entered: false, count: 0 };
        shell.wait_for_shell(limit)?;
        Ok(shell)
    }

    /// Runs a shell command line and waits for its end.
    ///
    /// # Errors
    /// It took longer than `limit` (it is interrupted), the line is too long for a terminal, or the console ended.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Answer> {
        let end = Instant::now() + limit;
        self.enter(end)?;
        self.count += 1;
        let number = self.count;
        let line =
            format!("printf '\\001{number}:\\002'; ( {command}\n) </dev/null; printf '\\001{number}=%d\\002' $?\n");
        if line.lines().any(|line| line.len() > LINE_BYTES_MAX) {
            bail!("a command line of {} bytes is too long for a console: {command}", line.len());
        }
        let start = self.console.len();
        self.send(line.as_bytes())?;
        loop {
            if let Some(answer) = read_answer(&self.console[start..], number) {
                return Ok(answer);
            }
            if !self.receive(end).with_context(|| format!("in the guest: {command}\n{}", self.tail()))? {
                self.interrupt();
                bail!("in the guest: {command}: no answer within {} s\n{}", limit.as_secs(), self.tail());
            }
        }
    }

    /// Runs a command that must end with status 0 and returns its output.
    ///
    /// # Errors
    /// As [`Shell::run`], and another status.
    pub fn ok(&mut self, command: &str, limit: Duration) -> Result<String> {
        let answer = self.run(command, limit)?;
        if answer.status != 0 {
            bail!("in the guest: {command}: status {}: {}", answer.status, answer.output.trim_end());
        }
        Ok(answer.output)
    }

    /// Everything seen on the console so far.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.console).replace('\r', "")
    }

    fn wait_for_shell(&mut self, limit: Duration) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Unique, so that an answer in a console's replayed past is not taken for ours.
        let word = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let probe = format!("printf '\\001{word}\\002'\n");
        let answer = [&[MARK_BEGIN], word.as_bytes(), &[MARK_END]].concat();
        let end = Instant::now() + limit;
        while Instant::now() < end {
            self.send(probe.as_bytes())?;
            let next = (Instant::now() + PROBE_EVERY).min(end);
            while self.receive(next).with_context(|| self.tail())? {
                if find(&self.console, &answer).is_some() {
                    return Ok(());
                }
            }
        }
        bail!("no shell on the guest's console within {} s\n{}", limit.as_secs(), self.tail())
    }

    /// Goes back to the interactive shell, as a person expects it; the next command enters anew.
    ///
    /// # Errors
    /// The console ended.
    pub fn leave(&mut self) -> Result<()> {
        if std::mem::take(&mut self.entered) { self.send(&[CONTROL_D]) } else { Ok(()) }
    }

    /// Leaves line editing behind: it would answer every key with escape sequences, and reads ahead.
    fn enter(&mut self, end: Instant) -> Result<()> {
        if self.entered {
            return Ok(());
        }
        self.wait_for_shell(end.saturating_duration_since(Instant::now()))?;
        self.count += 1;
        let mark = [&[MARK_BEGIN], format!("{}>", self.count).as_bytes(), &[MARK_END]].concat();
        let start = self.console.len();
        self.send(format!("stty -echo; printf '\\001{}>\\002'; sh /dev/tty; stty echo\n", self.count).as_bytes())?;
        while find(&self.console[start..], &mark).is_none() {
            if !self.receive(end)? {
                bail!("the guest's shell does not go on\n{}", self.tail());
            }
        }
        self.entered = true;
        Ok(())
    }

    fn interrupt(&mut self) {
        // The console may be gone, which the next command will say.
        self.send(&[CONTROL_C]).ok();
        self.entered = false;
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).and_then(|()| self.writer.flush()).context("writing to the guest's console")
    }

    /// Takes what the console says next; `false` when it said nothing until `end`.
    fn receive(&mut self, end: Instant) -> Result<bool> {
        match self.bytes.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Ok(bytes)) => {
                self.console.extend(bytes);
                Ok(true)
            }
            Ok(Err(error)) => Err(error).context("the guest's console ended"),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest's console ended"),
        }
    }

    fn tail(&self) -> String {
        let start = self.console.len().saturating_sub(TAIL_BYTES);
        format!("console: {}", String::from_utf8_lossy(&self.console[start..]).replace('\r', ""))
    }
}

impl<W: Console> Drop for Shell<W> {
    fn drop(&mut self) {
        // The console may be gone.
        self.leave().ok();
        self.writer.hang_up();
    }
}

fn read_all(mut reader: impl Read, sender: &Sender<io::Result<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read,
        };
        let ended = read.is_err();
        if sender.send(read.map(|count| buffer[..count].to_vec())).is_err() || ended {
            return;
        }
    }
}

/// Finds the answer to command `number` between its two marks.
fn read_answer(console: &[u8], number: u32) -> Option<Answer> {
    let begin = [&[MARK_BEGIN], format!("{number}:").as_bytes(), &[MARK_END]].concat();
    let status = [&[MARK_BEGIN], format!("{number}=").as_bytes()].concat();
    let start = find(console, &begin)? + begin.len();
    let end = start + find(&console[start..], &status)?;
    let rest = &console[end + status.len()..];
    let digits = &rest[..find(rest, &[MARK_END])?];
    let status = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Answer { status, output: String::from_utf8_lossy(&console[start..end]).replace('\r', "") })
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    //! Shows that answers are found among echo and noise, and a real shell on a real terminal is driven.
    use super::*;
    use std::fs::File;
    use std::process::{Child, Command, Stdio};

    #[test]
    fn answers_are_found_among_noise() {
        let console = b"# printf '\\0011:\\002'\r\n\x011:\x02one\r\n[ 3.1] kernel says\r\ntwo\r\n\x011=3\x02# ";
        let answer = read_answer(console, 1).unwrap();
        assert_eq!(answer, Answer { status: 3, output: "one\n[ 3.1] kernel says\ntwo\n".into() });
        assert_eq!(read_answer(console, 2), None);
        assert_eq!(read_answer(&console[..console.len() - 4], 1), None);
    }

    /// An interactive shell on a pseudo terminal, as on a guest's console.
    fn shell_on_a_terminal(program: &str, arguments: &[&str]) -> (Child, File) {
        let pty = nix::pty::openpty(None, None).unwrap();
        let terminal = File::from(pty.slave);
        // Whoever runs the tests in the background may have SIGINT ignored, and a shell cannot undo what it inherits so (POSIX sh, trap).
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,QUIT", "setsid", "--ctty", program]).args(arguments).env("PS1", "# ");
        command.stdin(Stdio::from(terminal.try_clone().unwrap())).stdout(terminal.try_clone().unwrap());
        (command.stderr(terminal).spawn().unwrap(), File::from(pty.master))
    }

    impl Console for File {
        fn hang_up(&mut self) {}
    }

    impl Console for std::io::Sink {
        fn hang_up(&mut self) {}
    }

    fn drive(program: &str, arguments: &[&str]) {
        let second = Duration::from_secs(1);
        let (mut child, console) = shell_on_a_terminal(program, arguments);
        let mut shell = Shell::attach(console.try_clone().unwrap(), console, second * 10).unwrap();
        assert_eq!(shell.ok("echo one; echo two >&2", second * 10).unwrap(), "one\ntwo\n");
        assert_eq!(shell.run("exit 7", second * 10).unwrap(), Answer { status: 7, output: String::new() });
        assert_eq!(shell.ok("cat; seq 1 2000 | tail -n 1", second * 10).unwrap(), "2000\n");
        let error = shell.run("echo before; sleep 30", second).unwrap_err();
        assert!(format!("{error:#}").contains("before"), "{error:#}");
        assert_eq!(shell.ok("echo again", second * 10).unwrap(), "again\n");
        shell.leave().unwrap();
        assert_eq!(shell.ok("echo back", second * 10).unwrap(), "back\n");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_debian_shell_on_a_terminal_is_driven() {
        drive("sh", &[]);
    }

    #[test]
    fn a_busybox_shell_with_line_editing_is_driven() {
        drive("busybox", &["sh"]);
    }

    #[test]
    fn a_console_that_ends_is_said() {
        let error = Shell::attach(&b"panic: no init"[..], std::io::sink(), Duration::from_secs(5)).unwrap_err();
        assert!(format!("{error:#}").contains("panic: no init"), "{error:#}");
    }
}
