//! Machines of the real VMM under the real agent: native guests on this machine's KVM, in plain cgroups, killed from both sides.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

#[expect(dead_code, reason = "not all tests use all of it")]
mod agent;

use std::time::Duration;

use agent::{Agent, running, spec_value, uuid};
use basalt_tests::ovs::Switch;
use basalt_tests::skip::Need;
use basalt_tests::{program, require, systemd};

const SETTLE: Duration = Duration::from_secs(60);

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
