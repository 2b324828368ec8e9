//! Asks the agent of this host, over HTTP on its unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::failure::Failure;

/// Where an agent listens by default.
pub const SOCKET: &str = "/run/basalt/agent.sock";
/// How long an answer may take: a trace asks Open vSwitch, a check of a host asks Ceph.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer that is read: all flows of a large host.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The agent of this host.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// The agent that listens on `socket`.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for what is at `path`.
    ///
    /// # Errors
    /// [`Failure`] when the agent can not be reached, refuses, or answers with something else than JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, None).await
    }

    /// Sends a question to `path`.
    ///
    /// # Errors
    /// As [`Agent::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(method, path, body)).await;
        let (status, bytes) = answer
            .unwrap_or_else(|_| Err(self.unreachable(&format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))))?;
        let value: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .map_err(|error| Failure::Other(format!("read the agent's answer to {path}: {error}")))?
        };
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let message = value.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason given");
        Err(Failure::of_status(status, format!("{message} (status {status} for {path})")))
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Bytes), Failure> {
        let broken = |error: hyper::Error| self.unreachable(&error.to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "agent")
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .map_err(|error| Failure::Other(format!("ask for {path}: {error}")))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.unreachable(&error.to_string()))?;
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, reason: &str) -> Failure {
        Failure::Unreachable {
            peer: format!("the agent at {}", self.socket.display()),
            reason: reason.to_owned(),
            remedy: "is it running (systemctl status basalt-node-agent), and may you open its socket?".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named_with_the_way_out() {
        let failure = Agent::at(Path::new("/nonexistent/agent.sock")).get("/v1/status").await.unwrap_err();
        assert_eq!(failure.code(), 3);
        let text = failure.to_string();
        assert!(text.contains("/nonexistent/agent.sock") && text.contains("systemctl status"), "{text}");
    }
}
