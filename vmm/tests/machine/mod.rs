//! The native guest in the program `vmm`: started, listened to until it says `done`, ended.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use basalt_tests::process::wait_for;
use vmm::client::Client;
use vmm::config::{BootConfig, BootProtocol, ConsoleConfig, VmConfig};
use vmm::control::Event;

/// The most that one step of the monitor may take.
const SOON: Duration = Duration::from_secs(10);
/// The most that the guest may take for all its words.
const GUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A running monitor with files of its own; ended when dropped.
struct Monitor {
    child: Child,
    control: PathBuf,
    console: PathBuf,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

impl Monitor {
    /// Starts `vmm` by `command`, which may put it into a namespace, and the guest of `config` in it.
    fn start(mut command: Command, mut config: VmConfig) -> (Self, Client) {
        let directory = tempfile::tempdir().unwrap();
        let [control, console, log] =
            ["control.sock", "console.sock", "vmm.log"].map(|name| directory.path().join(name));
        command.arg("run").arg("--log").arg(&log).arg("--control").arg(&control);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let monitor = Self { child, control, console, log, _directory: directory };
        let mut client = monitor.client();
        config.console.socket = Some(monitor.console.clone());
        client.configure(&config).unwrap_or_else(|error| panic!("{error}: {}", monitor.log()));
        if let Some(jail) = &config.jail {
            assert_jailed(monitor.child.id(), jail.uid);
        }
        (monitor, client)
    }

    fn client(&self) -> Client {
        wait_for("the control socket", SOON, || Ok(Client::connect(&self.control).ok()))
            .unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn ended(&mut self) {
        let status = wait_for("the end of the monitor", SOON, || Ok(self.child.try_wait()?)).unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Holds every thread of a process, its own and those of libraries, against what the jail promises; returns their names.
pub(crate) fn assert_jailed(pid: u32, uid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    let mut names = Vec::new();
    for status in threads {
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        let user = [uid; 4].map(|uid| uid.to_string()).join(" ");
        let wanted = [
            ("Uid:", user.as_str()),
            ("Gid:", user.as_str()),
            ("Groups:", ""),
            ("CapInh:", "0000000000000000"),
            ("CapPrm:", "0000000000000000"),
            ("CapEff:", "0000000000000000"),
            ("CapBnd:", "0000000000000000"),
            ("CapAmb:", "0000000000000000"),
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
        ];
        for (name, value) in wanted {
            assert_eq!(field(name), value, "{name} of thread {}", field("Name:"));
        }
        names.push(format!("{} ({} filters)", field("Name:"), field("Seccomp_filters:")));
    }
    assert!(!names.is_empty());
    names
}

/// What the guest says, line by line, until it has said `done`.
pub(crate) struct Lines {
    reader: BufReader<UnixStream>,
    end: Instant,
    said: Vec<String>,
    /// The monitor's process.
    pub(crate) pid: u32,
}

impl Lines {
    fn of(monitor: &Monitor) -> Self {
        let stream = UnixStream::connect(&monitor.console).unwrap();
        Self {
            reader: BufReader::new(stream),
            end: Instant::now() + GUEST_TIMEOUT,
            said: Vec::new(),
            pid: monitor.child.id(),
        }
    }

    fn next(&mut self) -> &str {
        let left = self.end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.reader.get_ref().set_read_timeout(Some(left)).unwrap();
        let mut line = String::new();
        let count = self.reader.read_line(&mut line);
        assert!(count.is_ok_and(|count| count > 0), "no further line after {:?} and {line:?}", self.said);
        self.said.push(line.trim_end().to_owned());
        self.said.last().unwrap()
    }

    pub(crate) fn until(&mut self, wanted: &str) {
        while self.next() != wanted {}
    }
}

/// A machine that runs these words and has no disk and no network.
pub(crate) fn config(words: &str) -> VmConfig {
    VmConfig {
        name: "guest".to_owned(),
        vcpus: 1,
        memory_mib: 64,
        boot: BootConfig {
            kernel: native_guest::elf().to_owned(),
            initrd: None,
            cmdline: words.to_owned(),
            protocol: BootProtocol::Native,
            cache: None,
        },
        disks: Vec::new(),
        nets: Vec::new(),
        console: ConsoleConfig::default(),
        rng: true,
        jail: None,
    }
}

/// Runs the guest by `command` until it is done and has asked for its reset; what it said, without the last line. `meanwhile` acts while it runs.
pub(crate) fn run_by(command: Command, config: VmConfig, meanwhile: impl FnOnce(&mut Lines)) -> Vec<String> {
    let jail = config.jail.clone();
    let (mut monitor, mut client) = Monitor::start(command, config);
    let (_, mut events) = monitor.client().events().unwrap();
    client.start().unwrap();
    let mut lines = Lines::of(&monitor);
    if let Some(jail) = jail {
        assert_jailed(lines.pid, jail.uid);
    }
    meanwhile(&mut lines);
    lines.until("done");
    assert_eq!(events.next(SOON).unwrap(), Event::Running);
    assert_eq!(events.next(SOON).unwrap(), Event::Reset);
    client.stop().unwrap();
    client.quit().unwrap();
    monitor.ended();
    lines.said.pop();
    lines.said
}
