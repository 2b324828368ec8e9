//! The command line of the scheduler.
//!
//! Results go to standard output, the log and errors to standard error. Exit codes: 0 done, 1 it failed, 2 the command line is wrong.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use jiff::SignedDuration;

use crate::authority::{Authority, files, write};
use crate::config::{Config, LogFormat};
use crate::{intent, server, token};

/// The centre of a Basalt cloud: intent, placement, and one specification per host.
///
/// Exit codes: 0 done, 1 it failed, 2 the command line is wrong.
#[derive(Debug, Parser)]
#[command(name = "scheduler", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cloud: its certificate authority, the server's and the first operator's certificates, and a configuration.
    Init {
        /// Where to keep everything; made when it is missing.
        #[arg(long)]
        dir: PathBuf,
        /// A name or address under which agents and operators reach the server; the first goes into client.toml.
        #[arg(long = "name", value_name = "HOSTNAME_OR_IP")]
        names: Vec<String>,
        /// The address to listen on.
        #[arg(long, default_value = "[::]:7443")]
        listen: SocketAddr,
    },
    /// Run the scheduler.
    Serve {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Print a token with which one host can join once.
    Token {
        /// The directory of the scheduler.
        #[arg(long)]
        dir: PathBuf,
        /// The name of the host that is to join.
        #[arg(long)]
        host: String,
        /// How long the token is good: 90s, 30m, 12h or 7d.
        #[arg(long, default_value = "1h", value_parser = parse_ttl)]
        ttl: SignedDuration,
    },
    /// Make an operator's certificate and key, or make them anew. The first operator is called operator.
    Operator {
        /// The directory of the scheduler.
        #[arg(long)]
        dir: PathBuf,
        /// The operator: the certificate and the key are called NAME.crt and NAME.key, in that directory.
        #[arg(long, default_value = "operator")]
        name: String,
    },
    /// Make the server's certificate anew, for the names that it has. A running scheduler takes it at its next start.
    RenewServer {
        /// The directory of the scheduler.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print the configuration as it is taken, defaults filled in.
    Config {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
}

fn parse_ttl(text: &str) -> Result<SignedDuration, String> {
    let refuse = || format!("{text:?} is no time: want a number and s, m, h or d");
    let unit = text.chars().last().ok_or_else(refuse)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(refuse()),
    };
    let number: i64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(refuse)?;
    number.checked_mul(seconds).map(SignedDuration::from_secs).ok_or_else(refuse)
}

/// Carries a command out.
///
/// # Errors
/// What failed, with its causes.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Init { dir, names, listen } => init(&dir, names, listen),
        Command::Serve { config } => serve(&config),
        Command::Token { dir, host, ttl } => {
            if intent::check_label(&host).is_err() {
                anyhow::bail!("{host:?} can not be a host's name: want a DNS label, as host1");
            }
            let token = token::mint(&dir, &host, ttl, jiff::Timestamp::now())?;
            print(&token.reveal());
            Ok(())
        }
        Command::Operator { dir, name } => {
            let taken = [files::CA, files::SERVER].iter().any(|file| file.trim_end_matches(".crt") == name);
            if taken || intent::check_label(&name).is_err() {
                anyhow::bail!(
                    "{name:?} can not be an operator's name: want a DNS label, not that of another certificate"
                );
            }
            let [certificate, key] = Authority::load(&dir)?.sign_operator(&dir, &name)?;
            print(&format!("made {} and {}", certificate.display(), key.display()));
            Ok(())
        }
        Command::RenewServer { dir } => {
            let path = Authority::load(&dir)?.renew_server(&dir)?;
            print(&format!("made {} anew: restart the scheduler", path.display()));
            Ok(())
        }
        Command::Config { config } => {
            let text = toml::to_string(&Config::read(&config)?).context("print the configuration")?;
            print(text.trim_end());
            Ok(())
        }
    }
}

#[expect(clippy::print_stdout, reason = "the one place where results are printed")]
fn print(text: &str) {
    println!("{text}");
}

fn init(dir: &Path, mut names: Vec<String>, listen: SocketAddr) -> anyhow::Result<()> {
    let dir = std::path::absolute(dir).with_context(|| format!("find the directory {dir:?}"))?;
    for local in ["localhost", "127.0.0.1", "::1"] {
        if !names.iter().any(|name| name == local) {
            names.push(local.to_owned());
        }
    }
    Authority::found(&dir, &names)?;
    let first = names.first().map_or("localhost", String::as_str);
    let host = if first.contains(':') { format!("[{first}]") } else { first.to_owned() };
    let url = format!("https://{host}:{}", listen.port());
    let path = |name: &str| dir.join(name).display().to_string();
    let client = toml::Table::from_iter([
        ("url".to_owned(), toml::Value::String(url.clone())),
        ("ca".to_owned(), toml::Value::String(path(files::CA))),
        ("cert".to_owned(), toml::Value::String(path(files::OPERATOR))),
        ("key".to_owned(), toml::Value::String(path(files::OPERATOR_KEY))),
    ]);
    write(&dir, files::CLIENT, &client.to_string(), 0o600)?;
    let config = toml::Table::from_iter([
        ("dir".to_owned(), toml::Value::String(dir.display().to_string())),
        ("listen".to_owned(), toml::Value::String(listen.to_string())),
    ]);
    write(&dir, files::CONFIG, &config.to_string(), 0o644)?;
    print(&format!(
        "made a cloud in {}\n  run it:           scheduler serve --config {}\n  let a host join:  scheduler token --dir {} --host NAME\n  \
         operate it:       export BASALT_CLIENT={}   (url {url})",
        dir.display(),
        path(files::CONFIG),
        dir.display(),
        path(files::CLIENT)
    ));
    Ok(())
}

fn serve(path: &Path) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.filter)
        .with_context(|| format!("take log.filter = {:?} from the configuration", config.log.filter))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(server::serve(config))?;
    // Threads that still wait for the disk are given up: what they would have answered has no reader any more.
    runtime.shutdown_background();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(parse_ttl("90s"), Ok(SignedDuration::from_secs(90)));
        assert_eq!(parse_ttl("7d"), Ok(SignedDuration::from_hours(7 * 24)));
        for text in ["", "h", "5", "1w", "9223372036854775807d", "1ä"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }
}
