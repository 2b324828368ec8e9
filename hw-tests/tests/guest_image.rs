//! Shows that the guest disks do what other tests rely on, without any code of ours under it: QEMU emulates a
//! machine with one disk and one network with a DHCP server. The small Debian must come up with a shell, an address, a
//! route, a name server, working block writes, and a power button; so must, with less to say, a whole one with systemd.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use basalt_tests::process;
use basalt_tests::require;
use basalt_tests::skip::Need;
use hw_tests::guest::Shell;
use hw_tests::lab::artifact::Cache;
use hw_tests::lab::guest_image::Guest;
use hw_tests::lab::stock_image;

const BOOT: Duration = Duration::from_secs(120);
/// systemd under emulation, on shared processors.
const LONG_BOOT: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(30);

struct Emulator {
    process: Child,
    home: tempfile::TempDir,
}

impl Emulator {
    /// Boots `disk` with the guest's kernel in an emulated machine with a DHCP server on its network.
    fn boot(guest: &Guest, disk: &Path, memory_mib: u32) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-M", "q35", "-nodefaults", "-display", "none", "-no-reboot"]);
        command.args(["-m", &memory_mib.to_string()]);
        command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
        command.arg("-append").arg(Guest::command_line("ttyS0"));
        command.arg("-serial").arg(format!("unix:{},server=on,wait=off", home.path().join("console").display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", home.path().join("control").display()));
        command.arg("-drive").arg(format!("file={},format=qcow2,if=virtio,snapshot=on", disk.display()));
        command.args(["-netdev", "user,id=n,net=192.168.30.0/24", "-device", "virtio-net-pci,netdev=n,romfile="]);
        Self { process: command.stdin(Stdio::null()).spawn().unwrap(), home }
    }

    fn connect(&self, name: &str) -> UnixStream {
        let path = self.home.path().join(name);
        process::wait_for("QEMU's socket", SOON, || Ok(UnixStream::connect(&path).ok())).unwrap()
    }

    fn shell(&self, limit: Duration) -> Shell<UnixStream> {
        let stream = self.connect("console");
        Shell::attach(stream.try_clone().unwrap(), stream, limit).unwrap()
    }

    fn press_power_button(&mut self, limit: Duration) {
        let mut control = self.connect("control");
        writeln!(control, "{{\"execute\":\"qmp_capabilities\"}}\n{{\"execute\":\"system_powerdown\"}}").unwrap();
        process::wait_for("the guest to obey the power button", limit, || Ok(self.process.try_wait()?)).unwrap();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn the_guest_image_boots_to_a_shell_with_an_address() {
    require!(Need::Root, Need::Program("qemu-system-x86_64"), Need::Program("busybox"));
    let guest = Guest::get(&Cache::open().unwrap()).unwrap();
    let mut emulator = Emulator::boot(&guest, &guest.disk_qcow2, 256);
    let mut shell = emulator.shell(BOOT);
    assert_eq!(shell.ok("id -u", SOON).unwrap(), "0\n");
    assert!(shell.ok("cat /etc/os-release", SOON).unwrap().contains("Debian"));
    let wait_lease = "n=0; until [ -s /run/lease.eth0 ]; do sleep 1; n=$((n + 1)); [ $n -lt 20 ]; done";
    shell.ok(wait_lease, SOON).unwrap();
    let addresses = shell.ok("ip -4 addr show dev eth0", SOON).unwrap();
    assert!(addresses.contains("192.168.30.15/24"), "{addresses}");
    assert!(shell.ok("ip route", SOON).unwrap().contains("default via 192.168.30.2 dev eth0"));
    assert!(shell.ok("cat /etc/resolv.conf", SOON).unwrap().contains("nameserver 192.168.30.3"));
    shell.ok("dd if=/dev/urandom of=/root/data bs=64k count=16 && sync && md5sum /root/data", SOON).unwrap();
    emulator.press_power_button(SOON);
}

#[test]
fn a_stock_debian_with_systemd_boots_to_a_shell_with_an_address() {
    require!(Need::Root, Need::Program("qemu-system-x86_64"), Need::Program("debootstrap"));
    let cache = Cache::open().unwrap();
    let (guest, disk) = (Guest::get(&cache).unwrap(), stock_image::disk(&cache).unwrap());
    let mut emulator = Emulator::boot(&guest, &disk, 512);
    let mut shell = emulator.shell(LONG_BOOT);
    assert_eq!(shell.ok("cat /proc/1/comm", SOON).unwrap(), "systemd\n");
    let wait_address =
        "n=0; until ip -4 addr show | grep 192.168.30.15/24; do sleep 1; n=$((n + 1)); [ $n -lt 60 ]; done";
    shell.ok(wait_address, LONG_BOOT).unwrap();
    emulator.press_power_button(LONG_BOOT);
}
