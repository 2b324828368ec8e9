//! The scheduler of the cloud, run on the outer machine in the lab's network, and its REST API as an operator uses it.
//!
//! Requests go through curl(1) with the operator's certificate: the API is exercised as it is documented, over TLS, by a
//! client that knows nothing of our code.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use basalt_tests::process;
use serde_json::Value;

use super::program::Programs;
use crate::lab::network::{Network, OUTER};

/// The scheduler's port.
const PORT: u16 = 7443;
const START_LIMIT: Duration = Duration::from_secs(30);
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
const TOKEN_LIMIT: Duration = Duration::from_secs(10);

/// The scheduler and the way to it.
#[derive(Debug)]
pub struct Centre {
    directory: PathBuf,
    network: Network,
    program: String,
    process: Option<Child>,
}

impl Centre {
    /// Makes a new scheduler in `directory` and starts it.
    ///
    /// # Errors
    /// It cannot be made, or does not answer in time; the message has the end of its log.
    pub fn start(directory: &Path, network: &Network, programs: &Programs) -> Result<Self> {
        let mut centre = Self::at(directory, network, programs);
        // What a cloud left that was cut off in the middle; it runs no more, or the lab would not have come up.
        if directory.exists() {
            std::fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
        let address = OUTER.to_string();
        centre.run(&["init", "--dir", &centre.directory_text(), "--name", &address, "--listen", &centre.address()])?;
        let log = File::create(directory.with_extension("log"))?;
        let mut command = network.command("setsid");
        command.args([&centre.program, "serve", "--config"]).arg(directory.join("scheduler.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        centre.process = Some(command.spawn().context("starting the scheduler")?);
        let outcome = process::wait_for("the scheduler's answer", START_LIMIT, || {
            if let Some(status) = centre.process.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("the scheduler ended: {status}");
            }
            Ok(centre.get("/v1/hosts").ok())
        });
        outcome.with_context(|| centre.log_tail())?;
        Ok(centre)
    }

    /// The scheduler that was started in `directory` before.
    #[must_use]
    pub fn at(directory: &Path, network: &Network, programs: &Programs) -> Self {
        let program = programs.path("scheduler");
        Self { directory: directory.to_owned(), network: network.clone(), program, process: None }
    }

    /// Its address, `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{OUTER}:{PORT}")
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// The directory with its state and the operator's certificate.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A token with which the host called `name` can join once.
    ///
    /// # Errors
    /// The scheduler's program fails.
    pub fn token(&self, name: &str) -> Result<String> {
        let text = self.run(&["token", "--dir", &self.directory_text(), "--host", name])?;
        Ok(text.trim().to_owned())
    }

    /// GET.
    ///
    /// # Errors
    /// The request fails or is refused; the message has the scheduler's words.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None)
    }

    /// POST of a JSON body.
    ///
    /// # Errors
    /// As [`Centre::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.request("POST", path, Some(body))
    }

    /// PUT of a JSON body.
    ///
    /// # Errors
    /// As [`Centre::get`].
    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.request("PUT", path, Some(body))
    }

    /// PATCH of a JSON body.
    ///
    /// # Errors
    /// As [`Centre::get`].
    pub fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        self.request("PATCH", path, Some(body))
    }

    /// DELETE.
    ///
    /// # Errors
    /// As [`Centre::get`].
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.request("DELETE", path, None)
    }

    /// PUT of a file's bytes.
    ///
    /// # Errors
    /// As [`Centre::get`].
    pub fn upload(&self, path: &str, file: &Path) -> Result<Value> {
        let mut command = self.curl("PUT", path);
        command.args(["--header", "content-type: application/octet-stream", "--upload-file"]).arg(file);
        answer(&mut command).with_context(|| format!("PUT {path}"))
    }

    /// The end of its log, for errors.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.directory.with_extension("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("the scheduler's log:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut command = self.curl(method, path);
        if let Some(body) = body {
            command.args(["--header", "content-type: application/json", "--data-binary", &body.to_string()]);
        }
        answer(&mut command).with_context(|| format!("{method} {path}"))
    }

    fn curl(&self, method: &str, path: &str) -> Command {
        let mut command = self.network.command("curl");
        command.args(["--silent", "--show-error", "--request", method, "--write-out", "\n%{http_code}"]);
        for (option, file) in [("--cacert", "ca.crt"), ("--cert", "operator.crt"), ("--key", "operator.key")] {
            command.arg(option).arg(self.directory.join(file));
        }
        command.arg(format!("{}{path}", self.url()));
        command
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        process::run(Command::new(&self.program).args(words), TOKEN_LIMIT)
    }

    fn directory_text(&self) -> String {
        self.directory.display().to_string()
    }
}

/// Runs curl and reads the body and, on the last line, the status.
fn answer(command: &mut Command) -> Result<Value> {
    let text = process::run(command, REQUEST_LIMIT)?;
    let (body, status) = text.rsplit_once('\n').ok_or_else(|| anyhow!("curl printed no status: {text}"))?;
    if !status.starts_with('2') {
        bail!("refused with {status}: {}", body.trim());
    }
    if body.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(body).with_context(|| format!("an answer that is no JSON: {body}"))
}
