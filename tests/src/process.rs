//! Runs other programs with a time limit, and keeps daemons that die with the test process.
//!
//! [`run`] is for programs that end; [`Daemon`] for those that stay. A daemon runs in the foreground as our direct
//! child, so its pid is exact and it leaves no zombie; the kernel kills it when our process goes (`PR_SET_PDEATHSIG`,
//! prctl(2), set by `setpriv`). That signal follows the *thread* that forked, so one keeper thread, which lives as long
//! as the process, forks all daemons: a test thread that ends does not take another's daemon with it.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// The time limit of a command for which the caller names none.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a bounded wait looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long a daemon may take to end by itself before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes of a daemon's log go into an error.
const LOG_TAIL_BYTES_MAX: usize = 4096;

/// What a program that ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// All of its standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started, exceeds `timeout` (it is killed with its process group) or ends with another status than
/// 0; the message has the command line and what it wrote to standard error.
pub fn run(command: &mut Command, timeout: Duration) -> Result<String> {
    let output = output(command, timeout)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    bail!("{}: {}: {}{}", line(command), output.status, output.stderr.trim_end(), tail_of(&output.stdout))
}

/// Runs `command` to its end, whatever its status.
///
/// # Errors
/// When it cannot be started or exceeds `timeout`, in which case it is killed with its process group.
pub fn output(command: &mut Command, timeout: Duration) -> Result<Output> {
    let text = line(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().with_context(|| format!("start {text}"))?;
    let pid = pid_of(&child)?;
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name(format!("wait-{pid}"))
        .spawn(move || sender.send(child.wait_with_output()))
        .context("start the thread that waits for a command")?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(output)) => Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Ok(Err(error)) => Err(error).with_context(|| format!("wait for {text}")),
        Err(_) => {
            // An error here means that it ended in the same moment, which is as good.
            let _ended = killpg(pid, Signal::SIGKILL);
            let left = receiver.recv_timeout(STOP_TIMEOUT).ok().and_then(Result::ok);
            let stderr = left.map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).unwrap_or_default();
            bail!("{text}: still running after {timeout:?}, killed: {}", stderr.trim_end())
        }
    }
}

/// Looks again and again until `look` gives a value.
///
/// # Errors
/// When `timeout` has passed without one, or `look` fails; the message names `what` was waited for.
pub fn wait_for<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look().with_context(|| format!("wait for {what}"))? {
            return Ok(value);
        }
        if start.elapsed() >= timeout {
            bail!("{what}: not seen in {timeout:?}");
        }
        pause(POLL_INTERVAL);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "other programs give no event for what tests wait for; the wait is bounded"
)]
fn pause(interval: Duration) {
    thread::sleep(interval);
}

/// The command line as an operator would type it.
#[must_use]
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn tail_of(stdout: &str) -> String {
    let stdout = stdout.trim_end();
    if stdout.is_empty() { String::new() } else { format!("\nstandard output: {stdout}") }
}

fn pid_of(child: &Child) -> Result<Pid> {
    let raw = i32::try_from(child.id()).with_context(|| format!("pid {} of a child", child.id()))?;
    Ok(Pid::from_raw(raw))
}

/// A program that stays, in the foreground, with its output in a log file.
///
/// Dropping it ends it: SIGTERM, then SIGKILL when it does not go in time.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with standard output and error appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not started.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open the log {} of {name}", log.display()))?;
        let errors = file.try_clone().with_context(|| format!("clone the log {} of {name}", log.display()))?;
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => bound.env(key, value),
                None => bound.env_remove(key),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            bound.current_dir(directory);
        }
        bound.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
        let child = fork_in_keeper(bound).with_context(|| format!("start {name}: {}", line(command)))?;
        let pid = pid_of(&child)?;
        Ok(Self { name: name.to_owned(), child, pid, log: log.to_owned() })
    }

    /// The process id, which is also its process group.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look whether {} (pid {}) runs", self.name, self.pid))
    }

    /// Waits until `ready` gives a value, and fails early, with the end of the log, when the program ends before.
    ///
    /// # Errors
    /// When the program ends, `ready` fails or `timeout` passes.
    pub fn wait_ready<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let outcome = wait_for(what, timeout, || {
            if let Some(status) = self.ended()? {
                bail!("{} ended: {status}", self.name);
            }
            ready()
        });
        outcome.with_context(|| format!("{} log {}:\n{}", self.name, self.log.display(), self.log_tail()))
    }

    /// Asks it to end (SIGTERM) and waits; kills it when it does not go in time.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match wait_for("its end", STOP_TIMEOUT, || self.ended()) {
            Ok(status) => Ok(status),
            Err(_) => self.kill(),
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        wait_for(&format!("the end of {} (pid {}) after SIGKILL", self.name, self.pid), STOP_TIMEOUT, || self.ended())
    }

    /// Sends a signal; does nothing when the program has ended already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        kill(self.pid, signal).with_context(|| format!("send {signal} to {} (pid {})", self.name, self.pid))
    }

    /// The last lines of the log, for errors.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let start = text.len().saturating_sub(LOG_TAIL_BYTES_MAX);
        String::from_utf8_lossy(&text[start..]).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure; the kernel kills the child with us in any case.
        let _status = self.stop();
    }
}

/// Whether `status` says that signal `signal` ended the program.
#[must_use]
pub fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal as i32)
}

type ForkRequest = (Command, mpsc::Sender<std::io::Result<Child>>);

fn fork_in_keeper(command: Command) -> Result<Child> {
    static KEEPER: OnceLock<mpsc::Sender<ForkRequest>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<ForkRequest>();
        let keep = move || {
            for (mut command, answer) in receiver {
                // A caller that no longer listens drops the child, which then ends with us.
                let _unheard = answer.send(command.spawn());
            }
        };
        // Without the thread every request finds the channel closed and reports that.
        let _thread = thread::Builder::new().name("daemon-keeper".to_owned()).spawn(keep);
        sender
    });
    let (sender, receiver) = mpsc::channel();
    keeper.send((command, sender)).map_err(|_| anyhow!("the thread that forks daemons is gone"))?;
    let forked = receiver.recv_timeout(COMMAND_TIMEOUT).context("wait for the thread that forks daemons")?;
    forked.context("fork and exec")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_carries_status_and_stderr() {
        assert_eq!(run(&mut shell("echo out"), COMMAND_TIMEOUT).unwrap(), "out\n");
        let error = run(&mut shell("echo broken >&2; exit 3"), COMMAND_TIMEOUT).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        let error = run(&mut shell("sleep 60 & sleep 60"), Duration::from_millis(200)).unwrap_err().to_string();
        assert!(error.contains("still running after 200ms"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_daemon_outlives_the_thread_that_asked_for_it_and_dies_on_drop() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let path = log.path().to_owned();
        let mut daemon =
            thread::spawn(move || Daemon::start("sleeper", &shell("echo here; exec sleep 60"), &path).unwrap())
                .join()
                .unwrap();
        daemon
            .wait_ready("its first word", COMMAND_TIMEOUT, || {
                Ok(std::fs::read_to_string(log.path())?.contains("here").then_some(()))
            })
            .unwrap();
        assert_eq!(daemon.ended().unwrap(), None);
        let pid = daemon.pid();
        drop(daemon);
        assert!(kill(pid, None).is_err(), "pid {pid} is still there");
    }

    #[test]
    fn a_daemon_that_ends_early_shows_its_log() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut daemon = Daemon::start("quitter", &shell("echo no config; exit 7"), log.path()).unwrap();
        let error = daemon.wait_ready("readiness", COMMAND_TIMEOUT, || Ok(None::<()>)).unwrap_err();
        assert!(format!("{error:#}").contains("no config"), "{error:#}");
    }
}
