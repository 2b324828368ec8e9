//! Shows that the lab is what its users rely on: two hosts with KVM and a kernel data path, commands in them with exact
//! endings, VXLAN between them in the kernel, and nothing left afterwards, however its owner ends.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that meets an error has failed; one part of it speaks to another on stdout"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use basalt_tests::skip::Need;
use basalt_tests::{process, require};
use hw_tests::lab::exec::Ending;
use hw_tests::lab::network::{Keeper, Network};
use hw_tests::lab::progress::{Audience, Progress};
use hw_tests::lab::{Config, Host, Lab};

const SOON: Duration = Duration::from_secs(30);
/// Set for the copy of this test program that plays an owner who is killed.
const OWNER_VARIABLE: &str = "BASALT_TEST_LAB_OWNER";

#[test]
fn two_hosts_have_kvm_and_a_kernel_data_path_and_leave_nothing() {
    require!(Need::Root, Need::OpenVswitch, Need::Program("qemu-system-x86_64"), Need::Program("busybox"));
    let config = Config { name: format!("test-{}", std::process::id()), ..Config::default() };
    let progress = Progress::new("lab test", Audience::Stderr);
    let (lab, killed) = Lab::up_and(&config, &progress, kill_emulator_of_host2).unwrap();
    assert!(lab.directory().join("host2/console.first.log").exists(), "host2 was started once more");
    assert!(!Path::new("/proc").join(killed.to_string()).exists());

    for host in lab.hosts() {
        assert_eq!(host.sh("hostname").unwrap().trim(), host.name());
        let hand = host.hand();
        assert_eq!(host.command(&hand).arg("kvm").ok().unwrap(), "a virtual machine with one processor was made\n");
        host.sh("test -d /sys/module/openvswitch; test -c /dev/net/tun; grep -q cgroup2 /proc/mounts").unwrap();
        host.sh("dd if=/dev/zero of=/var/lib/basalt/x bs=1M count=8 oflag=direct 2>&1; rm /var/lib/basalt/x").unwrap();
    }
    let ids: Vec<String> = lab.hosts().iter().map(|host| host.sh("cat /etc/machine-id").unwrap()).collect();
    assert_ne!(ids[0], ids[1]);
    commands_end_as_they_should(&lab.hosts()[0]);
    fresh_programs_are_seen(&lab.hosts()[0]);
    vxlan_crosses_the_underlay(&lab);

    let (network, directory) = (lab.network().clone(), lab.directory().to_owned());
    let processes = network.processes().unwrap();
    assert!(processes.len() >= 2, "two QEMUs were running: {processes:?}");
    drop(lab);
    assert!(!network.exists());
    assert!(!directory.exists());
    for pid in processes {
        assert!(!Path::new("/proc").join(pid.to_string()).exists(), "process {pid} is left");
    }
}

/// Takes a host away while it boots, as a fault of the emulator does.
fn kill_emulator_of_host2(network: &Network) -> anyhow::Result<u32> {
    let is_host2 = |pid: &u32| {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.starts_with("qemu-system-x86_64") && words.contains("lab.name=host2") && words.contains("console.log")
    };
    let emulator = process::wait_for("host2's QEMU", SOON, || Ok(network.processes()?.into_iter().find(is_host2)))?;
    process::run(Command::new("kill").args(["-KILL", &emulator.to_string()]), SOON)?;
    Ok(emulator)
}

fn commands_end_as_they_should(host: &Host) {
    let finished = host.command("sh").args(["-c", "cat; echo err >&2; exit 9"]).input("in").finish().unwrap();
    assert_eq!((finished.ending.clone(), finished.text().as_str()), (Ending::Code(9), "in"));
    assert_eq!(finished.error_text(), "err\n");
    let start = Instant::now();
    let finished = host.command("sleep").arg("100").limit(Duration::from_secs(1)).finish().unwrap();
    assert_eq!(finished.ending, Ending::TimedOut);
    assert!(start.elapsed() < SOON);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|n| scope.spawn(move || host.sh(&format!("sleep 1; echo {n}")))).collect();
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.join().unwrap().unwrap(), format!("{n}\n"));
        }
    });
}

/// What is built while the host runs is run there, not what stood under the same path before.
fn fresh_programs_are_seen(host: &Host) {
    let home = tempfile::tempdir_in(hw_tests::lab::artifact::lab_directory()).unwrap();
    let file = home.path().join("program");
    for word in ["first", "second, longer"] {
        std::fs::write(&file, format!("echo {word}\n")).unwrap();
        assert_eq!(host.command("sh").arg(file.to_string_lossy()).ok().unwrap(), format!("{word}\n"));
    }
}

fn vxlan_crosses_the_underlay(lab: &Lab) {
    let [one, two] = lab.hosts() else { panic!("two hosts") };
    std::thread::scope(|scope| {
        let sides = [(one, two), (two, one)].map(|(host, peer)| scope.spawn(|| start_switch(host, peer)));
        sides.into_iter().for_each(|side| side.join().unwrap());
    });
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut capture = lab.network().command("tcpdump");
    capture.args(["-i", "underlay", "-c", "2", "-n", "-l", "udp", "port", "4789"]);
    let mut capture = process::Daemon::start("tcpdump", &capture, log.path()).unwrap();
    let listens = || Ok(std::fs::read_to_string(log.path())?.contains("listening").then_some(()));
    capture.wait_ready("tcpdump listens", SOON, listens).unwrap();
    one.sh("ip netns exec tenant ping -c 3 -W 5 192.168.9.2").unwrap();
    one.sh("ip netns exec tenant ping -c 3 -W 5 -M do -s 1472 192.168.9.2").unwrap();
    let seen = || Ok(std::fs::read_to_string(log.path())?.contains("vni 77").then_some(()));
    process::wait_for("VXLAN packets with VNI 77 on the underlay", SOON, seen).unwrap();
    assert!(one.sh("ovs-appctl dpctl/show").unwrap().contains("system@ovs-system"), "the data path is the kernel's");
}

fn start_switch(host: &Host, peer: &Host) {
    host.start_switch().unwrap();
    let script = format!(
        "ovs-vsctl add-br br-int -- add-port br-int vx -- set interface vx type=vxlan \
           options:remote_ip={} options:local_ip={} options:key=77
         ip netns add tenant
         ip link add port0 type veth peer name eth0 netns tenant
         ip link set port0 up
         ip -n tenant addr add 192.168.9.{}/24 dev eth0
         ip -n tenant link set eth0 up
         ovs-vsctl add-port br-int port0",
        peer.underlay(),
        host.underlay(),
        host.index(),
    );
    host.sh(&script).unwrap();
}

#[test]
fn an_owner_that_is_killed_leaves_nothing() {
    require!(Need::Root);
    if std::env::var_os(OWNER_VARIABLE).is_some() {
        return play_owner();
    }
    let name = format!("basalt-test-{}", std::process::id());
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner.args(["--exact", "an_owner_that_is_killed_leaves_nothing", "--nocapture"]).env(OWNER_VARIABLE, &name);
    let mut owner = owner.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("owner is ready")), "the owner came up");
    let network = Network::named(&name);
    assert!(network.exists());
    let inside = || Ok((!network.processes()?.is_empty()).then_some(()));
    // `ip netns exec` runs for a moment before it enters the namespace.
    process::wait_for("a process in the namespace", SOON, inside).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    process::wait_for("the keeper to take all away", SOON, || Ok((!network.exists()).then_some(()))).unwrap();
}

fn play_owner() {
    let network = Network::named(&std::env::var(OWNER_VARIABLE).unwrap());
    let _keeper = Keeper::watch(&network).unwrap();
    network.create(1).unwrap();
    // One that ignores requests to end, as a hung QEMU would.
    let mut stubborn = network.command("sh");
    stubborn.args(["-c", "trap '' TERM; while :; do sleep 1; done"]).stdout(Stdio::null());
    let mut stubborn = stubborn.spawn().unwrap();
    println!("owner is ready");
    stubborn.wait().unwrap();
}
