//! Proof that an address which two machines may have (VRRP, RFC 9568) is where it was announced last, across hosts, in the kernel's data path.

use std::time::Duration;

use anyhow::{Result, ensure};
use basalt_tests::process;
use serde_json::json;

use super::trunk::SubPort;
use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::{GREEN, WEB};

/// The address that moves: no port's own.
const SHARED: &str = "10.10.2.240";
const VLAN: u16 = 9;
const LINK: &str = "eth0.9";
/// From a change of a port to its host's flows.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("an address that two machines may have is where it was announced last, across hosts", || {
        // They are on different hosts, and on the client's network by sub-ports.
        let members = [machines.get("web1")?, machines.get("web2")?];
        let seen = join(cloud, members).and_then(|()| moves(machines.get("db1")?, members));
        for machine in members {
            machine.succeeds(&format!("ip link del {LINK}"))?;
        }
        let deleted = members.map(|machine| cloud.centre().delete(&format!("/v1/ports/{}", port_of(machine))));
        deleted.into_iter().collect::<Result<Vec<_>>>().and(seen)
    });
}

fn port_of(machine: &Occupied) -> String {
    format!("pair-{}", machine.vm.name)
}

/// Gives each member an interface on the green network that may have the address.
fn join(cloud: &Cloud, members: [&Occupied; 2]) -> Result<()> {
    for machine in members {
        let trunk = json!({"parent": machine.vm.port, "vlan": VLAN});
        let pairs = json!([{"addresses": format!("{SHARED}/32")}]);
        let port = json!({"name": port_of(machine), "network": GREEN, "groups": [WEB], "trunk": trunk, "allowed_pairs": pairs});
        let port = cloud.centre().post("/v1/ports", &port)?;
        SubPort::of(&port)?.wire(machine, VLAN, CHANGE_LIMIT)?;
    }
    Ok(())
}

fn moves(client: &Occupied, members: [&Occupied; 2]) -> Result<String> {
    let ping = format!("ping -c 2 -W 5 {SHARED}");
    ensure!(!client.succeeds(&ping)?, "{SHARED} answers before anybody has it");
    let mut told = Vec::new();
    let link = LINK;
    for machine in [members[0], members[1], members[0]] {
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
