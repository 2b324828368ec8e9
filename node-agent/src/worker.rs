//! `node-agent volume-worker`: one task on volumes in a process of its own, told on standard input, answered on standard output.
//!
//! librados brings threads, tens of MiB and, when a cluster is gone, calls that never return. A process for each batch keeps all of that out of the
//! agent: it is killed at its time limit and leaves nothing behind. It links nothing by itself: librbd is loaded when a task needs it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::config::Ceph;
use crate::driver::{Failure, chain};
use crate::record::Holder;

pub(crate) mod rbd;

/// The longest task or answer, bytes.
const MESSAGE_MAX: u64 = 16 << 20;

/// A task on one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The cluster.
    pub ceph: Ceph,
    /// What to do.
    pub work: Work,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Find out sizes: of images, or of snapshots `base` of images, each in a pool.
    Look {
        /// RBD images, as (pool, name).
        images: Vec<(String, String)>,
        /// RBD images that should have a protected snapshot `base`.
        bases: Vec<(String, String)>,
    },
    /// Make an image of zeros.
    Create {
        /// The pool.
        pool: String,
        /// Its name.
        image: String,
        /// Its size.
        size_bytes: u64,
    },
    /// Make an image from a base.
    Clone {
        /// The pool of both.
        pool: String,
        /// The base.
        base: String,
        /// The new image.
        image: String,
        /// Its size.
        size_bytes: u64,
    },
    /// Make an image larger.
    Grow {
        /// The pool.
        pool: String,
        /// Its name.
        image: String,
        /// Its size.
        size_bytes: u64,
    },
    /// Delete an image.
    Delete {
        /// The pool.
        pool: String,
        /// Its name.
        image: String,
    },
    /// Find out who has the exclusive locks of images.
    Holders {
        /// RBD images, as (pool, name).
        images: Vec<(String, String)>,
    },
    /// Fence clients that are dead, where they have the locks still.
    Release {
        /// Which lock of which client.
        holders: Vec<Holder>,
    },
    /// Make a base of a file; it is named by the file's digest.
    Import {
        /// The file.
        path: PathBuf,
        /// Whether it is qcow2; raw otherwise.
        qcow2: bool,
        /// The pool.
        pool: String,
    },
}

/// What came of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Sizes in bytes of images that exist, by `pool/name`; an error in words where that could not be found out.
    pub sizes: BTreeMap<String, Result<Option<u64>, Trouble>>,
    /// Which bases are there, by `pool/name`.
    pub bases: BTreeMap<String, Result<bool, Trouble>>,
    /// Who has the locks that were asked for; an image that nobody has is not named.
    pub holders: Vec<Holder>,
}

/// What went wrong, in words, with the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The whole chain of causes.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::new(trouble.message, trouble.remedy)
    }
}

impl Trouble {
    pub(crate) fn of(error: &dyn std::error::Error, remedy: impl Into<String>) -> Self {
        Self { message: chain(error), remedy: remedy.into() }
    }
}

/// The program: one task in, one answer out.
///
/// # Errors
/// What broke between the two ends; what broke in the task is in the answer.
pub fn run(input: impl Read, mut output: impl Write) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    input.take(MESSAGE_MAX).read_to_end(&mut bytes)?;
    let task: Task = serde_json::from_slice(&bytes)?;
    let answer: Result<Answer, Trouble> = rbd::perform(&task);
    output.write_all(&serde_json::to_vec(&answer)?)
}

/// Has a worker do a task.
///
/// # Errors
/// [`Failure`] when the worker breaks, takes longer than `limit`, or says that the task failed.
pub async fn ask(program: &Path, task: &Task, limit: Duration) -> Result<Answer, Failure> {
    let broken = |what: &str, source: std::io::Error| {
        Failure::caused(format!("{what} the volume worker"), "is the agent's own program still in its place?", source)
    };
    let bytes = serde_json::to_vec(task)
        .map_err(|error| Failure::caused("write a task for the volume worker", "report this: it is a bug", error))?;
    let mut child = Command::new(program)
        .arg("volume-worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| broken("start", error))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&bytes).await.map_err(|error| broken("speak to", error))?;
    }
    let output = match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(output) => output.map_err(|error| broken("wait for", error))?,
        Err(_) => {
            let what = format!("work on volumes in Ceph ({}): no answer within {limit:?}", task.ceph.conf.display());
            return Err(Failure::new(
                what,
                "look at the cluster: `ceph -s`; are its monitors reachable from this host?",
            ));
        }
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(400).collect::<String>();
        let what = format!("work on volumes in Ceph: the worker ended with {}: {said}", output.status);
        return Err(Failure::new(what, "report this: the worker should answer, not end"));
    }
    let answer: Result<Answer, Trouble> = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::caused("read the volume worker's answer", "report this: it is a bug", error))?;
    answer.map_err(Failure::from)
}
