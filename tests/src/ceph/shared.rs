//! One private cluster for all tests of a checkout: started by the first that wants it, gone soon after the last.
//!
//! Tests run in many processes, in any order, and may be killed. So nobody counts: each test holds locks while it uses
//! the cluster (the kernel drops them with the process), and a keeper, a small process of its own, stops the daemons
//! when no test has held a lock for [`IDLE_SECONDS`]. Locks are files beside the cluster's directory:
//!
//! | file | shared | exclusive |
//! |---|---|---|
//! | `.users` | each test | the keeper, while it stops the daemons |
//! | `.gate` | each test that only uses the cluster | a test that kills daemons |
//! | `.keeper` | | the one keeper |

use std::fs::File;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cluster, DIRECTORY_LENGTH_MAX, Settings, Store};
use crate::process;

/// How long the cluster stays up with no test on it.
pub const IDLE_SECONDS: u32 = 20;

/// How long a test waits for tests that need the cluster for themselves, and the reverse.
const TURN_TIMEOUT: Duration = Duration::from_secs(600);

/// Who else may use the cluster at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Other tests: this one touches its own images only.
    Together,
    /// Nobody: this one stops or kills daemons.
    Alone,
}

/// The right to use the shared cluster, for as long as this lives.
#[derive(Debug)]
pub struct Lease {
    cluster: Cluster,
    _gate: File,
    _users: File,
}

impl Deref for Lease {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// Waits for a turn on the shared cluster, and brings it up where it is not.
///
/// # Errors
/// When the cluster does not come up, or another test keeps it too long.
pub fn lease(how: Use) -> Result<Lease> {
    let directory = directory();
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let users = open(&directory, "users")?;
    wait_turn(&users, Use::Together)?;
    start_keeper(&directory)?;
    let gate = open(&directory, "gate")?;
    wait_turn(&gate, how)?;
    // Nothing needs to survive the last test, and memory is faster than a busy disk, but a killed OSD must come back
    // with its data, as it does in tests that kill one.
    let settings = Settings { store: Store::Bluestore, ..Settings::default() };
    let cluster = Cluster::up(&directory, &settings, &|_| ())?;
    if how == Use::Alone {
        cluster.soil()?;
    }
    Ok(Lease { cluster, _gate: gate, _users: users })
}

/// Where the shared cluster lives: in the checkout's `target`, or in the directory for temporary files where that path
/// is too long for a unix socket.
#[must_use]
pub fn directory() -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    let usual = checkout.join("target/test-ceph");
    if usual.as_os_str().len() <= DIRECTORY_LENGTH_MAX {
        return usual;
    }
    let mark = checkout.as_os_str().as_encoded_bytes().iter().fold(0_u64, |mark, byte| {
        // FNV-1a: the same directory gets the same name in every process.
        (mark ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    std::env::temp_dir().join(format!("basalt-test-ceph-{mark:016x}"))
}

fn open(directory: &Path, kind: &str) -> Result<File> {
    let path = directory.with_extension(kind);
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

fn wait_turn(file: &File, how: Use) -> Result<()> {
    process::wait_for("a turn on the shared Ceph cluster", TURN_TIMEOUT, || {
        let taken = match how {
            Use::Together => file.try_lock_shared(),
            Use::Alone => file.try_lock(),
        };
        Ok(taken.is_ok().then_some(()))
    })
}

/// The keeper: waits until no test has held `$1.users` for `$2` seconds, then stops the daemons of `$1`, while it keeps
/// new tests waiting. It gives its own lock back before theirs, so that the next test can start the next keeper.
const KEEPER: &str = r#"
exec 9>"$1.keeper" && flock -n 9 || exit 0
while :; do
    exec 8<"$1.users" && flock -x 8 && exec 8<&-
    sleep "$2"
    exec 8<"$1.users" && flock -n -x 8 && break
    exec 8<&-
done
rm -f "$1/run/clean"
for name in osd.0 mgr.x mon.a; do
    pid=$(cat "$1/run/$name.pid" 2>/dev/null) || continue
    ours() { tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF "$1/ceph.conf"; }
    ours "$1" && kill -TERM "$pid"
    tries=0
    while ours "$1" && [ "$tries" -lt 100 ]; do sleep 0.2; tries=$((tries + 1)); done
    if ours "$1"; then kill -KILL "$pid"; fi
done
exec 9>&-
exec 8<&-
"#;

/// Starts a keeper; it ends at once where there is one.
fn start_keeper(directory: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", KEEPER, "basalt-ceph-keeper"]).arg(directory).arg(IDLE_SECONDS.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
    let mut keeper = command.spawn().context("start the keeper of the shared Ceph cluster")?;
    // It outlives this process; while this process lives, somebody should take its status.
    std::thread::spawn(move || keeper.wait());
    Ok(())
}
