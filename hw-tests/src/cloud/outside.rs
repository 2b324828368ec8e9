//! A machine outside of the cloud: it stands on a VLAN of the lab's physical network, behind a switch of its own.
//!
//! ```text
//!   hosts' eth2 ── bridge "physical" ── veth ──[ namespace of its own: Open vSwitch ── VLAN 100 ── "station" 10.79.0.1 ]
//! ```
//! Open vSwitch takes the tags off, for not every kernel has VLAN devices. All of it ends with the value.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::ovs::Switch;
use basalt_tests::process::{self, Daemon};

use crate::lab::network::{Network, PHYSICAL};

/// The VLAN of the physical network that it stands on.
pub const VLAN: u16 = 100;
/// Its address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// The subnet on that VLAN.
pub const SUBNET: &str = "10.79.0.0/24";
/// Its address of IPv6, and the gateway of that subnet.
pub const ADDRESS6: &str = "fd00:79::1";
/// The IPv6 subnet on that VLAN.
pub const SUBNET6: &str = "fd00:79::/64";
/// What it says to those who connect to its port 80.
pub const WORD: &str = "outside";
/// Its port that says [`WORD`].
pub const PORT: u16 = 80;
/// The end of the cable in the lab's network, and the one at the switch.
const CABLE: [&str; 2] = ["outside-w", "wire"];
const BRIDGE: &str = "outside";
const STATION: &str = "station";
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Connections that show a service, one after the other.
const TURNS: u32 = 4;
/// The longest word of a service that is read.
const WORD_LIMIT: u64 = 1024;

/// The machine and its switch.
#[derive(Debug)]
pub struct Outside {
    // Before the switch, whose namespace it runs in.
    service: Option<Daemon>,
    switch: Switch,
    network: Network,
}

impl Outside {
    /// Starts the switch and plugs it into the physical network.
    ///
    /// # Errors
    /// Open vSwitch does not start, or `ip` refuses.
    pub fn start(network: &Network) -> Result<Self> {
        let mut outside = Self { service: None, switch: Switch::start()?, network: network.clone() };
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
        // Nobody else has it: no time is spent on asking.
        namespace.run(&["ip", "-6", "addr", "add", &format!("{ADDRESS6}/64"), "dev", STATION, "nodad"])?;
        let log = outside.switch.dir().join("service.log");
        let words = ["busybox", "nc", "-ll", "-p", &PORT.to_string(), "-e", "echo", WORD];
        outside.service = Some(namespace.start("nc", &words, &log)?);
        Ok(outside)
    }

    /// Has it send what is for an IPv6 `prefix` by the router `next_hop`, or take that for neighbours.
    ///
    /// # Errors
    /// `ip` refuses, or the machine is gone.
    pub fn route6(&self, prefix: &str, next_hop: Option<&str>) -> Result<()> {
        let mut words = vec!["ip", "-6", "route", "replace", prefix];
        words.extend(next_hop.into_iter().flat_map(|hop| ["via", hop]));
        words.extend(["dev", STATION]);
        self.switch.namespace().run(&words).map(drop)
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

    /// What the service at `address` says in a TCP connection until that ends or falls silent; nothing where no connection comes about.
    ///
    /// # Errors
    /// The address is none, or the machine is gone.
    pub fn hears(&self, address: &str, port: u16) -> Result<Option<String>> {
        let target = SocketAddr::new(address.parse().with_context(|| format!("read the address {address}"))?, port);
        self.switch.namespace().enter(|| -> Result<Option<String>> {
            let Ok(stream) = TcpStream::connect_timeout(&target, CONNECT_LIMIT) else { return Ok(None) };
            stream.set_read_timeout(Some(CONNECT_LIMIT))?;
            let mut word = Vec::new();
            // A connection that is cut halfway has said what it has said.
            stream.take(WORD_LIMIT).read_to_end(&mut word).ok();
            Ok(Some(String::from_utf8_lossy(&word).trim_end().to_owned()))
        })?
    }

    /// Shows that the service at `address` says `word`, and says it again: the first packets of a flow go another way through switches than later ones.
    ///
    /// # Errors
    /// It does not.
    pub fn hears_often(&self, address: &str, port: u16, word: &str) -> Result<()> {
        for turn in 1..=TURNS {
            let heard = self.hears(address, port)?;
            anyhow::ensure!(
                heard.as_deref() == Some(word),
                "connection {turn} from outside to port {port} of {address} hears {heard:?}, not {word:?}"
            );
        }
        Ok(())
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
