//! Asks the scheduler, over HTTP/2 with the operator's certificate.
//!
//! Where it is and who we are is in `client.toml`, which `scheduler init` writes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, Method, RequestBuilder};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::failure::Failure;
use crate::output;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take; an upload has no such limit, its progress is shown.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a file is sent at a time.
const UPLOAD_CHUNK_BYTES: usize = 256 << 10;
/// How often an upload says how far it is.
const PROGRESS_BYTES: u64 = 64 << 20;

/// The contents of `client.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    /// Where the scheduler is.
    url: String,
    /// The CA certificate.
    ca: PathBuf,
    /// The operator's certificate.
    cert: PathBuf,
    /// The operator's key.
    key: PathBuf,
}

/// The way to the scheduler.
#[derive(Debug, Clone)]
pub struct Scheduler {
    url: String,
    client: Client,
}

impl Scheduler {
    /// Reads `file`, or the file at the place where one is looked for: `$XDG_CONFIG_HOME` or `~/.config`, then `/etc`.
    ///
    /// # Errors
    /// [`Failure`] when there is no such file, or it or a certificate in it can not be read.
    pub fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let file = file.map_or_else(find, |file| Ok(file.to_owned()))?;
        let text = read(&file)?;
        let parsed: ClientFile = toml::from_str(&String::from_utf8_lossy(&text))
            .map_err(|error| Failure::Other(format!("read {}: {error}", file.display())))?;
        // Relative paths are beside the file.
        let beside = |path: &Path| file.parent().unwrap_or(Path::new("/")).join(path);
        let wrong = |path: &Path, error: reqwest::Error| Failure::Other(format!("take {}: {error}", path.display()));
        let ca = Certificate::from_pem(&read(&beside(&parsed.ca))?).map_err(|error| wrong(&parsed.ca, error))?;
        let mut identity = read(&beside(&parsed.cert))?;
        identity.extend(read(&beside(&parsed.key))?);
        let identity = Identity::from_pem(&identity).map_err(|error| wrong(&parsed.cert, error))?;
        let client = Client::builder()
            .tls_certs_only([ca])
            .identity(identity)
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build()
            .map_err(|error| Failure::Other(format!("make a TLS client: {error}")))?;
        Ok(Self { url: parsed.url.trim_end_matches('/').to_owned(), client })
    }

    /// Asks for what is at `path`.
    ///
    /// # Errors
    /// [`Failure`] when the scheduler can not be reached or refuses.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Makes something at `path`.
    ///
    /// # Errors
    /// As [`Scheduler::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Changes what is at `path`.
    ///
    /// # Errors
    /// As [`Scheduler::get`].
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    /// Puts something at `path`, in the place of any that there is.
    ///
    /// # Errors
    /// As [`Scheduler::get`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    /// Deletes what is at `path`.
    ///
    /// # Errors
    /// As [`Scheduler::get`].
    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Uploads a file to `path`, saying how far it is.
    ///
    /// # Errors
    /// [`Failure`] when the file can not be read, or as [`Scheduler::get`].
    pub async fn upload(&self, path: &str, file: &Path) -> Result<Value, Failure> {
        let unread = |error: std::io::Error| Failure::Other(format!("read {}: {error}", file.display()));
        let source = tokio::fs::File::open(file).await.map_err(unread)?;
        let length = source.metadata().await.map_err(unread)?.len();
        let body = reqwest::Body::wrap_stream(chunks(source, length));
        let request = self.client.put(format!("{}{path}", self.url)).header("content-length", length).body(body);
        self.send(request).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).timeout(ANSWER_TIMEOUT)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let message = value.pointer("/error/message").and_then(Value::as_str);
        let message = message.map_or_else(|| format!("the scheduler answered with status {status}"), str::to_owned);
        Err(Failure::of_status(status, message))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        let remedy = "is it running (systemctl status basalt-scheduler), and is url in client.toml right?".to_owned();
        Failure::Unreachable { peer: format!("the scheduler at {}", self.url), reason, remedy }
    }
}

/// The places where `client.toml` is looked for.
fn find() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let places: Vec<PathBuf> =
        home.into_iter().chain([PathBuf::from("/etc")]).map(|place| place.join("basalt/client.toml")).collect();
    places.iter().find(|place| place.exists()).cloned().ok_or_else(|| {
        let looked = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" and ");
        let way_out = "name it with --client or BASALT_CLIENT; `scheduler init` writes it";
        Failure::Other(format!("find client.toml: there is none at {looked}; {way_out}"))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::Other(format!("read {}: {error}", path.display())))
}

/// The bytes of a file as a stream, with a line on standard error now and then.
fn chunks(
    file: tokio::fs::File,
    length: u64,
) -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static {
    futures_util::stream::try_unfold((file, 0u64), move |(mut file, sent)| async move {
        let mut chunk = vec![0; UPLOAD_CHUNK_BYTES];
        let count = file.read(&mut chunk).await?;
        chunk.truncate(count);
        let now = sent + count as u64;
        if now / PROGRESS_BYTES > sent / PROGRESS_BYTES {
            output::note(&format!("uploaded {} of {} MiB", now >> 20, length >> 20));
        }
        Ok((count > 0).then_some((chunk, (file, now))))
    })
}
