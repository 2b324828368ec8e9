//! What `flowctl doctor` shows of a host with one fault: that fault with its cause and its way out, and nothing else.
//!
//! Each fault is seeded into the real program's own mount or network namespace, or beside it: a device that does not open, a switch that is down
//! or has no handler threads, a cluster where nobody answers, a small MTU, a full file system. Clock and certificates are judged in the unit tests
//! of `node_agent::doctor`; an unreachable scheduler is in `daemon.rs`.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

#[expect(dead_code, reason = "not all tests use all of it")]
mod agent;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use agent::Agent;
use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;

/// Each check that is not fine, with evidence and way out.
fn faults(agent: &Agent) -> BTreeMap<String, (String, String)> {
    let doctor = agent.get("/v1/doctor").unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let bad = doctor["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false);
    bad.map(|check| (text(&check["name"]), (text(&check["evidence"]), text(&check["remedy"])))).collect()
}

/// Starts an agent with one fault and waits until doctor names it; what this machine itself lacks (`usual`) does not count.
fn expect(mut agent: Agent, usual: &[String], name: &str, evidence: &str, remedy: &str) {
    agent.start();
    let look = || {
        let mut found = faults(&agent);
        found.retain(|name, _| !usual.contains(name));
        let only = found.len() == 1 && found.get(name).is_some_and(|(e, r)| e.contains(evidence) && r.contains(remedy));
        Ok(only.then_some(()))
    };
    wait_for(name, std::time::Duration::from_secs(40), look)
        .unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", faults(&agent), agent.log()));
}

#[test]
fn each_fault_of_a_host_is_named_with_its_way_out_and_no_other() {
    require!(Need::Root, Need::OpenVswitch, Need::Kvm, Need::Ceph, Need::File("/dev/net/tun"));
    basalt_tests::program::built("vmm").unwrap();
    let switch = Switch::start().unwrap();
    let usual: Vec<String> = {
        let mut agent = Agent::new(Some(&switch));
        agent.start();
        // Makes the bridge, which the others find.
        agent.put(&agent::spec(1, 0, false)).unwrap();
        let flows = || Ok((!faults(&agent).contains_key("flows")).then_some(()));
        wait_for("a healthy host", std::time::Duration::from_secs(40), flows).unwrap();
        faults(&agent).into_keys().collect()
    };
    // Nobody keeps the clock of some machines that run this.
    assert!(usual.iter().all(|name| name == "clock" || name.starts_with("space")), "{usual:?}");

    let mut agent = Agent::new(Some(&switch));
    // A socket in the place of the device: open(2) gives ENXIO.
    let socket = agent.path("no-kvm");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    agent.begin_with(&format!("mount --bind {} /dev/kvm", socket.display()));
    expect(agent, &usual, "kvm", "open /dev/kvm", "modprobe");

    let mut agent = Agent::new(Some(&switch));
    let socket = agent.path("no-tun");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    agent.begin_with(&format!("mount --bind {} /dev/net/tun", socket.display()));
    expect(agent, &usual, "tap devices", "open /dev/net/tun", "modprobe tun");

    let agent = Agent::new(Some(&switch));
    agent.add_config("[underlay]\nip = \"192.0.2.1\"\ninterface = \"small0\"\n");
    switch.namespace().run(&["ip", "tuntap", "add", "dev", "small0", "mode", "tap"]).unwrap();
    switch.namespace().run(&["ip", "link", "set", "small0", "mtu", "1400"]).unwrap();
    expect(agent, &usual, "underlay mtu", "small0 has 1400, want 1550", "ip link set small0 mtu 1550");

    let agent = Agent::new(Some(&switch));
    agent.add_config("[[physical]]\nname = \"dc\"\ninterface = \"absent0\"\n");
    expect(agent, &usual, "physical networks", "absent0 of dc", "ip link show");

    let agent = Agent::new(Some(&switch));
    let conf = agent.path("ceph.conf");
    std::fs::write(&conf, "[global]\nmon_host = 127.0.0.1:1\nauth_client_required = none\n").unwrap();
    agent.add_config(&format!("[ceph]\nconf = {conf:?}\nuser = \"nobody\"\npool = \"volumes\"\n"));
    expect(agent, &usual, "ceph", "eph", "ceph -s");

    let mut agent = Agent::new(Some(&switch));
    let full = agent.path("state");
    std::fs::create_dir_all(&full).unwrap();
    agent.begin_with(&format!("mount -t tmpfs -o size=8m tmpfs {}", full.display()));
    let others: Vec<String> = usual.iter().filter(|name| *name != "space for state").cloned().collect();
    expect(agent, &others, "space for state", "MiB free", "free space");

    // A switch daemon with no handler thread, as one that was started too early on the kernel's data path is: any other process has none.
    let agent = Agent::new(Some(&switch));
    let config = std::fs::read_to_string(agent.path("agent.toml")).unwrap();
    std::fs::write(agent.path("agent.toml"), config.replace("datapath = \"netdev\"", "datapath = \"system\"")).unwrap();
    let mut idle = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let file = switch.dir().join("ovs-vswitchd.pid");
    let before = std::fs::read(&file).ok();
    std::fs::write(&file, format!("{}\n", idle.id())).unwrap();
    let seeded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        expect(agent, &usual, "handler threads", "0 handler threads", "n-handler-threads");
    }));
    idle.kill().unwrap();
    idle.wait().unwrap();
    if let Some(before) = before {
        std::fs::write(&file, before).unwrap();
    }
    seeded.unwrap();
}

#[test]
fn a_switch_that_is_down_is_named() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let mut switch = Switch::start().unwrap();
    switch.kill_vswitchd().unwrap();
    switch.kill_ovsdb().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.start();
    let found = faults(&agent);
    let (evidence, remedy) = &found["open vswitch"];
    assert!(evidence.contains("does not answer") && remedy.contains("openvswitch-switch"), "{found:#?}");
    assert!(found["flows"].1.contains("ovs-vswitchd"), "{found:#?}");
}
