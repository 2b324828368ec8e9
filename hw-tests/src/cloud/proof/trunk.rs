//! Proof that a sub-port, on a VLAN of its parent's interface, is on its own network, in the kernel's data path.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::{Value, json};

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::{GREEN, WEB};

const PORT: &str = "/v1/ports/sub-port";
const VLAN: u16 = 7;
/// Another tag, which no sub-port has.
const OTHER: u16 = 8;
/// From a new sub-port to its host's flows.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check(
        "a sub-port of a machine that runs is on another network by its VLAN, and other tags go nowhere",
        || {
            let (web, database) = (machines.get("web1")?, machines.get("db1")?);
            let trunk = json!({"parent": web.vm.port, "vlan": VLAN});
            let port = json!({"name": "sub-port", "network": GREEN, "groups": [WEB], "trunk": trunk});
            let port = cloud.centre().post("/v1/ports", &port)?;
            let seen = SubPort::of(&port).and_then(|port| by_vlan(web, &port, &database.vm.address));
            for vlan in [VLAN, OTHER] {
                web.succeeds(&format!("ip link del eth0.{vlan}"))?;
            }
            cloud.centre().delete(PORT).and(seen)
        },
    );
}

/// What a machine has to know of a sub-port.
pub(super) struct SubPort {
    pub(super) mac: String,
    pub(super) address: String,
}

impl SubPort {
    /// Reads the scheduler's view of a sub-port.
    pub(super) fn of(port: &Value) -> Result<Self> {
        let fixed = port.pointer("/addresses").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut addresses = fixed.iter().filter_map(|fixed| fixed.pointer("/address")?.as_str()?.parse().ok());
        let address = addresses.find_map(|address: IpAddr| address.is_ipv4().then(|| address.to_string()));
        let mac = port.pointer("/mac").and_then(Value::as_str).map(str::to_owned);
        let found = mac.zip(address).map(|(mac, address)| Self { mac, address });
        found.with_context(|| format!("no MAC or no IPv4 address in {port}"))
    }

    /// Gives the machine an interface for it, `eth0.VLAN`, with the address that DHCP grants there.
    ///
    /// # Errors
    /// DHCP grants it none within `limit`.
    pub(super) fn wire(&self, machine: &Occupied, vlan: u16, limit: Duration) -> Result<()> {
        let address = &self.address;
        add_link(machine, vlan, &self.mac)?;
        let granted = || {
            let said = machine.succeeds(&format!("{} | grep -q 'lease of {address} obtained'", ask(vlan)))?;
            Ok(said.then_some(()))
        };
        process::wait_for("DHCP on the VLAN", limit, granted).with_context(|| format!("a lease of {address}"))?;
        machine.ok(&format!("ip addr add {address}/24 dev eth0.{vlan}")).map(drop)
    }
}

/// Takes its address on the VLAN, and pings from there.
fn by_vlan(machine: &Occupied, port: &SubPort, peer: &str) -> Result<String> {
    let address = &port.address;
    add_link(machine, OTHER, &port.mac)?;
    port.wire(machine, VLAN, CHANGE_LIMIT)?;
    ensure!(!machine.succeeds(&ask(OTHER))?, "DHCP answers on VLAN {OTHER}, which no sub-port has");
    machine.ok(&format!("ping -c 3 -W 10 -I eth0.{VLAN} {peer}"))?;
    Ok(format!(
        "{} is {address} on VLAN {VLAN}, by DHCP, and pings {peer} from there; VLAN {OTHER} is silent",
        machine.vm.name
    ))
}

fn add_link(machine: &Occupied, vlan: u16, mac: &str) -> Result<()> {
    let (link, add) = (format!("eth0.{vlan}"), "ip link add link eth0 name");
    machine.ok(&format!("{add} {link} type vlan id {vlan} && ip link set {link} address {mac} up")).map(drop)
}

/// Asks DHCP on a VLAN, once.
fn ask(vlan: u16) -> String {
    format!("udhcpc -i eth0.{vlan} -n -q -t 3 -T 1 -s /bin/true 2>&1")
}
