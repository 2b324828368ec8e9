//! The real machines: VMM processes that outlive the agent, spoken to over their control sockets.
//!
//! A VMM is launched through [`crate::launcher`], in a systemd scope where systemd runs, else in a plain cgroup. A look asks the lock first and
//! the process second, so that a dead socket is never taken for a dead machine. Every call to a VMM is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::MachineId;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::Notify;
use vmm::client::{Client, ClientError};

use super::{Failure, MachineParts, Machines, blocking, chain, vm_config};
use crate::config::{Config, Systemd};
use crate::process::{EXIT_LOCKED, MachineDir, ProcessError};
use crate::record::MachineRecord;
use crate::seen::{Look, MachineSeen, Process};

/// How long a VMM may take to say how it is.
const STATE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a new VMM may take until it listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a VMM may take to end once told to quit.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a wait looks whether it is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The most of a launch log that an error quotes, bytes.
const QUOTE_MAX: usize = 600;

/// VMM processes on this host.
#[derive(Debug, Clone)]
pub struct VmmProcesses {
    config: Arc<Config>,
    program: PathBuf,
    systemd: bool,
    watched: Arc<Mutex<BTreeSet<MachineId>>>,
    changed: Arc<Notify>,
}

impl VmmProcesses {
    /// A driver; `changed` is notified when a machine changes its state by itself.
    ///
    /// # Errors
    /// [`Failure`] when this program's own path is unknown.
    pub fn new(config: Arc<Config>, changed: Arc<Notify>) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|source| Failure::caused("find this program's own file", "is /proc mounted?", source))?;
        let systemd = match config.machines.systemd {
            Systemd::Always => true,
            Systemd::Never => false,
            // sd_booted(3).
            Systemd::Auto => Path::new("/run/systemd/system").is_dir(),
        };
        Ok(Self { config, program, systemd, watched: Arc::default(), changed })
    }

    fn dir(&self, id: MachineId) -> MachineDir {
        MachineDir::new(&self.config.paths.run, id)
    }

    fn prepare(&self, record: &MachineRecord) -> Result<MachineDir, Failure> {
        let dir = self.dir(record.id);
        let failed = |verb: &str, source: std::io::Error| {
            Failure::caused(format!("{verb} {}", dir.path.display()), "look at the file system of paths.run", source)
        };
        // Others may pass through to what they own, and list nothing.
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir.path).map_err(|e| failed("make", e))?;
        std::os::unix::fs::chown(&dir.path, Some(record.uid), Some(record.uid)).map_err(|e| failed("hand over", e))?;
        Ok(dir)
    }

    fn launch_command(&self, id: MachineId, dir: &MachineDir) -> Command {
        let mut command = if self.systemd {
            let mut command = Command::new("systemd-run");
            command.args(["--scope", "--quiet", "--collect", "--slice=basalt.slice"]);
            command.arg(format!("--unit=basalt-vm-{id}")).arg("--").arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.arg("exec-vm").arg("--directory").arg(&dir.path);
        if let (false, Some(root)) = (self.systemd, self.cgroup_root()) {
            command.arg("--cgroup").arg(root.join(format!("vm-{id}")));
        }
        command.arg("--").arg(&self.config.machines.vmm).arg("run");
        command.arg("--control").arg(dir.control()).arg("--log").arg(dir.vmm_log());
        // What systemd told the agent is not meant for machines.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        command
    }

    /// The configured cgroup directory, when it is on a cgroup v2 file system.
    fn cgroup_root(&self) -> Option<&Path> {
        let root = self.config.machines.cgroup.as_deref()?;
        root.parent()?.join("cgroup.procs").exists().then_some(root)
    }

    async fn launched(&self, id: MachineId, dir: &MachineDir) -> Result<(), Failure> {
        let failed = |what: String, source: std::io::Error| {
            Failure::caused(what, "is the agent's own program still in its place?", source)
        };
        let log = dir.launch_log();
        let output = std::fs::File::create(&log).map_err(|e| failed(format!("make {}", log.display()), e))?;
        let errors = output.try_clone().map_err(|e| failed(format!("share {}", log.display()), e))?;
        let mut child = self
            .launch_command(id, dir)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|e| failed(format!("launch the VMM of vm {id}"), e))?;
        let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(launch_failure(id, &log, status, &self.config.machines.vmm));
            }
            if UnixStream::connect(dir.control()).await.is_ok() {
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                let what = format!("launch the VMM of vm {id}: it did not listen within {LISTEN_TIMEOUT:?}");
                return Err(Failure::new(what, format!("look into {} and {}", log.display(), dir.vmm_log().display())));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let changed = Arc::clone(&self.changed);
        tokio::spawn(async move {
            // Whatever it says, the lock tells; this wait takes the zombie away and has the loop look at once.
            let _ = child.wait().await;
            changed.notify_one();
        });
        Ok(())
    }

    /// Has the loop look when the machine says that something happened.
    fn watch(&self, id: MachineId) {
        if !self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return;
        }
        let (this, path) = (self.clone(), self.dir(id).control());
        tokio::spawn(async move {
            // A broken stream ends the watch; the next look begins another.
            let _ = this.follow(&path).await;
            this.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            this.changed.notify_one();
        });
    }

    async fn follow(&self, path: &Path) -> std::io::Result<()> {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(b"{\"id\":1,\"method\":\"events\"}\n").await?;
        let mut lines = BufReader::new(stream).lines();
        // The first line is the answer.
        lines.next_line().await?;
        while lines.next_line().await?.is_some() {
            self.changed.notify_one();
        }
        Ok(())
    }

    async fn look_at(&self, record: MachineRecord) -> Look<MachineSeen> {
        let dir = self.dir(record.id);
        let id = record.id;
        let process = match blocking(move || look_at(&dir)).await {
            Ok(process) => process,
            Err(failure) => return Look::Unknown(failure.problem()),
        };
        if matches!(process, Process::Alive { .. }) {
            self.watch(id);
        }
        Look::Known(MachineSeen { record, process })
    }

    async fn call<F>(&self, id: MachineId, verb: &'static str, call: F) -> Result<(), Failure>
    where
        F: FnOnce(&mut Client) -> Result<(), ClientError> + Send + 'static,
    {
        let dir = self.dir(id);
        blocking(move || {
            let mut client = Client::connect(&dir.control()).map_err(|error| call_failure(id, verb, &dir, error))?;
            call(&mut client).map_err(|error| call_failure(id, verb, &dir, error))
        })
        .await
    }

    async fn wait_gone(&self, id: MachineId) -> Result<bool, Failure> {
        let dir = self.dir(id);
        let deadline = tokio::time::Instant::now() + QUIT_TIMEOUT;
        while dir.is_locked().map_err(|error| unseen(&dir, error))? {
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(true)
    }

    fn kill(&self, id: MachineId) -> Result<(), Failure> {
        self.dir(id).kill().map_err(|error| {
            Failure::caused(format!("kill the VMM of vm {id}"), "does the agent have CAP_KILL?", error)
        })
    }
}

fn look_at(dir: &MachineDir) -> Result<Process, Failure> {
    if !dir.is_locked().map_err(|error| unseen(dir, error))? {
        return Ok(Process::Gone);
    }
    let asked = Client::connect(&dir.control()).and_then(|mut client| {
        client.set_call_timeout(STATE_TIMEOUT);
        client.state()
    });
    match asked {
        Ok(report) => Ok(Process::Alive { pid: report.pid, state: report.state, reason: report.reason }),
        // It may have ended between the two questions.
        Err(_) if !dir.is_locked().map_err(|error| unseen(dir, error))? => Ok(Process::Gone),
        Err(error) => Ok(Process::Silent { why: chain(&error) }),
    }
}

fn unseen(dir: &MachineDir, error: ProcessError) -> Failure {
    let what = format!("look for the process of {}", dir.path.display());
    Failure::caused(what, "look at the file system of paths.run", error)
}

fn call_failure(id: MachineId, verb: &str, dir: &MachineDir, error: ClientError) -> Failure {
    let remedy = match &error {
        ClientError::Refused { .. } => format!("the reason is the VMM's own; its log is {}", dir.vmm_log().display()),
        _ => format!("the VMM does not answer; its log is {}", dir.vmm_log().display()),
    };
    Failure::caused(format!("{verb} vm {id}"), remedy, error)
}

fn launch_failure(id: MachineId, log: &Path, status: std::process::ExitStatus, vmm: &Path) -> Failure {
    let text = std::fs::read(log).unwrap_or_default();
    let tail = text.get(text.len().saturating_sub(QUOTE_MAX)..).unwrap_or_default();
    let said = String::from_utf8_lossy(tail).trim().replace('\n', "; ");
    let what = format!("launch the VMM of vm {id}: it ended with {status}: {said}");
    let remedy = if status.code() == Some(i32::from(EXIT_LOCKED)) {
        "nothing to do: its process is there and will be seen at the next look".to_owned()
    } else {
        format!("check that machines.vmm = {} runs here", vmm.display())
    };
    Failure::new(what, remedy)
}

impl Machines for VmmProcesses {
    async fn look(&self, records: Vec<MachineRecord>) -> BTreeMap<MachineId, Look<MachineSeen>> {
        let looks = records.into_iter().map(|record| async move { (record.id, self.look_at(record).await) });
        futures_util::future::join_all(looks).await.into_iter().collect()
    }

    async fn launch(&self, record: &MachineRecord) -> Result<(), Failure> {
        let dir = self.prepare(record)?;
        self.launched(record.id, &dir).await
    }

    async fn configure(&self, parts: &MachineParts) -> Result<(), Failure> {
        let config = vm_config::vm_config(&self.config, parts)?;
        self.call(parts.machine.id, "configure", move |client| client.configure(&config)).await
    }

    async fn start(&self, id: MachineId) -> Result<(), Failure> {
        self.call(id, "start", Client::start).await
    }

    async fn press_power_button(&self, id: MachineId) -> Result<(), Failure> {
        self.call(id, "shut down", Client::shutdown).await
    }

    async fn force_stop(&self, id: MachineId) -> Result<(), Failure> {
        match self.call(id, "stop", Client::stop).await {
            Ok(()) => Ok(()),
            Err(_) => self.kill(id),
        }
    }

    async fn reap(&self, id: MachineId) -> Result<(), Failure> {
        // A VMM that does not quit when told is killed below.
        let dir = self.dir(id);
        let _ = blocking(move || {
            Client::connect(&dir.control())
                .and_then(Client::quit)
                .map_err(|error| call_failure(id, "end the VMM of", &dir, error))
        })
        .await;
        if self.wait_gone(id).await? {
            return Ok(());
        }
        self.kill(id)?;
        if self.wait_gone(id).await? {
            return Ok(());
        }
        let what = format!("end the VMM of vm {id}: it lives on after SIGKILL");
        Err(Failure::new(what, "look for a process in state D: a disk or a cluster does not answer"))
    }

    async fn forget(&self, id: MachineId) -> Result<(), Failure> {
        let dir = self.dir(id);
        if let Some(root) = self.cgroup_root() {
            // Absent where systemd keeps the groups; an empty group that stays is harmless.
            let _ = std::fs::remove_dir(root.join(format!("vm-{id}")));
        }
        match std::fs::remove_dir_all(&dir.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                let what = format!("remove {}", dir.path.display());
                Err(Failure::caused(what, "look at the file system of paths.run", source))
            }
            _ => Ok(()),
        }
    }
}
