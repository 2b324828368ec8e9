//! A private systemd: the distribution's own `systemd` as PID 1 of namespaces and a root file system of its own.
//!
//! [`Systemd::boot`] gives a manager that runs the units it is handed and nothing else: units of the machine are hidden, because they would
//! set up what is there already (`systemd-tmpfiles` empties `/tmp`, `systemd-sysctl` turns kernel knobs that belong to everyone). It can write
//! to no file of the machine but those below `shared` and the device nodes named here: `/usr` is an overlay, all else is in memory. It ends with
//! the test process, and with it everything it started: the kernel ends a PID namespace with its PID 1 (pid_namespaces(7)).
//!
//! Sources: systemd(1), sd_booted(3), cgroup_namespaces(7), <https://systemd.io/CONTAINER_INTERFACE>.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::{self, COMMAND_TIMEOUT, Daemon, Output};

/// Where Debian's package has the program.
pub const PROGRAM: &str = "/usr/lib/systemd/systemd";
/// How long the manager may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one `systemctl` may take: a unit's own start limit is 90 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(100);
/// Where cgroup v2 may be: alone, or beside version 1.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// The first letters of every cgroup made here; the pid of the process that made it follows.
const GROUP_PREFIX: &str = "basalt-systemd-";

/// Units that others name and that have nothing to do here.
const IDLE_TARGETS: &[&str] = &[
    "basic.target",
    "multi-user.target",
    "network-online.target",
    "network.target",
    "shutdown.target",
    "sysinit.target",
    "time-sync.target",
    "umount.target",
];

/// Makes the root file system and becomes the manager. `$1` is an empty directory, `$2` holds units, the rest is shared.
const BOOT: &str = r#"
set -e
base=$1; units=$2; shift 2; root=$base/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 basalt-root "$base"
mkdir -p "$root" "$base/upper" "$base/work"
mount --bind "$root" "$root"; cd "$root"
mkdir -p usr etc/systemd/system dev/net dev/pts dev/shm proc sys run tmp root var/lib var/cache var/log old
mount -t overlay -o "lowerdir=/usr,upperdir=$base/upper,workdir=$base/work" basalt-usr usr
for link in bin sbin lib lib64; do ln -s "usr/$link" "$link"; done
rm -rf usr/lib/systemd/system usr/lib/systemd/system-generators usr/lib/systemd/system-preset
mkdir usr/lib/systemd/system
cp "$units"/* etc/systemd/system/
for file in passwd group nsswitch.conf ld.so.cache; do if [ -e "/etc/$file" ]; then cp "/etc/$file" etc/; fi; done
echo 0123456789abcdef0123456789abcdef > etc/machine-id
for node in null zero full random urandom tty kvm net/tun; do
    if [ -e "/dev/$node" ]; then : > "dev/$node"; mount --bind "/dev/$node" "dev/$node"; fi
done
for path; do mkdir -p ".$path"; mount --bind "$path" ".$path"; done
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
pivot_root . old
umount -l /old
exec env -i container=basalt-test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd --system --unit=multi-user.target \
    --log-target=null --show-status=no
"#;

/// Files of a unit directory: name and text.
pub type Units<'a> = &'a [(&'a str, String)];

/// A running manager.
#[derive(Debug)]
pub struct Systemd {
    // Declared in the order in which they have to go.
    daemon: Daemon,
    group: PathBuf,
    directory: TempDir,
}

/// The machine's cgroup v2 file system.
///
/// # Errors
/// When there is none.
pub fn cgroup_root() -> Result<&'static Path> {
    let found = CGROUP_ROOTS.into_iter().map(Path::new).find(|root| root.join("cgroup.procs").exists());
    found.with_context(|| format!("no cgroup v2 file system at {CGROUP_ROOTS:?}"))
}

impl Systemd {
    /// Boots a manager with these units, in the network of `namespace`, seeing the directories `shared` under their own names.
    ///
    /// # Errors
    /// When namespaces, mounts or the program fail; the log is in the message.
    pub fn boot(units: Units<'_>, namespace: Option<&Namespace>, shared: &[&Path]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = cgroup_root()?;
        remove_orphans(root);
        let directory = tempfile::Builder::new().prefix("bt-systemd-").tempdir().context("make a directory")?;
        let [base, unit_directory, log] = ["base", "units", "log"].map(|name| directory.path().join(name));
        fs::create_dir(&base).context("make the place of the root")?;
        fs::create_dir(&unit_directory).context("make a directory for units")?;
        let idle = IDLE_TARGETS.iter().map(|name| (*name, "[Unit]\nDefaultDependencies=no\n".to_owned()));
        for (name, text) in idle.chain(units.iter().cloned()) {
            fs::write(unit_directory.join(name), text).with_context(|| format!("write unit {name}"))?;
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = root.join(format!("{GROUP_PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&group).with_context(|| format!("make cgroup {}", group.display()))?;
        let mut command = Command::new("sh");
        // The cgroup is entered first: it becomes the root of the namespace.
        command.arg("-ec").arg("echo $$ > \"$0/cgroup.procs\"; exec \"$@\"").arg(&group);
        if let Some(namespace) = namespace {
            command.arg("nsenter").arg(format!("--net={}", namespace.path().display())).arg("--");
        }
        command.args([
            "unshare",
            "--fork",
            "--pid",
            "--mount",
            "--cgroup",
            "--uts",
            "--ipc",
            "--kill-child=KILL",
            "--",
        ]);
        command.args(["sh", "-c", BOOT, "boot"]).arg(&base).arg(&unit_directory).args(shared);
        let daemon = Daemon::start("systemd", &command, &log)?;
        let mut systemd = Self { daemon, group, directory };
        systemd.wait_up()?;
        Ok(systemd)
    }

    fn wait_up(&mut self) -> Result<()> {
        let pid = self.daemon.pid();
        self.daemon.wait_ready("systemd to answer", START_TIMEOUT, || {
            let Ok(first) = first_child(pid.as_raw()) else { return Ok(None) };
            let asked = inside(first, "systemctl").args(["is-active", "multi-user.target"]).output();
            Ok(asked.is_ok_and(|output| output.status.success()).then_some(()))
        })
    }

    /// The manager's process number on this machine.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<i32> {
        first_child(self.daemon.pid().as_raw())
    }

    /// What `path` inside is called outside.
    ///
    /// # Errors
    /// When the manager has ended.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.pid()?)))
    }

    /// Runs a program inside, whatever its status.
    ///
    /// # Errors
    /// As [`process::output`].
    pub fn run(&self, program: &str, words: &[&str]) -> Result<Output> {
        process::output(inside(self.pid()?, program).args(words), CALL_TIMEOUT)
    }

    /// Runs `systemctl` and returns what it printed.
    ///
    /// # Errors
    /// When it fails; its words are in the message.
    pub fn systemctl(&self, words: &[&str]) -> Result<String> {
        let output = self.run("systemctl", words)?;
        if !output.status.success() {
            bail!("systemctl {words:?}: {}: {}{}", output.status, output.stdout, output.stderr);
        }
        Ok(output.stdout)
    }

    /// One property of a unit.
    ///
    /// # Errors
    /// As [`Systemd::systemctl`].
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.systemctl(&["show", "--value", "--property", name, unit])?.trim().to_owned())
    }

    /// The processes in a unit's cgroup, by their numbers on this machine.
    ///
    /// # Errors
    /// When the unit has no cgroup.
    pub fn processes(&self, unit: &str) -> Result<Vec<i32>> {
        let group = self.property(unit, "ControlGroup")?;
        let path = self.group.join(group.trim_start_matches('/')).join("cgroup.procs");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // `unshare` dies and takes PID 1 with it, which takes everything else.
        let _ended = self.daemon.kill();
        let emptied = || Ok(remove_group(&self.group).is_ok().then_some(()));
        if let Err(error) = process::wait_for("the end of a private systemd", COMMAND_TIMEOUT, emptied) {
            // Another run takes it away.
            let _unheard = error;
        }
    }
}

/// A command in all namespaces of process `pid`.
fn inside(pid: i32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--all", "--target", &pid.to_string(), "--"]).arg(program).env("SYSTEMD_PAGER", "");
    command
}

fn first_child(pid: i32) -> Result<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let child = text.split_ascii_whitespace().next().with_context(|| format!("process {pid} has no child"))?;
    child.parse().with_context(|| format!("read {path}"))
}

/// Removes a cgroup and all below.
///
/// # Errors
/// While a process is in one.
pub fn remove_group(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Removes the cgroups of processes that are no more.
fn remove_orphans(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(GROUP_PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Where another run is faster, the work is done.
            let _gone = remove_group(&entry.path());
        }
    }
}
