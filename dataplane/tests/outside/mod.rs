//! What is outside of the cloud: the switch of a data centre, the gateway of its VLAN 100 and somebody beyond that.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it, as a module of its own")]

use std::net::Ipv4Addr;

use anyhow::{Result, bail};
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use model::Mac;
use openflow::flow::PortNo;

use crate::hosts::{Host, Machine};
use crate::topology::Cloud;

/// The OpenFlow port of the wire to the data centre.
pub const DC: PortNo = PortNo(2);
pub const GATEWAY: Mac = Mac::new([2, 9, 0, 0, 0, 1]);
pub const GATEWAY_AT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Beyond the gateway.
pub const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A MAC address as wide as a field of a packet.
pub fn wide(mac: Mac) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[10..].copy_from_slice(&mac.bytes());
    octets
}

/// A switch of the data centre, of the kind that learns.
pub fn datacentre() -> Result<Switch> {
    let switch = Switch::start()?;
    switch.vsctl(&["add-br", "dc", "--", "set", "bridge", "dc", "datapath_type=netdev"])?;
    Ok(switch)
}

/// The gateway of VLAN 100, with the address beyond it.
pub fn gateway(datacentre: &Switch) -> Result<Machine> {
    let outside = Machine { namespace: Namespace::new()? };
    datacentre.plug("dc", "gateway", &outside.namespace, &GATEWAY.to_string())?;
    datacentre.vsctl(&["set", "port", "gateway", "tag=100"])?;
    outside.restart_link()?;
    outside.namespace.add_address("eth0", &format!("{GATEWAY_AT}/24"))?;
    outside.namespace.up("lo")?;
    outside.namespace.add_address("lo", &format!("{FAR}/32"))?;
    Ok(outside)
}

/// Plugs a machine of a tenant in, with its address and its way out.
pub async fn plug(host: &Host, cloud: &Cloud, port: usize) -> Result<Machine> {
    let machine = host.plug(&cloud.ports[port]).await?;
    machine.configure(cloud.address(port), Ipv4Addr::new(10, 0, 1, 1))?;
    Ok(machine)
}

/// Looks at something a bounded number of times until it is so; the looks themselves take time.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..60 {
        if is_so()? {
            return Ok(());
        }
    }
    bail!("never {what}")
}
