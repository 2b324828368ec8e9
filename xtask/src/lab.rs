//! `cargo xtask lab`: the lab from the command line. The lab itself is `hw_tests::lab`.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;
use clap::Subcommand;
use hw_tests::cloud::program::cargo;
use hw_tests::lab::exec::Ending;
use hw_tests::lab::exec::frame::Frame;
use hw_tests::lab::progress::{Audience, Progress};
use hw_tests::lab::{Config, Lab, artifact, console};

use crate::packages;

/// Building the host's exec server from nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(600);
/// Exit code of `lab exec` when the command ran into its time limit, as timeout(1) says it.
const EXIT_TIMED_OUT: u8 = 124;
/// Exit code of `lab exec` when the command could not be started.
const EXIT_NOT_STARTED: u8 = 127;

/// Work with the lab.
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Bring up hosts and leave them running.
    Up {
        /// Number of hosts, 1 to 3.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=3))]
        hosts: u8,
        /// Memory of each host in MiB; taken as it is touched.
        #[arg(long, default_value_t = 3072, value_parser = clap::value_parser!(u32).range(512..=65536))]
        memory_mib: u32,
    },
    /// Run a command in a host. Exit code: the command's; 124 time limit; 127 not started; 128+N ended by signal N.
    Exec {
        /// host1 to host3, or the number.
        host: String,
        /// Kill the command after this many seconds.
        #[arg(long, default_value_t = 3600)]
        limit: u64,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Sit at a host's serial console; Ctrl-] ends it.
    Console {
        /// host1 to host3, or the number.
        host: String,
    },
    /// Show what is running.
    Status,
    /// Take everything away.
    Down,
}

/// The name of the lab that the command line works with; `cargo xtask up` uses the same.
pub(crate) const NAME: &str = "lab";

/// Runs one lab command.
///
/// # Errors
/// What the command ran into.
pub(crate) fn run(command: LabCommand) -> Result<ExitCode> {
    let progress = Progress::new("lab", Audience::Stderr);
    match command {
        LabCommand::Up { hosts, memory_mib } => up(hosts, memory_mib, &progress),
        LabCommand::Exec { host, limit, command } => exec(&host, Duration::from_secs(limit), command),
        LabCommand::Console { host } => {
            let lab = Lab::open(NAME)?;
            let host = lab.host(&host)?;
            progress.say(&format!("console of {}; Ctrl-] ends it", host.name()));
            console::attach(host.console()?)?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Status => status(),
        LabCommand::Down => {
            let step = progress.step("down");
            Lab::down(NAME)?;
            step.done("no process and no link is left");
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(hosts: u8, memory_mib: u32, progress: &Progress) -> Result<ExitCode> {
    packages::ensure(&["lab", "network"], progress)?;
    if let Ok(lab) = Lab::open(NAME) {
        let answering = lab.hosts().iter().filter(|host| host.command("true").ok().is_ok()).count();
        if answering == usize::from(hosts) && answering == lab.hosts().len() {
            progress.say(&format!("up already since {} s: {answering} hosts answer", lab.age().as_secs()));
            return Ok(ExitCode::SUCCESS);
        }
        progress.say(&format!("a lab of {} hosts is there, {answering} answer: making it new", lab.hosts().len()));
    }
    build(progress)?;
    let mut lab = Lab::up(&Config { hosts, memory_mib, name: NAME.to_owned() }, progress)?;
    lab.keep()?;
    progress.say("look around: cargo xtask lab exec host1 -- CMD, console host1, status; stop: cargo xtask lab down");
    Ok(ExitCode::SUCCESS)
}

/// Builds the program that runs inside hosts.
pub(crate) fn build(progress: &Progress) -> Result<()> {
    let step = progress.step("build");
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "hw-tests", "--bins"]).current_dir(artifact::workspace());
    process::run(&mut command, BUILD_LIMIT)?;
    step.done("lab-hand");
    Ok(())
}

fn exec(host: &str, limit: Duration, words: Vec<String>) -> Result<ExitCode> {
    let lab = Lab::open(NAME)?;
    let host = lab.host(host)?;
    let mut words = words.into_iter();
    let program = words.next().context("no program was named")?;
    let mut session = host.command(&program).args(words).limit(limit).start()?;
    let mut input = session.input()?;
    if std::io::stdin().is_terminal() {
        input.end()?;
    } else {
        // Ends with the process when the command does not read all of it.
        std::thread::spawn(move || -> Result<()> {
            let mut buffer = vec![0; 32 * 1024];
            while let count @ 1.. = std::io::stdin().lock().read(&mut buffer)? {
                input.write_all(&buffer[..count])?;
            }
            input.end()
        });
    }
    loop {
        match session.receive()? {
            Frame::Stdout(bytes) => std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush())?,
            Frame::Stderr(bytes) => std::io::stderr().write_all(&bytes)?,
            Frame::Exit(ending) => return Ok(ExitCode::from(exit_code(&ending))),
            other => anyhow::bail!("nonsense from the host: {other:?}"),
        }
    }
}

/// The exit code that says how a command in a host ended.
fn exit_code(ending: &Ending) -> u8 {
    match ending {
        Ending::Code(code) => u8::try_from(*code).unwrap_or(u8::MAX),
        Ending::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        Ending::TimedOut => EXIT_TIMED_OUT,
        Ending::NotStarted(reason) => {
            Progress::new("lab", Audience::Stderr).say(&format!("not started: {reason}"));
            EXIT_NOT_STARTED
        }
    }
}

fn status() -> Result<ExitCode> {
    let lab = match Lab::open(NAME) {
        Ok(lab) => lab,
        Err(error) => {
            writeln!(std::io::stdout(), "{error:#}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let (age, how) = (lab.age().as_secs(), lab.acceleration());
    writeln!(std::io::stdout(), "up since {age} s, {how:?}, namespace {}", lab.network().name())?;
    let mut code = ExitCode::SUCCESS;
    for host in lab.hosts() {
        let load = host.command("cat").arg("/proc/loadavg").limit(Duration::from_secs(5)).ok();
        let answer = load.map_or_else(|error| format!("does not answer: {error:#}"), |text| format!("load {text}"));
        if answer.starts_with("does not") {
            code = ExitCode::FAILURE;
        }
        let (name, management, underlay) = (host.name(), host.management(), host.underlay());
        writeln!(std::io::stdout(), "{name}  {management}  underlay {underlay}  {}", answer.trim_end())?;
    }
    Ok(code)
}
