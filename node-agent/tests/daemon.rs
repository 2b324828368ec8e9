//! The program as operators run it: real processes, a real Open vSwitch, real taps and files; killed, starved and lied to.
//!
//! Each test has directories and a switch of its own. What needs root, OVS or a VMM says so when it is missing.

#[expect(
    clippy::unwrap_used,
    dead_code,
    reason = "support code of tests: a failure is a failed test; not all tests use all of it"
)]
mod agent;

use std::net::UdpSocket;
use std::time::Duration;

use agent::{Agent, spec};
use basalt_tests::ipfix::Told;
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;

const SETTLE: Duration = Duration::from_secs(60);

/// A spec becomes volumes, taps, ports and flows; killing the agent and starting it again changes none of them; a next spec takes them away.
#[test]
fn a_spec_becomes_real_and_survives_the_agent() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let switch = Switch::start().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.start();
    agent.put(&spec(1, 2, false)).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    let flows = switch.ofctl(&["--no-stats", "dump-flows", "br-int"]).unwrap();
    assert!(flows.contains("dl_src=fa:16:3e:00:00:01"), "anti-spoofing of the first port is missing:\n{flows}");
    let ofport = switch.ofport("tap1").unwrap();
    assert_eq!(agent.files("state/volumes").len(), 2);
    assert_eq!(agent.get("/v1/flows/diff").unwrap()["same"], true);

    agent.kill();
    agent.start();
    agent.wait("the agent to be back", SETTLE, |status| status["settled"] == true && status["generation"] == 1);
    assert_eq!(switch.ofport("tap1").unwrap(), ofport, "the port was not touched");
    assert_eq!(switch.ofctl(&["--no-stats", "dump-flows", "br-int"]).unwrap(), flows, "the flows were not touched");

    agent.put(&spec(2, 0, false)).unwrap();
    agent.wait("generation 2 to settle", SETTLE, |status| status["settled"] == true && status["generation"] == 2);
    assert_eq!(agent.files("state/volumes").len(), 0, "retired volumes are deleted");
    assert!(switch.ofport("tap1").is_err());
    assert!(!switch.ofctl(&["dump-flows", "br-int"]).unwrap().contains("fa:16:3e:00:00:01"));
}

/// The model and Open vSwitch agree about a packet, and `why` names what stops one.
#[test]
fn questions_are_answered_from_the_model_and_from_the_switch() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let switch = Switch::start().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.start();
    agent.put(&spec(1, 2, false)).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    let traced = agent.post("/v1/trace", r#"{"port":"vm1","dst":"vm2","proto":"icmp"}"#).unwrap();
    assert_eq!(traced["agree"], true, "{traced:#}");
    let why = agent.post("/v1/why", r#"{"vm":"vm1","dst":"10.9.0.99","proto":"tcp","dst_port":23}"#).unwrap();
    assert!(why["line"].as_str().unwrap().contains("10.9.0.99"), "{why:#}");
    assert_eq!((&why["stopped"], &why["cause"]), (&true.into(), &"no_such_address".into()), "{why:#}");
    let error = agent.post("/v1/trace", r#"{"port":"nobody","dst":"vm2"}"#).unwrap_err();
    assert!(error.contains("404") && error.contains("nobody"), "{error}");
    let doctor = agent.get("/v1/doctor").unwrap();
    let ovs = doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "open vswitch").unwrap();
    assert_eq!(ovs["ok"], true, "{ovs}");
    assert!(agent.text("/metrics").unwrap().ends_with("# EOF\n"));
}

/// An Ethernet frame of vm1: UDP from 10.9.0.11 to port 53 of 10.9.0.12, which is vm2.
const QUESTION: &str = "fa163e000002fa163e00000108004500001c00004000401126a90a09000b0a09000c0fa0003500080000";

/// A collector hears what ports and rules counted, and why packets were dropped, in the words of `flowctl top`.
#[test]
fn a_collector_hears_what_ports_and_rules_counted() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let switch = Switch::start().unwrap();
    let collector = switch.namespace().enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
    collector.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut agent = Agent::new(Some(&switch));
    let address = collector.local_addr().unwrap();
    agent.add_config(&format!("[ipfix]\ncollectors = [\"{address}\"]\ncounters_seconds = 5\ndomain = 3\n"));
    agent.start();
    let mut spec = agent::spec_value(1, 2, false);
    let group = agent::uuid(7, 1);
    let rule = serde_json::json!({ "id": agent::uuid(8, 1), "direction": "egress", "ethertype": "IPv4", "protocol": {"udp": [53, 53]}, "remote": "any" });
    spec["groups"] = serde_json::json!([{ "id": group, "name": "askers", "key": 1, "rules": [rule] }]);
    spec["ports"][0]["groups"] = serde_json::json!([group]);
    agent.put(&spec.to_string()).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    // The first two are allowed out, and not in, for vm2 has no rules; the third is spoofed.
    let spoofed = QUESTION.replacen("0a09000b", "0a090063", 1);
    for frame in [QUESTION, QUESTION, &spoofed] {
        switch.ofctl(&["packet-out", "br-int", &format!("in_port=tap1,packet={frame},actions=table")]).unwrap();
    }
    let mut told = Told::default();
    let mut octets = [0; 65_536];
    let allowed = || "security group askers: allow udp port 53 to anyone (rule 00000008)".to_owned();
    let hears = || {
        while let Ok((length, exporter)) = collector.recv_from(&mut octets) {
            told.take(exporter, &octets[..length])?;
        }
        Ok((told.selectors.get(&allowed()) == Some(&2)).then_some(()))
    };
    let seen = wait_for("the rule's count at the collector", SETTLE, hears);
    seen.unwrap_or_else(|error| panic!("{error:#}: {told:#?}"));
    assert_eq!(told.domains, [3].into());
    for (port, direction) in [("p1", 0), ("p1", 1), ("p2", 0), ("p2", 1)] {
        assert!(told.ports.contains_key(&(port.to_owned(), direction)), "{:?}", told.ports);
    }
    let dropped =
        |table: &str| told.selectors.iter().any(|(reason, packets)| reason.starts_with(table) && *packets > 0);
    assert!(dropped("deny: ") && dropped("classify: "), "{:#?}", told.selectors);
}

/// What the model of the flows cannot know: a machine that does not run, flows that somebody else put in, a switch that is gone.
#[test]
fn faults_outside_of_the_model_are_blamed_by_name() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let mut switch = Switch::start().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.start();
    let mut spec = agent::spec_value(1, 2, false);
    for port in spec["ports"].as_array_mut().unwrap() {
        port["port_security"] = false.into();
    }
    agent.put(&spec.to_string()).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    let blamed = |agent: &Agent, more: &str| {
        let question = format!(r#"{{"vm":"vm1","dst":"vm2","proto":"tcp","dst_port":22{more}}}"#);
        let why = agent.post("/v1/why", &question).unwrap();
        assert_eq!(why["stopped"], true, "{why:#}");
        assert!(!why["remedy"].as_str().unwrap().is_empty(), "{why:#}");
        (why["cause"].as_str().unwrap().to_owned(), why["line"].as_str().unwrap().to_owned())
    };
    let (cause, line) = blamed(&agent, "");
    assert!(cause == "machine_down" && line.contains("vm vm2 is "), "{cause}: {line}");
    let (cause, line) = blamed(&agent, r#","octets":9001"#);
    assert!(cause == "too_large" && line.contains("9001"), "{cause}: {line}");

    switch.ofctl(&["add-flow", "br-int", "priority=60000,in_port=tap1 actions=drop"]).unwrap();
    let (cause, line) = blamed(&agent, "");
    assert!(cause == "stale_flows" && line.contains("flows in the switch"), "{cause}: {line}");
    switch.kill_vswitchd().unwrap();
    let (cause, line) = blamed(&agent, "");
    assert!(cause == "switch_down" && line.contains("Open vSwitch"), "{cause}: {line}");
}

/// A packet that leaves for another host is stopped when that host is down, and is not when it is up.
#[test]
fn a_host_that_is_down_is_blamed() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let switch = Switch::start().unwrap();
    let peer = Namespace::new().unwrap();
    switch.namespace().add_veth("under0", &peer, "under0").unwrap();
    switch.namespace().add_address("under0", "192.0.2.1/24").unwrap();
    peer.add_address("under0", "192.0.2.2/24").unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.add_config("[underlay]\nip = \"192.0.2.1\"\n");
    agent.start();
    agent.put(&agent::spec_with_a_peer()).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    let asked = || agent.post("/v1/why", r#"{"vm":"vm1","dst":"vm2","proto":"tcp","dst_port":22}"#).unwrap();
    let up = asked();
    let last = up["details"].as_array().unwrap().last().unwrap().as_str().unwrap();
    assert!(up["stopped"] == false && last.contains("192.0.2.2 answers"), "{up:#}");
    peer.run(&["ip", "address", "del", "192.0.2.2/24", "dev", "under0"]).unwrap();
    switch.namespace().run(&["ip", "neighbour", "flush", "dev", "under0"]).unwrap();
    let down = asked();
    assert_eq!((&down["stopped"], &down["cause"]), (&true.into(), &"host_down".into()), "{down:#}");
    let line = down["line"].as_str().unwrap();
    assert!(line.contains("192.0.2.2") && line.contains(&agent::uuid(9, 2)), "{down:#}");
}

/// A question whose sender is on another host is answered for the leg that is here: out of the tunnel, by the model and by Open vSwitch; one that
/// has neither end here names the host to ask.
#[test]
fn a_sender_on_another_host_is_asked_about_as_its_packets_arrive_here() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let switch = Switch::start().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.add_config("[underlay]\nip = \"192.0.2.1\"\n");
    agent.start();
    agent.put(&agent::spec_with_a_peer()).unwrap();
    agent.wait("generation 1 to settle", SETTLE, |status| status["settled"] == true);
    let traced = agent.post("/v1/trace", r#"{"port":"vm2","dst":"vm1","proto":"tcp","dst_port":22}"#).unwrap();
    assert_eq!(traced["agree"], true, "{traced:#}");
    let why = agent.post("/v1/why", r#"{"vm":"vm2","dst":"vm1","proto":"tcp","dst_port":22}"#).unwrap();
    let (line, first) = (why["line"].as_str().unwrap(), why["details"][0].as_str().unwrap());
    assert!(line.contains("out of the tunnel from 192.0.2.2"), "{why:#}");
    assert!(first.contains(&agent::uuid(9, 2)) && first.contains("ask there"), "{why:#}");
    let away = agent.post("/v1/why", r#"{"vm":"vm1","dst":"vm2","proto":"tcp","dst_port":22}"#).unwrap();
    assert!(away["line"].as_str().unwrap().contains("192.0.2.2"), "{away:#}");
    let error = agent.post("/v1/why", r#"{"vm":"vm2","dst":"10.9.0.99","proto":"icmp"}"#).unwrap_err();
    assert!(error.contains("elsewhere") && error.contains("192.0.2.2"), "{error}");
}

/// Machines are placed by what a host is wired to: what works, not what is configured.
#[test]
fn a_host_is_wired_to_what_is_plugged_in() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let switch = Switch::start().unwrap();
    switch.namespace().add_tap("eth5").unwrap();
    let mut agent = Agent::new(Some(&switch));
    let wired = |name: &str, interface: &str| format!("[[physical]]\nname = \"{name}\"\ninterface = \"{interface}\"\n");
    agent.add_config(&(wired("dc", "absent0") + &wired("lab", "eth5")));
    agent.start();
    agent.put(&spec(1, 0, false)).unwrap();
    let look = || {
        // There is none before the first look.
        let report = agent.get("/v1/report").unwrap_or_default();
        Ok((report["resources"]["physical_networks"] == serde_json::json!(["lab"])).then_some(()))
    };
    wait_for("the one that is there to be reported", SETTLE, look).unwrap();
}

/// A switch that is down is named with the way out, the rest goes on, and the host settles by itself once the switch is back.
#[test]
fn a_switch_that_is_down_holds_up_only_what_needs_it() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let mut switch = Switch::start().unwrap();
    switch.kill_vswitchd().unwrap();
    switch.kill_ovsdb().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.start();
    agent.put(&spec(1, 1, false)).unwrap();
    agent.wait("the problem to be named", SETTLE, |status| {
        let failing = status["failing"].as_array().unwrap();
        failing
            .iter()
            .any(|entry| entry["object"] == "flows" && entry["remedy"].as_str().unwrap().contains("openvswitch"))
    });
    assert_eq!(agent.files("state/volumes").len(), 1, "volumes need no switch");
    switch.start_ovsdb().unwrap();
    switch.start_vswitchd().unwrap();
    agent.wait("the host to settle by itself", SETTLE, |status| status["settled"] == true);
}

/// A volume on Ceph without a cluster is named with the way out; what needs no Ceph settles.
#[test]
fn a_missing_ceph_holds_up_only_its_volumes() {
    require!(Need::Root, Need::OpenVswitch, Need::File("/dev/net/tun"));
    let switch = Switch::start().unwrap();
    let mut agent = Agent::new(Some(&switch));
    agent.start();
    agent.put(&spec(1, 1, true)).unwrap();
    agent.wait("the problem to be named", SETTLE, |status| {
        let failing = status["failing"].as_array().unwrap();
        let named = |entry: &serde_json::Value| {
            entry["object"].as_str().unwrap().starts_with("volume")
                && entry["remedy"].as_str().unwrap().contains("ceph.conf")
        };
        failing.iter().any(named)
    });
    agent.wait("the port to work", SETTLE, |_| switch.ofport("tap1").is_ok());
}

/// Older specs, other hosts' specs and nonsense are refused with a word for programs; what is in force stays.
#[test]
fn bad_specs_are_refused_and_change_nothing() {
    let mut agent = Agent::new(None);
    agent.start();
    agent.put(&spec(5, 0, false)).unwrap();
    for (body, status, code) in [
        (spec(4, 0, false), "409", "stale_generation"),
        (spec(5, 1, false), "409", "generation_differs"),
        ("{".to_owned(), "400", "invalid"),
        (r#"{"version":"9"}"#.to_owned(), "400", "invalid"),
    ] {
        let error = agent.put(&body).unwrap_err();
        assert!(error.contains(status) && error.contains(code), "{error}");
    }
    assert_eq!(agent.get("/v1/spec").unwrap()["generation"], 5);
}

/// A damaged ledger is refused with the way out and never deleted.
#[test]
fn a_damaged_ledger_is_refused_and_kept() {
    let mut agent = Agent::new(None);
    let path = agent.path("state/ledger/spec.json");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"{\"version\":\"1\",").unwrap();
    let error = agent.start_failing();
    assert!(error.contains("damaged") && error.contains("way out") && error.contains("spec.json"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"{\"version\":\"1\",");
}

/// A host that never joined says how to join; an unknown key is refused by name.
#[test]
fn a_host_that_cannot_begin_says_why() {
    let mut agent = Agent::new(None);
    agent.configure("[spec]\nsource = \"scheduler\"\n");
    assert!(agent.start_failing().contains("node-agent join"));
    agent.configure("[spec]\nsauce = \"api\"\n");
    assert!(agent.start_failing().contains("sauce"));
}

/// A host that has joined goes on by its ledger when the scheduler cannot be reached, and says so with the way out.
#[test]
fn an_unreachable_scheduler_is_named_and_the_ledger_goes_on() {
    let mut agent = Agent::new(None);
    agent.start();
    agent.put(&spec(7, 0, false)).unwrap();
    agent.kill();
    // An identity as joining gives it, for a scheduler at a port where nobody listens.
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["host".to_owned()]).unwrap().self_signed(&key).unwrap();
    let identity = node_agent::identity::Identity {
        host: "00000009-0000-4000-8000-000000000001".parse().unwrap(),
        name: "host1".to_owned(),
        scheduler: "https://127.0.0.1:1".to_owned(),
    };
    let credentials = node_agent::identity::Credentials {
        key: key.serialize_pem(),
        certificate: certificate.pem(),
        ca: certificate.pem(),
    };
    node_agent::identity::keep(&agent.path("state"), &identity, &credentials).unwrap();
    agent.configure("[spec]\nsource = \"scheduler\"\n");
    agent.start();
    agent.wait("the problem to be named", SETTLE, |status| {
        status["link"]["connected"] == false && !status["link"]["problem"]["remedy"].as_str().unwrap_or("").is_empty()
    });
    let doctor = agent.get("/v1/doctor").unwrap();
    let link = doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "scheduler link").unwrap();
    assert_eq!(link["ok"], false, "{link}");
    assert!(!link["evidence"].as_str().unwrap().is_empty() && !link["remedy"].as_str().unwrap().is_empty(), "{link}");
    assert_eq!(agent.get("/v1/spec").unwrap()["generation"], 7);
    let error = agent.put(&spec(8, 0, false)).unwrap_err();
    assert!(error.contains("other_source"), "{error}");
}
