//! One question to an Open vSwitch daemon over its control socket: what `ovs-appctl` does.
//!
//! JSON-RPC 1.0 over a unix stream (lib/unixctl.c, lib/jsonrpc.c): one request object, one answer object, no framing but JSON's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::driver::Failure;

/// The longest answer that is read, bytes.
const ANSWER_MAX: usize = 4 << 20;

/// The control socket of a daemon in its run directory: `<daemon>.<pid>.ctl`, or `<daemon>.ctl` where it was told so.
///
/// # Errors
/// [`Failure`] when there is none.
pub fn find(run_dir: &Path, daemon: &str) -> Result<PathBuf, Failure> {
    let pid = std::fs::read_to_string(run_dir.join(format!("{daemon}.pid"))).unwrap_or_default();
    let names = [format!("{daemon}.{}.ctl", pid.trim()), format!("{daemon}.ctl")];
    let found = names.iter().map(|name| run_dir.join(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        let what = format!("find the control socket of {daemon} in {}", run_dir.display());
        Failure::new(what, format!("is {daemon} running, and does the agent see its directory (switch.run_dir)?"))
    })
}

/// Calls `method`.
///
/// # Errors
/// [`Failure`] when the daemon does not answer in time or answers with an error.
pub async fn call(socket: &Path, method: &str, words: &[String], limit: Duration) -> Result<String, Failure> {
    let what = || format!("ask {} for {method}", socket.display());
    let answer = match tokio::time::timeout(limit, exchange(socket, method, words)).await {
        Ok(answer) => answer.map_err(|error| Failure::caused(what(), "is the daemon running?", error))?,
        Err(_) => return Err(Failure::new(format!("{}: no answer within {limit:?}", what()), "is the daemon stuck?")),
    };
    match (answer.get("result").and_then(Value::as_str), answer.get("error").and_then(Value::as_str)) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(error)) => Err(Failure::new(format!("{}: {}", what(), error.trim()), "")),
        (None, None) => Err(Failure::new(format!("{}: the answer has neither result nor error", what()), "")),
    }
}

async fn exchange(socket: &Path, method: &str, words: &[String]) -> std::io::Result<Value> {
    let mut stream = UnixStream::connect(socket).await?;
    let request = json!({ "id": 0, "method": method, "params": words });
    stream.write_all(request.to_string().as_bytes()).await?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut chunk).await?;
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        match serde_json::from_slice(&bytes) {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_eof() && count > 0 && bytes.len() < ANSWER_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
}
