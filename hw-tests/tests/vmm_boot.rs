//! Shows that our own VMM boots a stock Debian kernel under a stock kernel's KVM: in one lab host, a jailed guest with 2 vCPUs, a disk, a network device
//! and the entropy device reaches its shell; pause stops it; its data outlives a reboot by the guest and a reset by us; the power button, pressed by the
//! client, ends it in order.
//!
//! Every wait is bounded, for the host's answers as for the guest's.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that meets an error has failed; it prints what it measured"
)]

use basalt_tests::require;
use basalt_tests::skip::Need;
use hw_tests::guest::Shell;
use hw_tests::lab::artifact::Cache;
use hw_tests::lab::exec::client::{InputStream, OutputStream};
use hw_tests::lab::guest_image::Guest;
use hw_tests::lab::progress::{Audience, Progress};
use hw_tests::lab::{Config, Host, Lab};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A guest under nested emulation needs 6 to 20 s to its shell on an idle machine.
const BOOT: Duration = Duration::from_secs(120);
/// One command in the guest, one answer of the monitor.
const SOON: Duration = Duration::from_secs(60);
/// The most that the monitor's process may run: all of the above, with the host's own time.
const LIFE: Duration = Duration::from_secs(600);
const OVERHEAD_MAX_KIB: u64 = 8 * 1024;

/// The program `vmm` of the same build as this test.
fn vmm() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(|directory| directory.parent()).unwrap().join("vmm");
    assert!(program.is_file(), "no {}: cargo build -p vmm", program.display());
    program
}

/// A connection to the control socket of a VMM in the host.
struct Control {
    lines: Receiver<String>,
    writer: InputStream,
    id: u64,
}

impl Control {
    fn connect(host: &Host) -> Self {
        let (reader, writer) = host.relay("/run/vm/control.sock").unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || read_lines(reader, |line| sender.send(line).is_ok()));
        Self { lines, writer, id: 0 }
    }

    /// The next line, which must come within `limit`.
    fn line(&self, what: &str, limit: Duration) -> Value {
        let line = self.lines.recv_timeout(limit);
        let line = line.unwrap_or_else(|error| panic!("{what}: nothing within {} s: {error}", limit.as_secs()));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{what}: {error}: {line:?}"))
    }

    fn event(&self, name: &str, limit: Duration) -> Value {
        let event = self.line(name, limit);
        assert_eq!(event["event"], name, "{event}");
        event
    }

    fn call(&mut self, method: &str) -> Value {
        self.id += 1;
        self.writer.write_all(format!("{}\n", json!({"id": self.id, "method": method})).as_bytes()).unwrap();
        let answer = self.line(method, SOON);
        assert_eq!(answer["id"], self.id, "{answer}");
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }
}

fn read_lines(reader: OutputStream, mut take: impl FnMut(String) -> bool) {
    BufReader::new(reader).lines().map_while(Result::ok).take_while(|line| take(line.clone())).for_each(drop);
}

/// A guest's console; it must have a shell within the time that a boot takes.
fn attach(host: &Host) -> Shell<InputStream> {
    let (reader, writer) = host.relay("/run/vm/console.sock").unwrap();
    Shell::attach(reader, writer, BOOT).unwrap_or_else(|error| panic!("{error:#}\n{}", log(host)))
}

fn log(host: &Host) -> String {
    host.sh("tail -n 30 /run/vm/vmm.log").unwrap_or_default()
}

fn prepare(host: &Host, guest: &Guest) {
    let paths = [&guest.kernel, &guest.initrd, &guest.disk_raw].map(|path| path.display().to_string());
    host.sh(&format!("mkdir -p /run/vm; cp --sparse=always {} /run/vm/disk.raw", paths[2])).unwrap();
    host.sh("ip tuntap add vm0 mode tap vnet_hdr; ip addr add 10.79.7.1/24 dev vm0; ip link set vm0 mtu 1450 up")
        .unwrap();
    let config = json!({
        "name": "lab", "vcpus": 2, "memory_mib": 256,
        "boot": {"kernel": paths[0], "initrd": paths[1], "cmdline": Guest::command_line("ttyS0"), "cache": "/run/vm/kernels"},
        "disks": [{"id": "root", "source": {"file": {"path": "/run/vm/disk.raw"}}}],
        "nets": [{"id": "net0", "tap": "vm0", "mac": "52:54:00:77:00:02", "mtu": 1450}],
        "console": {"socket": "/run/vm/console.sock", "log": "/run/vm/console.log"},
        "jail": {"uid": 64998, "gid": 64998},
    });
    host.sh(&format!("cat > /run/vm/config.json <<'END'\n{config}\nEND")).unwrap();
}

/// What a machine's owner sees of its devices from inside.
fn look_around(shell: &mut Shell<InputStream>) {
    assert_eq!(shell.ok("grep -c ^processor /proc/cpuinfo", SOON).unwrap(), "2\n");
    shell.ok("ip link set eth0 up; ip addr add 10.79.7.2/24 dev eth0; ping -c 2 -W 10 10.79.7.1", SOON).unwrap();
    assert_eq!(shell.ok("cat /sys/class/net/eth0/mtu /sys/block/vda/serial", SOON).unwrap().trim(), "1450\nroot");
    assert!(shell.ok("cat /proc/interrupts", SOON).unwrap().contains("virtio"));
    shell.ok("echo kept > /root/note; sync", SOON).unwrap();
}

fn check_metrics(control: &mut Control) {
    let metrics = control.call("metrics");
    println!("{metrics}");
    assert!(metrics["devices"]["root"]["write_requests"].as_u64() > Some(0), "{metrics}");
    assert!(metrics["overhead_kib"].as_u64().is_some_and(|kib| (1..=OVERHEAD_MAX_KIB).contains(&kib)), "{metrics}");
}

#[test]
fn the_debian_guest_boots_pauses_reboots_and_obeys_its_power_button() {
    require!(Need::Root, Need::OpenVswitch, Need::Program("qemu-system-x86_64"), Need::Program("busybox"));
    let guest = Guest::get(&Cache::open().unwrap()).unwrap();
    let config = Config { name: format!("vmm-{}", std::process::id()), hosts: 1, ..Config::default() };
    let lab = Lab::up(&config, &Progress::new("vmm boot", Audience::Stderr)).unwrap();
    let host = &lab.hosts()[0];
    prepare(host, &guest);
    let arguments =
        ["run", "--control", "/run/vm/control.sock", "--config", "/run/vm/config.json", "--log", "/run/vm/vmm.log"];
    let started = Instant::now();
    let session = host.command(&vmm().to_string_lossy()).args(arguments).limit(LIFE).start().unwrap();
    host.sh("n=0; until [ -S /run/vm/control.sock ] && [ -S /run/vm/console.sock ]; do sleep 0.2; n=$((n + 1)); [ $n -lt 150 ]; done")
        .unwrap();
    let mut control = Control::connect(host);
    let mut events = Control::connect(host);
    events.call("events");
    control.call("start");
    events.event("running", SOON);
    let mut shell = attach(host);
    println!("from exec of vmm to a shell: {:.1} s", started.elapsed().as_secs_f64());
    look_around(&mut shell);
    check_metrics(&mut control);

    control.call("pause");
    events.event("paused", SOON);
    assert!(shell.run("true", Duration::from_secs(2)).is_err(), "a paused guest does not answer");
    control.call("resume");
    events.event("running", SOON);

    let rebooted = Instant::now();
    // In a session of its own: whoever gives up waiting for an answer interrupts what the terminal runs.
    shell.ok("setsid sh -c 'sleep 1; exec reboot -f' >/dev/null 2>&1 &", SOON).unwrap();
    events.event("reset", BOOT);
    drop(shell);
    let mut shell = attach(host);
    assert_eq!(shell.ok("cat /root/note", SOON).unwrap(), "kept\n");
    println!("from reboot to a shell: {:.1} s", rebooted.elapsed().as_secs_f64());
    drop(shell);

    control.call("shutdown");
    let event = events.event("shutdown", BOOT);
    assert_eq!(event["reason"], "powered off by the guest");
    assert_eq!(control.call("state")["resets"], 1);
    control.call("quit");
    assert!(session.collect().unwrap().success(), "{}", log(host));
}
