//! Shows that the small Debian guest does what other tests rely on, without any code of ours under it: QEMU emulates a
//! machine with one disk and one network with a DHCP server, and the guest must come up with a shell, an address, a
//! route, a name server, working block writes, and a power button.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use basalt_tests::process;
use basalt_tests::require;
use basalt_tests::skip::Need;
use hw_tests::guest::Shell;
use hw_tests::lab::artifact::Cache;
use hw_tests::lab::guest_image::Guest;

const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(30);

struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_guest_image_boots_to_a_shell_with_an_address() {
    require!(Need::Root, Need::Program("qemu-system-x86_64"), Need::Program("busybox"));
    let guest = Guest::get(&Cache::open().unwrap()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (console, control) = (home.path().join("console"), home.path().join("control"));
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-M", "q35", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.arg("-append").arg(Guest::command_line("ttyS0"));
    command.arg("-serial").arg(format!("unix:{},server=on,wait=off", console.display()));
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
    command.arg("-drive").arg(format!("file={},format=qcow2,if=virtio,snapshot=on", guest.disk_qcow2.display()));
    command.args(["-netdev", "user,id=n,net=192.168.30.0/24", "-device", "virtio-net-pci,netdev=n,romfile="]);
    let mut emulator = Emulator(command.stdin(Stdio::null()).spawn().unwrap());
    let connect = |path: &std::path::Path| {
        process::wait_for("QEMU's socket", SOON, || Ok(UnixStream::connect(path).ok())).unwrap()
    };

    let stream = connect(&console);
    let mut shell = Shell::attach(stream.try_clone().unwrap(), stream, BOOT).unwrap();
    assert_eq!(shell.ok("id -u", SOON).unwrap(), "0\n");
    assert!(shell.ok("cat /etc/os-release", SOON).unwrap().contains("Debian"));
    let wait_lease = "n=0; until [ -s /run/lease.eth0 ]; do sleep 1; n=$((n + 1)); [ $n -lt 20 ]; done";
    shell.ok(wait_lease, SOON).unwrap();
    let addresses = shell.ok("ip -4 addr show dev eth0", SOON).unwrap();
    assert!(addresses.contains("192.168.30.15/24"), "{addresses}");
    assert!(shell.ok("ip route", SOON).unwrap().contains("default via 192.168.30.2 dev eth0"));
    assert!(shell.ok("cat /etc/resolv.conf", SOON).unwrap().contains("nameserver 192.168.30.3"));
    shell.ok("dd if=/dev/urandom of=/root/data bs=64k count=16 && sync && md5sum /root/data", SOON).unwrap();

    let mut control = connect(&control);
    writeln!(control, "{{\"execute\":\"qmp_capabilities\"}}\n{{\"execute\":\"system_powerdown\"}}").unwrap();
    process::wait_for("the guest to obey the power button", SOON, || Ok(emulator.0.try_wait()?)).unwrap();
}
