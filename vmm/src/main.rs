//! The program: reads the command line, starts logging, and hands over to the supervisor.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;
use vmm::client::Client;
use vmm::config::VmConfig;
use vmm::control::Call;
use vmm::log::{Bounded, LOG_MAX_BYTES};
use vmm::state::State;
use vmm::supervisor::Supervisor;

/// Exit code when the machine crashed.
const EXIT_CRASHED: u8 = 3;

/// A virtual machine monitor on KVM: one process, one machine.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ended in order, 1 could not start, 2 wrong usage, 3 the machine crashed."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves one machine, told by its control socket what to do.
    Run(Run),
    /// Asks a running monitor and prints its answer, JSON.
    Ask(Ask),
}

#[derive(Debug, Args)]
struct Ask {
    /// The monitor's control socket.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// What to ask.
    what: Question,
}

/// Questions and orders that take no parameters.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Question {
    /// The machine's state.
    State,
    /// Counters of vCPUs and devices, and the monitor's own memory (`overhead_kib`).
    Metrics,
    /// Stop vCPUs and devices where they are.
    Pause,
    /// Let vCPUs and devices go on.
    Resume,
    /// Press the power button.
    Shutdown,
    /// Start the machine again from its kernel.
    Reset,
    /// End the machine without asking the guest.
    Stop,
}

#[derive(Debug, Args)]
struct Run {
    /// The control socket to make.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// A configuration to load at once, JSON.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start the machine at once, and end the process when it ends.
    #[arg(long, requires = "config")]
    start: bool,
    /// Write the log there instead of to the standard error output.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => serve(&run),
        Command::Ask(question) => ask(&question).map(|()| State::Created),
    };
    match done {
        Ok(State::Crashed) => ExitCode::from(EXIT_CRASHED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn serve(run: &Run) -> Result<State, Box<dyn std::error::Error>> {
    start_log(run.log.as_deref())?;
    let mut supervisor = Supervisor::new(&run.control)?;
    if let Some(path) = &run.config {
        let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let config = VmConfig::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        supervisor.ask(Call::Configure(Box::new(config.into_inner())))?;
    }
    if run.start {
        supervisor.ask(Call::Start)?;
    }
    Ok(supervisor.run(run.start)?)
}

#[expect(clippy::print_stdout, reason = "the answer is what the command is for")]
fn ask(ask: &Ask) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::connect(&ask.control)?;
    let answer = match ask.what {
        Question::State => serde_json::to_string(&client.state()?)?,
        Question::Metrics => serde_json::to_string(&client.metrics()?)?,
        Question::Pause => client.pause().map(|()| String::new())?,
        Question::Resume => client.resume().map(|()| String::new())?,
        Question::Shutdown => client.shutdown().map(|()| String::new())?,
        Question::Reset => client.reset().map(|()| String::new())?,
        Question::Stop => client.stop().map(|()| String::new())?,
    };
    if !answer.is_empty() {
        println!("{answer}");
    }
    Ok(())
}

fn start_log(path: Option<&Path>) -> Result<(), Box<dyn std::error::Error>> {
    let filter = EnvFilter::builder().with_env_var("VMM_LOG").with_default_directive(tracing::Level::INFO.into());
    let log = tracing_subscriber::fmt().with_env_filter(filter.from_env_lossy()).with_target(false);
    match path {
        None => log.with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init(),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|error| format!("open the log {}: {error}", path.display()))?;
            log.with_ansi(false).with_writer(Mutex::new(Bounded::new(file, LOG_MAX_BYTES))).init();
        }
    }
    Ok(())
}

/// Prints an error with its chain of causes.
#[expect(clippy::print_stderr, reason = "the program's one message to the terminal")]
fn complain(error: &dyn std::error::Error) {
    eprint!("vmm: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
}
