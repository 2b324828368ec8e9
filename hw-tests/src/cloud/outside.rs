//! A machine outside of the cloud: it stands on a VLAN of the lab's physical network, behind a switch of its own.
//!
//! ```text
//!   hosts' eth2 ── bridge "physical" ── veth ──[ namespace of its own: Open vSwitch ── VLAN 100 ── "station" 10.79.0.1 ]
//! ```
//! Open vSwitch takes the tags off, for not every kernel has VLAN devices. All of it ends with the value.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::ovs::Switch;
use basalt_tests::process;

use crate::lab::network::{Network, PHYSICAL};

/// The VLAN of the physical network that it stands on.
pub const VLAN: u16 = 100;
/// Its address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// The subnet on that VLAN.
pub const SUBNET: &str = "10.79.0.0/24";
/// The end of the cable in the lab's network, and the one at the switch.
const CABLE: [&str; 2] = ["outside-w", "wire"];
const BRIDGE: &str = "outside";
const STATION: &str = "station";
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The machine and its switch.
#[derive(Debug)]
pub struct Outside {
    switch: Switch,
    network: Network,
}

impl Outside {
    /// Starts the switch and plugs it into the physical network.
    ///
    /// # Errors
    /// Open vSwitch does not start, or `ip` refuses.
    pub fn start(network: &Network) -> Result<Self> {
        let outside = Self { switch: Switch::start()?, network: network.clone() };
        let [ours, theirs] = CABLE;
        let place = outside.switch.namespace().name().to_owned();
        outside.ip(&["link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", &place])?;
        outside.ip(&["link", "set", ours, "master", PHYSICAL, "up"])?;
        outside.switch.namespace().up(theirs)?;
        outside.switch.add_bridge(BRIDGE)?;
        outside.switch.add_port(BRIDGE, theirs)?;
        let tag = format!("tag={VLAN}");
        outside.switch.vsctl(&[
            "add-port",
            BRIDGE,
            STATION,
            &tag,
            "--",
            "set",
            "interface",
            STATION,
            "type=internal",
        ])?;
        outside.switch.ofctl(&["add-flow", BRIDGE, "actions=NORMAL"])?;
        let namespace = outside.switch.namespace();
        namespace.add_address(STATION, &format!("{ADDRESS}/24"))?;
        namespace.up(STATION)?;
        Ok(outside)
    }

    /// Sends pings to `address`, all of which must be answered.
    ///
    /// # Errors
    /// One is not, or the machine is gone.
    pub fn ping(&self, address: &str, count: u32) -> Result<()> {
        let count_text = count.to_string();
        let mut ping = self.switch.namespace().command("ping");
        let text = process::run(ping.args(["-c", &count_text, "-W", "10", address]), COMMAND_LIMIT)?;
        anyhow::ensure!(text.contains(" 0% packet loss"), "from outside: {text}");
        Ok(())
    }

    /// Whether a TCP connection to `address` comes about.
    ///
    /// # Errors
    /// The address is none, or the machine is gone.
    pub fn connects(&self, address: &str, port: u16) -> Result<bool> {
        let target = SocketAddr::new(address.parse().with_context(|| format!("read the address {address}"))?, port);
        self.switch.namespace().enter(|| TcpStream::connect_timeout(&target, CONNECT_LIMIT).is_ok())
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("ip");
        process::run(command.args(["-n", self.network.name()]).args(words), COMMAND_LIMIT)
            .map(drop)
            .context("wiring the machine outside")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The cable goes with the switch's namespace as well; nobody is left to hear of an error.
        self.ip(&["link", "del", CABLE[0]]).ok();
    }
}
