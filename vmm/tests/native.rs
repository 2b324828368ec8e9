//! Runs the program `vmm` with a guest of a few dozen instructions at user privilege, so that the whole way from the control socket to guest code and
//! back is shown on any KVM, also one that emulates guest kernels: states and events, the console both ways, pause, reset, power-off, a crash, refusals.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use basalt_tests::ceph::shared::{Use, lease};
use basalt_tests::ceph::{POOL, USER};
use basalt_tests::require;
use basalt_tests::skip::Need;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm::client::{Client, ClientError};
use vmm::config::{BootConfig, BootProtocol, ConsoleConfig, ConsoleDevice, JailConfig, VmConfig};
use vmm::control::{ErrorCode, Event};
use vmm::layout;
use vmm::state::State;
use vmm::triple_fault::RESETS_MAX;

const SOON: Duration = Duration::from_secs(30);
/// Where the guest is loaded and entered.
const START: u64 = 0x20_0000;
/// The host bridge's vendor and device, as the guest must read them.
const BRIDGE: u32 = 0x0008_1b36;
/// The most the monitor may take besides guest memory, KiB.
const OVERHEAD_MAX_KIB: u64 = 8 * 1024;

/// Machine code with jumps to places that are known later.
#[derive(Default)]
struct Code {
    bytes: Vec<u8>,
    jumps: Vec<(usize, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

impl Code {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// `mov edx, port`.
    fn port(&mut self, port: u16) {
        self.put(&[0xba]);
        self.put(&u32::from(port).to_le_bytes());
    }

    /// `mov al, value; out dx, al`.
    fn out(&mut self, port: u16, value: u8) {
        self.port(port);
        self.put(&[0xb0, value, 0xee]);
    }

    fn label(&mut self, name: &'static str) {
        self.labels.push((name, self.bytes.len()));
    }

    /// A short jump: 0x74 when equal, 0xeb always.
    fn jump(&mut self, opcode: u8, name: &'static str) {
        self.put(&[opcode, 0]);
        self.jumps.push((self.bytes.len(), name));
    }

    fn finish(mut self) -> Vec<u8> {
        for (after, name) in self.jumps {
            let target = self.labels.iter().find(|(label, _)| *label == name).expect("a label").1;
            let distance = i64::try_from(target).unwrap() - i64::try_from(after).unwrap();
            self.bytes[after - 1] = i8::try_from(distance).expect("a short jump").to_le_bytes()[0];
        }
        self.bytes
    }
}

/// Says "up", checks SSE and configuration space, then answers each byte: `q` powers off, `r` resets, `k` resets by the keyboard controller, `h`
/// faults, the rest comes back.
fn program() -> Vec<u8> {
    let mut code = Code::default();
    code.put(&[0x0f, 0x57, 0xc0]); // xorps xmm0, xmm0
    for byte in b"up\n" {
        code.out(layout::SERIAL_PORT, *byte);
    }
    code.put(&[0xb8]); // mov eax, ECAM
    code.put(&u32::try_from(layout::ECAM).unwrap().to_le_bytes());
    code.put(&[0x8b, 0x00, 0x3d]); // mov eax, [rax]; cmp eax, BRIDGE
    code.put(&BRIDGE.to_le_bytes());
    code.jump(0x74, "wait");
    code.label("fault");
    code.put(&[0xf4]); // hlt, which user code may not
    code.label("wait");
    code.port(layout::SERIAL_PORT + 5);
    code.put(&[0xec, 0xa8, 0x01]); // in al, dx; test al, 1
    code.jump(0x74, "wait");
    code.port(layout::SERIAL_PORT);
    code.put(&[0xec]); // in al, dx
    for (byte, label) in [(b'q', "off"), (b'r', "reset"), (b'k', "keyboard"), (b'h', "fault")] {
        code.put(&[0x3c, byte]); // cmp al, byte
        code.jump(0x74, label);
    }
    code.put(&[0xee]); // out dx, al
    code.jump(0xeb, "wait");
    code.label("off");
    code.out(layout::SLEEP_CONTROL_PORT, layout::SLEEP_TYPE_S5 << 2 | 0x20);
    code.jump(0xeb, "end");
    code.label("reset");
    code.out(layout::RESET_PORT, layout::RESET_VALUE);
    code.jump(0xeb, "end");
    code.label("keyboard");
    code.out(layout::I8042_COMMAND_PORT, 0xfe);
    code.label("end");
    code.jump(0xeb, "end");
    code.finish()
}

/// `code` as a static ELF program of one segment.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([START, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    file.extend([1_u32, 7].map(u32::to_le_bytes).concat());
    let length = code.len() as u64;
    file.extend([0x1000, START, START, length, length, 0x1000].map(u64::to_le_bytes).concat());
    file.resize(0x1000, 0);
    file.extend(code);
    file
}

/// A running monitor with files of its own; ended when dropped.
struct Monitor {
    child: Child,
    directory: tempfile::TempDir,
}

impl Monitor {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("guest"), elf(&program())).unwrap();
        let config = serde_json::to_string(&config(directory.path())).unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vmm"))
            .current_dir(directory.path())
            .args(["run", "--log", "vmm.log", "--control"])
            .arg(directory.path().join("control.sock"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn client(&self) -> Client {
        let (path, end) = (self.path("control.sock"), Instant::now() + SOON);
        loop {
            match Client::connect(&path) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < end, "{error}: {}", self.log()),
            }
            std::thread::yield_now();
        }
    }

    fn console(&self) -> Console {
        let (path, end) = (self.path("console.sock"), Instant::now() + SOON);
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Console { stream },
                Err(error) => assert!(Instant::now() < end, "{error}: {}", self.log()),
            }
            std::thread::yield_now();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("vmm.log")).unwrap_or_default()
    }

    /// Waits for the end of the process; its exit code.
    fn ended(&mut self) -> Option<i32> {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "the monitor did not end: {}", self.log());
            std::thread::yield_now();
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Console {
    stream: UnixStream,
}

impl Console {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads until `text` was seen.
    fn expect(&mut self, text: &str) {
        self.stream.set_read_timeout(Some(SOON)).unwrap();
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(text.as_bytes()) {
            let count = self.stream.read(&mut byte);
            assert!(matches!(count, Ok(1)), "{count:?}, wanted {text:?} after {:?}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
    }

    fn is_silent_for(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        matches!(self.stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

fn config(directory: &Path) -> VmConfig {
    VmConfig {
        name: "native".to_owned(),
        vcpus: 2,
        memory_mib: 32,
        boot: BootConfig {
            kernel: directory.join("guest"),
            initrd: None,
            cmdline: String::new(),
            protocol: BootProtocol::Native,
            cache: None,
        },
        disks: Vec::new(),
        nets: Vec::new(),
        console: ConsoleConfig {
            log: Some(directory.join("console.log")),
            socket: Some(directory.join("console.sock")),
            ..ConsoleConfig::default()
        },
        rng: true,
        jail: None,
    }
}

fn refusal(result: Result<(), ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::Refused { refusal, .. }) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_machine_lives_from_configure_to_quit() {
    require!(Need::Kvm);
    let mut monitor = Monitor::start();
    let mut client = monitor.client();
    assert_eq!(client.state().unwrap().state, State::Created);
    client.configure(&config(monitor.directory.path())).unwrap();
    let (report, mut events) = monitor.client().events().unwrap();
    assert_eq!(report.state, State::Configured);
    client.start().unwrap();
    assert_eq!(events.next(SOON).unwrap(), Event::Running);

    let mut console = monitor.console();
    console.expect("up\n");
    console.send(b"one");
    console.expect("one");
    let metrics = client.metrics().unwrap();
    assert!(metrics.vcpus["port_write_exits"] >= 6 && metrics.devices.contains_key("rng"), "{metrics:?}");
    println!("monitor without guest memory: {} KiB", metrics.overhead_kib);
    assert!((1..=OVERHEAD_MAX_KIB).contains(&metrics.overhead_kib), "{metrics:?}");

    client.pause().unwrap();
    assert_eq!(events.next(SOON).unwrap(), Event::Paused);
    console.send(b"two");
    assert!(console.is_silent_for(Duration::from_millis(300)));
    client.resume().unwrap();
    assert_eq!(events.next(SOON).unwrap(), Event::Running);
    console.expect("two");

    client.reset().unwrap();
    assert_eq!(events.next(SOON).unwrap(), Event::Reset);
    console.expect("up\n");
    for key in [b"r", b"k"] {
        console.send(key);
        assert_eq!(events.next(SOON).unwrap(), Event::Reset);
        console.expect("up\n");
    }
    console.send(b"q");
    assert!(matches!(events.next(SOON).unwrap(), Event::Shutdown { .. }));
    let report = client.state().unwrap();
    assert_eq!(
        (report.state, report.resets, report.reason.as_deref()),
        (State::Shutdown, 3, Some("powered off by the guest"))
    );
    assert_eq!(refusal(client.start()), ErrorCode::IllegalState);
    assert_eq!(std::fs::read_to_string(monitor.path("console.log")).unwrap(), "up\nonetwoup\nup\nup\n");
    client.quit().unwrap();
    assert_eq!(monitor.ended(), Some(0));
    assert!(!monitor.path("control.sock").exists());
}

#[test]
fn a_new_console_client_gets_what_was_said_before() {
    require!(Need::Kvm);
    let monitor = Monitor::start_with(&["--config", "config.json", "--start"]);
    monitor.console().expect("up\n");
    let mut second = monitor.console();
    second.expect("up\n");
    second.send(b"x");
    second.expect("x");
}

/// The monitor's own memory, as an operator sees it, is within what is promised without librbd.
#[test]
fn what_a_running_machine_costs_can_be_asked_for() {
    require!(Need::Kvm);
    let monitor = Monitor::start_with(&["--config", "config.json", "--start"]);
    monitor.console().expect("up\n");
    let ask = |what: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["ask", "--control"]).arg(monitor.path("control.sock")).arg(what).output().unwrap()
    };
    let answer: serde_json::Value = serde_json::from_slice(&ask("metrics").stdout).unwrap();
    let overhead_kib = answer["overhead_kib"].as_u64().unwrap();
    println!("monitor without guest memory: {overhead_kib} KiB (PSS)");
    assert!((1..=OVERHEAD_MAX_KIB).contains(&overhead_kib), "{answer}");
    assert!(ask("pause").status.success());
    let state: serde_json::Value = serde_json::from_slice(&ask("state").stdout).unwrap();
    assert_eq!(state["state"], "paused");
    let refused = ask("pause");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot pause a machine that is paused"));
}

#[test]
fn the_virtio_console_carries_both_ways() {
    require!(Need::Kvm);
    let monitor = Monitor::start();
    let mut client = monitor.client();
    let mut hvc = config(monitor.directory.path());
    (hvc.boot.kernel, hvc.boot.cmdline) = (native_guest::elf().to_owned(), "hvc=5".to_owned());
    (hvc.vcpus, hvc.memory_mib, hvc.console.device) = (1, 64, ConsoleDevice::Virtio);
    client.configure(&hvc).unwrap();
    let (_, mut events) = monitor.client().events().unwrap();
    client.start().unwrap();
    assert_eq!(events.next(SOON).unwrap(), Event::Running);
    let mut console = monitor.console();
    console.expect("hvc is up\n");
    console.send(b"hello");
    console.expect("hello");
    assert_eq!(events.next(SOON).unwrap(), Event::Reset);
    assert!(client.metrics().unwrap().devices.contains_key("console"));
    console.expect("hvc is up\n");
}

#[test]
fn a_guest_that_faults_starts_again_and_one_that_goes_on_faulting_is_a_crash_with_its_reason() {
    require!(Need::Kvm);
    let monitor = Monitor::start();
    let mut client = monitor.client();
    client.configure(&config(monitor.directory.path())).unwrap();
    let (_, mut events) = monitor.client().events().unwrap();
    client.start().unwrap();
    assert_eq!(events.next(SOON).unwrap(), Event::Running);
    let mut console = monitor.console();
    for _ in 0..RESETS_MAX {
        console.expect("up\n");
        console.send(b"h");
        assert_eq!(events.next(SOON).unwrap(), Event::Reset);
    }
    console.expect("up\n");
    console.send(b"h");
    let event = events.next(SOON).unwrap();
    assert!(matches!(&event, Event::Crashed { reason } if reason.starts_with("vCPU 0: triple fault")), "{event:?}");
    let report = client.state().unwrap();
    assert_eq!((report.state, report.resets), (State::Crashed, u64::try_from(RESETS_MAX).unwrap()));
    assert_eq!(refusal(client.reset()), ErrorCode::IllegalState);
}

#[test]
fn the_exit_code_tells_how_a_machine_started_at_once_ended() {
    require!(Need::Kvm);
    for (keys, code) in [("q", 0), ("hhhh", 3)] {
        let mut monitor = Monitor::start_with(&["--config", "config.json", "--start"]);
        let mut console = monitor.console();
        for key in keys.as_bytes() {
            console.expect("up\n");
            console.send(&[*key]);
        }
        assert_eq!(monitor.ended(), Some(code), "{}", monitor.log());
    }
}

#[test]
fn what_cannot_be_had_is_refused_and_the_monitor_goes_on() {
    require!(Need::Kvm);
    let monitor = Monitor::start();
    let mut client = monitor.client();
    let good = config(monitor.directory.path());
    assert_eq!(refusal(client.start()), ErrorCode::IllegalState);
    assert_eq!(refusal(client.configure(&VmConfig { vcpus: 0, ..good.clone() })), ErrorCode::InvalidConfig);
    let mut missing = good.clone();
    missing.boot.kernel = "/nonexistent/kernel".into();
    assert_eq!(refusal(client.configure(&missing)), ErrorCode::Unavailable);
    let net = serde_json::json!({"id": "n", "tap": "no-such-tap", "mac": "52:54:00:00:00:01"});
    let without_tap = VmConfig { nets: vec![serde_json::from_value(net).unwrap()], ..good.clone() };
    assert_eq!(refusal(client.configure(&without_tap)), ErrorCode::Unavailable);
    let disk = serde_json::json!({"id": "d", "source": {"file": {"path": "/nonexistent/disk"}}});
    let without_disk = VmConfig { disks: vec![serde_json::from_value(disk).unwrap()], ..good.clone() };
    assert_eq!(refusal(client.configure(&without_disk)), ErrorCode::Unavailable);
    assert_eq!(client.state().unwrap().state, State::Created);
    client.configure(&good).unwrap();
    client.start().unwrap();
    monitor.console().expect("up\n");
    client.stop().unwrap();
    assert_eq!(client.state().unwrap().reason.as_deref(), Some("stopped by a client"));
}

#[test]
fn an_image_that_is_not_there_is_refused_and_ends_the_process_that_is_in_its_jail() {
    require!(Need::Kvm, Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let mut monitor = Monitor::start();
    let mut client = monitor.client();
    let mut jailed = config(monitor.directory.path());
    jailed.jail = Some(JailConfig { uid: 64_996, gid: 64_996, chroot: None });
    let disk = |conf: &Path| {
        let place = serde_json::json!({"conf": conf, "user": USER, "pool": POOL, "image": "no-such-image"});
        serde_json::from_value(serde_json::json!({"id": "d", "source": {"rbd": place}})).unwrap()
    };
    // What is found wrong before the walls go up can be tried again.
    jailed.disks = vec![disk(Path::new("/nonexistent/ceph.conf"))];
    assert_eq!(refusal(client.configure(&jailed)), ErrorCode::Unavailable);
    assert_eq!(client.state().unwrap().state, State::Created);
    jailed.disks = vec![disk(&cluster.conf())];
    let Err(ClientError::Refused { refusal, .. }) = client.configure(&jailed) else { panic!("not refused") };
    assert_eq!(refusal.code, ErrorCode::Unavailable);
    let (why, end) = ("there is no such image", "the process, which is in its jail, ends");
    assert!(refusal.message.contains(why) && refusal.message.contains(end), "{refusal}");
    assert_eq!(monitor.ended(), Some(1), "{}", monitor.log());
}

#[test]
fn noise_on_the_control_socket_is_answered_and_survived() {
    require!(Need::Kvm);
    let monitor = Monitor::start();
    let mut client = monitor.client();
    let mut stream = UnixStream::connect(monitor.path("control.sock")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"\xff\xfe not json\n{\"id\":4,\"method\":\"fly\"}\n{\"id\":5,\"method\":\"state\"}\n").unwrap();
    let mut text = String::new();
    while text.lines().count() < 3 || !text.ends_with('\n') {
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).unwrap();
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("\"parse\"") && lines[1].contains("\"unknown_method\""), "{text}");
    assert!(lines[2].contains("\"created\""), "{text}");
    stream.write_all(&vec![b'x'; 300 * 1024]).unwrap();
    assert_eq!(client.state().unwrap().state, State::Created);
}

#[test]
fn a_jailed_machine_runs_resets_and_ends() {
    require!(Need::Kvm, Need::Root);
    let mut monitor = Monitor::start();
    let mut client = monitor.client();
    let mut jailed = config(monitor.directory.path());
    jailed.jail = Some(JailConfig { uid: 64_998, gid: 64_998, chroot: None });
    client.configure(&jailed).unwrap();
    assert_eq!(refusal(client.configure(&jailed)), ErrorCode::IllegalState, "nothing can be opened in the jail");
    client.start().unwrap();
    let mut console = monitor.console();
    console.expect("up\n");
    let status = std::fs::read_to_string(format!("/proc/{}/status", monitor.child.id())).unwrap();
    assert!(
        status.contains("CapEff:\t0000000000000000") && status.contains("Uid:\t64998\t64998\t64998\t64998"),
        "{status}"
    );
    client.reset().unwrap();
    console.expect("up\n");
    client.pause().unwrap();
    client.resume().unwrap();
    console.send(b"on");
    console.expect("on");
    assert!(client.metrics().unwrap().overhead_kib > 0);
    console.send(b"q");
    while client.state().unwrap().state == State::Running {
        std::thread::yield_now();
    }
    assert_eq!(client.state().unwrap().state, State::Shutdown, "{}", monitor.log());
    client.quit().unwrap();
    assert_eq!(monitor.ended(), Some(0), "{}", monitor.log());
}
