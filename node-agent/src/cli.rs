//! The command line: `run`, `join`, `status`, `config`, and two words that the agent says to itself.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use model::agent::JoinToken;

use crate::config::{Config, DEFAULT_PATH};
use crate::launcher::LauncherArgs;
use crate::{daemon, identity, join, launcher, worker};

/// Exit code of a command that failed.
const EXIT_FAILURE: u8 = 1;

/// Runs virtual machines, volumes and networks on this host as a specification says.
#[derive(Debug, Parser)]
#[command(
    name = "node-agent",
    version,
    after_help = "Exit codes: 0 done; 1 failed, the reason is on standard error; 2 the command line is wrong."
)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, env = "BASALT_AGENT_CONFIG", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run until SIGTERM or SIGINT; machines and flows go on after that.
    Run,
    /// Make this host part of a cloud: get an identity from its scheduler.
    Join {
        /// Where the scheduler answers: https://name:port.
        #[arg(long)]
        scheduler: String,
        /// The token that the scheduler made for this host.
        #[arg(long, env = "BASALT_JOIN_TOKEN", hide_env_values = true, required_unless_present = "token_file")]
        token: Option<JoinToken>,
        /// A file that has the token, or /dev/stdin: a token on a command line is there for all to see.
        #[arg(long, value_name = "FILE", conflicts_with = "token")]
        token_file: Option<PathBuf>,
        /// The host's name; its own host name by default.
        #[arg(long)]
        name: Option<String>,
        /// The tunnel endpoint; underlay.ip of the configuration by default.
        #[arg(long)]
        tunnel: Option<Ipv4Addr>,
    },
    /// Print how the running agent is, as JSON.
    Status,
    /// Print the configuration in full, with every default.
    Config,
    /// Print the OpenAPI document of the local API.
    Openapi,
    #[command(hide = true)]
    ExecVm(LauncherArgs),
    #[command(hide = true)]
    VolumeWorker,
}

/// Runs a command line and gives the exit code.
#[must_use]
pub fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if let Verb::ExecVm(args) = &cli.command {
        let Err(error) = launcher::run(args);
        complain(&anyhow::Error::new(error));
        return launcher_exit(args).into();
    }
    match dispatch(cli) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            EXIT_FAILURE.into()
        }
    }
}

/// Which exit code tells the agent why the launcher returned.
fn launcher_exit(args: &LauncherArgs) -> u8 {
    let dir = crate::process::MachineDir { path: args.directory.clone() };
    // The launcher itself no longer holds the lock here: locked means that another process does.
    if dir.is_locked().unwrap_or(false) { crate::process::EXIT_LOCKED } else { crate::process::EXIT_NOT_FOUND }
}

fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        Verb::Run => daemon::run(Config::read(&cli.config)?),
        Verb::Join { scheduler, token, token_file, name, tunnel } => {
            let token = match (token, token_file) {
                (Some(token), _) => token,
                (None, Some(path)) => read_token(&path)?,
                (None, None) => bail!("give --token or --token-file"),
            };
            let config = Config::read(&cli.config)?;
            let tunnel =
                tunnel.or(config.underlay.ip).context("name this host's tunnel endpoint: --tunnel or underlay.ip")?;
            let name = match name {
                Some(name) => name,
                None => own_name()?,
            };
            join_cloud(&config, &join::Join { scheduler, token, name, tunnel })
        }
        Verb::Status => print_status(&Config::read(&cli.config)?),
        Verb::Config => {
            print(&Config::read(&cli.config)?.to_toml()?);
            Ok(())
        }
        Verb::Openapi => {
            print(&crate::api::document().to_pretty_json()?);
            Ok(())
        }
        Verb::VolumeWorker => Ok(worker::run(std::io::stdin(), std::io::stdout())?),
        Verb::ExecVm(_) => bail!("exec-vm is taken care of before"),
    }
}

fn read_token(path: &Path) -> Result<JoinToken> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the token from {}", path.display()))?;
    text.parse().with_context(|| format!("read the token from {}", path.display()))
}

fn own_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read this host's name")?;
    Ok(name.trim().split('.').next().unwrap_or_default().to_lowercase())
}

fn join_cloud(config: &Config, join: &join::Join) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (identity, credentials) = runtime.block_on(join::join(join))?;
    identity::keep(&config.paths.state, &identity, &credentials)?;
    print(&format!("joined {} as {}, host {}", identity.scheduler, identity.name, identity.host));
    Ok(())
}

fn print_status(config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(daemon::ask(Arc::new(config.clone()), "/v1/status"))?;
    print(&serde_json::to_string_pretty(&status)?);
    Ok(())
}

/// What a person who asked wants to read.
#[expect(clippy::print_stdout, reason = "the one place where this program speaks to standard output")]
fn print(text: &str) {
    println!("{}", text.trim_end());
}

/// Why it did not work.
#[expect(clippy::print_stderr, reason = "the one place where this program speaks to standard error")]
fn complain(error: &anyhow::Error) {
    eprintln!("node-agent: {}", crate::driver::chain(error.as_ref()));
}

/// The default place of the configuration, for those who print it.
#[must_use]
pub fn default_config() -> &'static Path {
    Path::new(DEFAULT_PATH)
}
