//! Proof that an address which two machines may have (VRRP, RFC 9568) is where it was announced last, across hosts, in the kernel's data path.

use std::time::Duration;

use anyhow::{Result, ensure};
use basalt_tests::process;
use serde_json::json;

use super::trunk::SubPort;
use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::{BLUE, WEB};

/// The address that moves: no port's own.
const SHARED: &str = "10.10.1.240";
/// The sub-port of db1 on the blue network.
const PORT: &str = "pair-port";
const VLAN: u16 = 9;
/// From a change of a port to its host's flows.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// One that may have the address, and by which interface.
struct Member<'a> {
    machine: &'a Occupied,
    link: String,
}

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("an address that two machines may have is where it was announced last, across hosts", || {
        let (one, two, database) = (machines.get("web1")?, machines.get("web2")?, machines.get("db1")?);
        // The client stands beside one of the two members, and the other is on another host.
        let (far, client) = if one.vm.host == database.vm.host { (two, one) } else { (one, two) };
        let centre = cloud.centre();
        let port = json!({"name": PORT, "network": BLUE, "groups": [WEB], "trunk": {"parent": database.vm.port, "vlan": VLAN}});
        let port = centre.post("/v1/ports", &port)?;
        let near = Member { machine: database, link: format!("eth0.{VLAN}") };
        let far = Member { machine: far, link: "eth0".to_owned() };
        let seen = SubPort::of(&port).and_then(|port| port.wire(database, VLAN, CHANGE_LIMIT)).and_then(|_| {
            for port in [PORT, &far.machine.vm.port] {
                let pairs = json!({"allowed_pairs": [{"addresses": format!("{SHARED}/32")}]});
                centre.patch(&format!("/v1/ports/{port}"), &pairs)?;
            }
            let seen = moves(client, [&far, &near]);
            centre.patch(&format!("/v1/ports/{}", far.machine.vm.port), &json!({"allowed_pairs": []})).and(seen)
        });
        for member in [&near, &far] {
            member.machine.succeeds(&format!("ip addr del {SHARED}/32 dev {}", member.link))?;
        }
        database.succeeds(&format!("ip link del eth0.{VLAN}"))?;
        centre.delete(&format!("/v1/ports/{PORT}")).and(seen)
    });
}

fn moves(client: &Occupied, members: [&Member<'_>; 2]) -> Result<String> {
    let ping = format!("ping -c 2 -W 5 {SHARED}");
    ensure!(!client.succeeds(&ping)?, "{SHARED} answers before anybody has it");
    let mut told = Vec::new();
    for member in [members[0], members[1], members[0]] {
        let Member { machine, link } = member;
        let mac = machine.ok(&format!("cat /sys/class/net/{link}/address"))?.trim().to_owned();
        machine.ok(&format!("ip addr add {SHARED}/32 dev {link}"))?;
        let announce = format!("arping -U -c 1 -I {link} -s {SHARED} {SHARED}");
        let answers = || {
            machine.succeeds(&announce)?;
            Ok(client.succeeds(&ping)?.then_some(()))
        };
        process::wait_for(&format!("{SHARED} at {}", machine.vm.name), CHANGE_LIMIT, answers)?;
        let neighbour = client.ok(&format!("ip neigh show {SHARED} dev eth0"))?;
        ensure!(neighbour.contains(&mac), "{} says {neighbour}, and {SHARED} is at {mac}", client.vm.name);
        // As a crash takes it away: nothing is said.
        machine.ok(&format!("ip addr del {SHARED}/32 dev {link}"))?;
        told.push(format!("{} on {}", machine.vm.name, machine.vm.host));
    }
    Ok(format!("{} on {} pings {SHARED} at {}", client.vm.name, client.vm.host, told.join(", then ")))
}
