//! Machines of the real VMM under the real agent: native guests on this machine's KVM, in plain cgroups, killed from both sides.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

#[expect(dead_code, reason = "not all tests use all of it")]
mod agent;

use std::time::Duration;

use agent::{Agent, running, spec_value, uuid};
use basalt_tests::ceph::shared::{self, Use};
use basalt_tests::ceph::{POOL, USER};
use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::skip::Need;
use basalt_tests::{program, require, systemd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const SETTLE: Duration = Duration::from_secs(60);
/// How long a machine may take to come back: less than the 30 s for which Ceph takes a killed client for a slow one.
const BACK: Duration = Duration::from_secs(25);
/// Where the moments at which processes are killed come from; a failure prints the moments themselves.
const SEED: u64 = 0x5eed_0001;

/// Without systemd a machine gets a cgroup of its own below the configured one: it outlives the agent there, and the group goes with the machine.
#[test]
fn without_systemd_a_machine_has_a_plain_cgroup() {
    require!(Need::Root, Need::OpenVswitch, Need::Kvm, Need::File("/dev/net/tun"));
    systemd::cgroup_root().unwrap();
    program::built("vmm").unwrap();
    let switch = Switch::start().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.start();
    let mut spec = running(spec_value(1, 1, false), "blk=bench:4000000000", &agent.path("images"));
    agent.put(&spec.to_string()).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    let machine = agent.processes(1);
    let [vmm] = machine[..] else { panic!("one process in the cgroup: {machine:?}") };
    let name = std::fs::read_to_string(format!("/proc/{vmm}/comm")).unwrap();
    assert_eq!(name.trim(), "vmm");
    let group = std::fs::read_to_string(format!("/proc/{vmm}/cgroup")).unwrap();
    assert!(group.contains(&format!("/vm-{}\n", uuid(1, 1))), "{group}");

    agent.kill();
    agent.start();
    agent.wait("the agent to be back", SETTLE, |status| status["settled"] == true);
    assert_eq!(agent.processes(1), machine, "it outlives its agent");

    spec["generation"] = 2.into();
    for list in ["machines", "volumes", "ports"] {
        spec[list] = serde_json::json!([]);
    }
    agent.put(&spec.to_string()).unwrap();
    agent.wait("generation 2 to settle", SETTLE, |status| status["settled"] == true && status["generation"] == 2);
    assert!(!agent.group().unwrap().join(format!("vm-{}", uuid(1, 1))).exists(), "the group goes with the machine");
}

/// Agent and VMM are killed at random moments, one, the other or both: each time the machine comes back on its volume in Ceph, in less time than
/// a dead client's lock lasts, because the agent fences the dead client and nobody else. Its neighbour and the flows are not touched. A machine
/// that is lost again and again stays down, with the reason, and leaves no lock.
#[test]
fn machines_on_ceph_come_back_from_kills_of_agent_and_vmm() {
    require!(Need::Root, Need::OpenVswitch, Need::Kvm, Need::Ceph, Need::File("/dev/net/tun"));
    program::built("vmm").unwrap();
    let ceph = shared::lease(Use::Together).unwrap();
    let switch = Switch::start().unwrap();
    // The cluster is on this machine's loopback.
    let mut agent = Agent::beside(&switch);
    agent.add_config(&format!("[ceph]\nconf = {:?}\nuser = {USER:?}\npool = {POOL:?}\n", ceph.conf()));
    agent.start();
    let words = "blk=write:7:2048 blk=verify:7:2048 blk=bench:4000000000";
    let mut spec = running(spec_value(1, 2, true), words, &agent.path("images"));
    // The cluster is shared with other tests: volumes of these names are ours alone.
    spec["ports"] = json!([]);
    let names = [own_volume(&mut spec, 1), own_volume(&mut spec, 2)];
    agent.put(&spec.to_string()).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    let lock_of = |image: &str| {
        let text = ceph.rbd(&["lock", "ls", "--format", "json", &format!("{POOL}/{image}")]).unwrap();
        let locks: serde_json::Value = serde_json::from_str(&text).unwrap();
        locks[0]["address"].as_str().map(str::to_owned)
    };
    let neighbour = (agent.processes(2), lock_of(&names[1]));
    let flows = switch.ofctl(&["--no-stats", "dump-flows", "br-int"]).unwrap();
    let mut moments = SEED;
    let mut fenced = Vec::new();
    for round in 0..3 {
        let verified = agent.console(1).matches("ok blk=verify").count();
        let (machine, address) = (
            agent.processes(1),
            lock_of(&names[0])
                .unwrap_or_else(|| panic!("round {round}: no lock\n{}\n{}", agent.log(), agent.console(1))),
        );
        let [vmm] = machine[..] else { panic!("one process: {machine:?}") };
        moments = moments.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, wait) = (moments >> 60, Duration::from_millis(moments >> 32 & 0x1ff));
        if kind % 4 == 0 {
            agent.kill();
        }
        kill(Pid::from_raw(vmm), Signal::SIGKILL).unwrap();
        pause(wait);
        if kind % 4 == 1 {
            // In the middle of what it does about the loss.
            agent.kill();
        }
        if kind % 4 < 2 {
            agent.start();
        }
        let back = || {
            let now = agent.processes(1);
            let works = agent.console(1).matches("ok blk=verify").count() > verified;
            Ok((now.len() == 1 && now != machine && works).then_some(()))
        };
        wait_for("the machine to come back", BACK, back)
            .unwrap_or_else(|error| panic!("round {round}, kind {kind}, {wait:?}: {error}\n{}", agent.log()));
        agent.wait("the host to settle", SETTLE, |status| status["settled"] == true);
        fenced.push(address);
        assert_eq!((agent.processes(2), lock_of(&names[1])), neighbour, "round {round}: the neighbour was touched");
        assert_eq!(switch.ofctl(&["--no-stats", "dump-flows", "br-int"]).unwrap(), flows, "round {round}");
    }
    let blocked = ceph.ceph(&["osd", "blocklist", "ls"]).unwrap();
    assert!(fenced.iter().all(|address| blocked.contains(address.as_str())), "{fenced:?} not in {blocked}");
    assert!(!blocked.contains(neighbour.1.as_deref().unwrap()), "{blocked}");

    kill(Pid::from_raw(agent.processes(1)[0]), Signal::SIGKILL).unwrap();
    agent.wait("the agent to give it up", SETTLE, |status| {
        let vms = agent.text("/v1/vms").unwrap();
        vms.contains("\"crashed\"") && vms.contains("and so were 3 before it") && status["settled"] == true
    });
    assert!(agent.processes(1).is_empty());
    assert_eq!(lock_of(&names[0]), None, "what stays down locks nothing");

    spec["generation"] = json!(2);
    spec["machines"] = json!([]);
    spec["retired_volumes"] = spec["volumes"].take();
    spec["volumes"] = json!([]);
    agent.put(&spec.to_string()).unwrap();
    agent.wait("generation 2 to settle", SETTLE, |status| status["settled"] == true && status["generation"] == 2);
}

/// Gives the volume of a machine an id of its own in all the world; the name of its RBD image.
fn own_volume(spec: &mut serde_json::Value, number: u32) -> String {
    let own = format!("{:08x}-{number:04x}-4000-8000-000000000001", std::process::id());
    let index = usize::try_from(number).unwrap() - 1;
    spec["volumes"][index]["id"] = json!(own);
    spec["machines"][index]["ports"] = json!([]);
    spec["machines"][index]["disks"][0]["volume"] = json!(own);
    format!("volume-{own}")
}

#[expect(clippy::disallowed_methods, reason = "the moment of a kill: no event marks it, that is its point")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
