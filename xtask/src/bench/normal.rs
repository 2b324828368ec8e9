//! The learning switch that is built into Open vSwitch: what the data path can do when nothing is asked of it.

use anyhow::Result;
use basalt_tests::ovs::Switch;

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
        let switch = Switch::start()?;
        switch.add_bridge("br-int")?;
        let machines = Machines::new(&switch, topology)?;
        for port in MACHINES {
            switch.add_port("br-int", &Topology::link(port))?;
        }
        switch.ofctl(&["add-flow", "br-int", "actions=NORMAL"])?;
        Ok(Self { machines, _switch: switch })
    }

    pub(super) const fn machines(&self) -> &Machines {
        &self.machines
    }
}
