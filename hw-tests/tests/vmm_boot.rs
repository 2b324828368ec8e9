//! Shows that our own VMM boots the Debian guest under a stock kernel's KVM: in one lab host, a guest with 2 vCPUs, a disk, a network device and the
//! entropy device reaches its shell; its data survives a reset; pause stops it; the power button ends it in order.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

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
use std::time::{Duration, Instant};

/// A guest under nested emulation needs 6 to 20 s to its shell on an idle machine.
const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const OVERHEAD_MAX_KIB: u64 = 8 * 1024;

/// The program `vmm` of the same build as this test.
fn vmm() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let program = own.parent()?.parent()?.join("vmm");
    program.is_file().then_some(program)
}

/// The control socket of a VMM in the host.
struct Control {
    lines: BufReader<OutputStream>,
    writer: InputStream,
    id: u64,
}

impl Control {
    fn connect(host: &Host) -> Self {
        let (reader, writer) = host.relay("/run/vm/control.sock").unwrap();
        Self { lines: BufReader::new(reader), writer, id: 0 }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn call(&mut self, method: &str) -> Value {
        self.id += 1;
        self.writer.write_all(format!("{}\n", json!({"id": self.id, "method": method})).as_bytes()).unwrap();
        let answer = self.line();
        assert_eq!(answer["id"], self.id, "{answer}");
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }
}

fn attach(host: &Host) -> Shell<InputStream> {
    let (reader, writer) = host.relay("/run/vm/console.sock").unwrap();
    Shell::attach(reader, writer, BOOT).unwrap()
}

fn prepare(host: &Host, guest: &Guest) {
    let paths = [&guest.kernel, &guest.initrd, &guest.disk_raw].map(|path| path.display().to_string());
    host.sh(&format!("mkdir -p /run/vm; cp --sparse=always {} /run/vm/disk.raw", paths[2])).unwrap();
    host.sh("ip tuntap add vm0 mode tap vnet_hdr; ip addr add 10.77.0.1/24 dev vm0; ip link set vm0 mtu 1450 up")
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

#[test]
fn the_debian_guest_boots_resets_pauses_and_powers_off() {
    require!(Need::Root, Need::OpenVswitch, Need::Program("qemu-system-x86_64"), Need::Program("busybox"));
    let Some(vmm) = vmm() else {
        println!("SKIP the_debian_guest_boots_resets_pauses_and_powers_off: the program vmm (cargo build -p vmm)");
        return;
    };
    let guest = Guest::get(&Cache::open().unwrap()).unwrap();
    let config = Config { name: format!("vmm-{}", std::process::id()), hosts: 1, ..Config::default() };
    let lab = Lab::up(&config, &Progress::new("vmm boot", Audience::Stderr)).unwrap();
    let host = &lab.hosts()[0];
    prepare(host, &guest);
    let arguments =
        ["run", "--control", "/run/vm/control.sock", "--config", "/run/vm/config.json", "--log", "/run/vm/vmm.log"];
    let started = Instant::now();
    let session = host.command(&vmm.to_string_lossy()).args(arguments).limit(Duration::from_secs(900)).start().unwrap();
    host.sh("n=0; until [ -S /run/vm/control.sock ] && [ -S /run/vm/console.sock ]; do sleep 0.2; n=$((n + 1)); [ $n -lt 300 ]; done")
        .unwrap();
    let mut control = Control::connect(host);
    let mut events = Control::connect(host);
    events.call("events");
    control.call("start");
    assert_eq!(events.line()["event"], "running");

    let mut shell = attach(host);
    println!("from exec of vmm to a shell: {} s", started.elapsed().as_secs());
    assert_eq!(shell.ok("grep -c ^processor /proc/cpuinfo", SOON).unwrap(), "2\n");
    shell.ok("ip addr add 10.77.0.2/24 dev eth0; ping -c 2 -W 10 10.77.0.1", SOON).unwrap();
    assert_eq!(shell.ok("cat /sys/class/net/eth0/mtu /sys/block/vda/serial", SOON).unwrap().trim(), "1450\nroot");
    assert!(shell.ok("cat /proc/interrupts", SOON).unwrap().contains("virtio"));
    shell.ok("echo kept > /root/note; sync", SOON).unwrap();
    let metrics = control.call("metrics");
    println!("{metrics}");
    assert!(metrics["devices"]["root"]["write_requests"].as_u64() > Some(0), "{metrics}");
    assert!(metrics["overhead_kib"].as_u64().is_some_and(|kib| (1..=OVERHEAD_MAX_KIB).contains(&kib)), "{metrics}");

    control.call("pause");
    assert_eq!(events.line()["event"], "paused");
    assert!(shell.run("true", Duration::from_secs(3)).is_err(), "a paused guest does not answer");
    control.call("resume");
    assert_eq!(events.line()["event"], "running");
    drop(shell);
    let mut shell = attach(host);

    shell.ok("(sleep 1; reboot -f) >/dev/null 2>&1 &", SOON).unwrap();
    assert_eq!(events.line()["event"], "reset");
    drop(shell);
    host.sh(": > /run/vm/console.log").unwrap();
    let mut shell = attach(host);
    assert_eq!(shell.ok("cat /root/note", SOON).unwrap(), "kept\n");

    control.call("shutdown");
    let event = events.line();
    assert_eq!(
        (event["event"].as_str(), event["reason"].as_str()),
        (Some("shutdown"), Some("powered off by the guest"))
    );
    assert_eq!(control.call("state")["resets"], 1);
    control.call("quit");
    assert!(session.collect().unwrap().success());
}
