//! The program: reads the command line, starts logging, and hands over to the supervisor.

use clap::{Args, Parser, Subcommand};
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;
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
    let Command::Run(run) = Cli::parse().command;
    match serve(&run) {
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
