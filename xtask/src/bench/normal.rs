//! The learning switch that is built into Open vSwitch: what the data path can do when nothing is asked of it.

use anyhow::Result;
use basalt_tests::ovs::{Plugged, Switch};

use super::datapath::Machines;
use super::topology::{MACHINES, Topology};

/// A switch with one flow.
#[derive(Debug)]
pub(super) struct Host {
    machines: Machines,
    _switch: Switch,
}

impl Host {
    pub(super) fn start(topology: &Topology) -> Result<Self> {
        let switch = Switch::start_with_dummies()?;
        switch.add_bridge("br-int")?;
        let machines = Machines::new(&switch, topology)?;
        // As many ports as the others have: the userspace datapath asks each of them for packets in turn.
        let ports: Vec<Plugged> = topology.here().map(plugged).collect();
        switch.add_dummies("br-int", &ports)?;
        switch.ofctl(&["add-flow", "br-int", "actions=NORMAL"])?;
        Ok(Self { machines, _switch: switch })
    }

    pub(super) const fn machines(&self) -> &Machines {
        &self.machines
    }
}

fn plugged(port: u32) -> Plugged {
    Plugged { link: Topology::link(port), is_dummy: !MACHINES.contains(&port), ids: vec![("port", port.to_string())] }
}
