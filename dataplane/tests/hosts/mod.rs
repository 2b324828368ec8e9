//! Hosts that forward real packets: each a private Open vSwitch in a namespace of its own, joined by an underlay, with a
//! namespace per machine plugged into it.
//!
//! The tunnel endpoint is the address of a second bridge, `br-under`, which holds the underlay link: the userspace
//! datapath finds its way to other endpoints there.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it, as a module of its own")]

mod dhcp6;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::tcp::accept;
use dataplane::switch::bridge::{Datapath, Settings, TapPort};
use dataplane::switch::host::HostSwitch;
use dataplane::switch::openflow::OpenFlow;
use model::network::Port;
use model::provider::PhysicalNetwork;
use model::spec::HostNetwork;
use ovsdb::connection::Remote;

const LIMIT: Duration = Duration::from_secs(20);
/// How long a packet that should arrive may take, on a loaded machine and through a switch that learns its way.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long is waited for a packet that should not arrive.
const SILENCE: Duration = Duration::from_millis(700);

/// What the DHCP client does with an answer.
const DHCP_SCRIPT: &str = "#!/bin/sh
[ \"$1\" = bound ] || exit 0
ip address add $ip/$mask dev $interface
[ -z \"$mtu\" ] || ip link set dev $interface mtu $mtu
[ -z \"$router\" ] || ip route add default via $router
";

/// A host with its switch.
#[derive(Debug)]
pub struct Host {
    pub host: HostSwitch,
    pub switch: Switch,
}

impl Host {
    /// Starts a host, not yet linked to another, with a bridge and a tunnel port. `nothing` names it and its endpoint.
    pub async fn start(nothing: HostNetwork) -> Result<Self> {
        Self::start_wired(nothing, &[]).await
    }

    /// The same, wired to physical networks: each the bridge `dc` of a switch of the data centre.
    pub async fn start_wired(nothing: HostNetwork, wires: &[(&str, &Switch)]) -> Result<Self> {
        Self::start_shaped(nothing, wires, BTreeMap::new()).await
    }

    /// The same, where minimums are kept of so many thousands of bits that links to physical networks carry.
    pub async fn start_shaped(
        nothing: HostNetwork,
        wires: &[(&str, &Switch)],
        bandwidth_kbps: BTreeMap<PhysicalNetwork, NonZeroU32>,
    ) -> Result<Self> {
        let endpoint = nothing.tunnel;
        let switch = Switch::start()?;
        let mut physical = BTreeMap::new();
        for (number, (network, there)) in wires.iter().enumerate() {
            let (mine, theirs) = (format!("wire{number}"), format!("host{}", endpoint.octets()[3]));
            switch.namespace().add_veth(&mine, there.namespace(), &theirs)?;
            there.add_port("dc", &theirs)?;
            physical.insert(network.parse()?, mine);
        }
        let settings = Settings {
            database: Remote::Unix(switch.db_socket()),
            bridge: "br-int".to_owned(),
            datapath: Datapath::Netdev,
            tunnel_ip: Some(endpoint),
            physical,
            bandwidth_kbps,
            export: None,
            watches_peers: true,
        };
        switch.vsctl(&["add-br", "br-under", "--", "set", "bridge", "br-under", "datapath_type=netdev"])?;
        let namespace = switch.namespace();
        namespace.add_address("br-under", &format!("{endpoint}/24"))?;
        namespace.set_mtu("br-under", 1600)?;
        namespace.up("br-under")?;
        let host = HostSwitch::start(settings, OpenFlow::unix(switch.bridge_socket("br-int")), nothing);
        host.ensure().await?;
        Ok(Self { host, switch })
    }

    /// Another agent on the same switch, which has been told nothing yet.
    pub fn again(&self, nothing: HostNetwork) -> HostSwitch {
        let settings = self.host.bridge().settings().clone();
        HostSwitch::start(settings, OpenFlow::unix(self.switch.bridge_socket("br-int")), nothing)
    }

    /// Wants these networks, and waits until packets meet their flows: the data path keeps ways of before for a moment.
    pub async fn program(&self, network: HostNetwork) -> Result<()> {
        self.host.program(network, LIMIT).await?;
        self.switch.settle()
    }

    /// Joins two hosts by an underlay link.
    pub fn link(&self, other: &Self) -> Result<()> {
        self.switch.namespace().add_veth("under0", other.switch.namespace(), "under0")?;
        Self::join(&[self, other])
    }

    /// Joins hosts by an underlay of a switch of its own: the bridge `dc`.
    pub fn link_by(underlay: &Switch, hosts: &[&Self]) -> Result<()> {
        for (number, host) in hosts.iter().enumerate() {
            let theirs = format!("under{number}");
            host.switch.namespace().add_veth("under0", underlay.namespace(), &theirs)?;
            underlay.namespace().set_mtu(&theirs, 1600)?;
            underlay.add_port("dc", &theirs)?;
        }
        Self::join(hosts)
    }

    /// Has hosts use their underlay links.
    fn join(hosts: &[&Self]) -> Result<()> {
        for host in hosts {
            let namespace = host.switch.namespace();
            // Only the bridge answers for the endpoint, not the link that it holds.
            namespace.run(&["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.under0.arp_ignore=8"])?;
            namespace.set_mtu("under0", 1600)?;
            host.switch.add_port("br-under", "under0")?;
        }
        Self::meet(hosts)
    }

    /// Has hosts know each other's endpoints.
    fn meet(hosts: &[&Self]) -> Result<()> {
        // The userspace data path drops what it tunnels until it has asked for the endpoint's MAC address; it is told, for no packet may be lost.
        for peer in hosts {
            let endpoint = peer.host.bridge().settings().tunnel_ip.context("a host without a tunnel endpoint")?;
            let mac = peer.switch.namespace().run(&["cat", "/sys/class/net/br-under/address"])?;
            for host in hosts.iter().filter(|host| !std::ptr::eq(**host, *peer)) {
                host.switch.appctl(&["tnl/neigh/set", "br-under", &endpoint.to_string(), mac.trim()])?;
            }
        }
        Ok(())
    }

    /// Kills the switch daemon and starts it again, with the endpoints of other hosts that it knew.
    pub fn restart_switch(&mut self, others: &[&Self]) -> Result<()> {
        self.switch.restart_vswitchd()?;
        others.iter().try_for_each(|other| Self::meet(&[self, other]))
    }

    /// Plugs a machine in: a namespace with the port's MAC address and no IP address yet.
    pub async fn plug(&self, port: &Port) -> Result<Machine> {
        let namespace = Namespace::new()?;
        let tap = port.tap_name();
        self.switch.namespace().add_veth(&tap, &namespace, "eth0")?;
        namespace.set_mac("eth0", &port.mac.to_string())?;
        namespace.set_mtu("eth0", 1450)?;
        let binding = port.binding.as_ref().context("the port is plugged in nowhere")?;
        let tap = TapPort { tap, port: port.id, machine: binding.machine, mac: port.mac };
        self.host.ensure_port(&tap).await?;
        Ok(Machine { namespace })
    }
}

/// A machine: a namespace with one interface, `eth0`.
#[derive(Debug)]
pub struct Machine {
    pub namespace: Namespace,
}

impl Machine {
    /// Gives it an address and a way out by hand.
    pub fn configure(&self, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
        self.namespace.add_address("eth0", &format!("{address}/24"))?;
        self.namespace.add_route("default", &gateway.to_string())
    }

    /// The same for addresses of both versions, as far as it has them; their subnets' first addresses lead out.
    pub fn configure_both(&self, four: Ipv4Addr, six: Option<Ipv6Addr>) -> Result<()> {
        let [a, b, c, _] = four.octets();
        self.configure(four, Ipv4Addr::new(a, b, c, 1))?;
        let Some(six) = six else { return Ok(()) };
        let [a, b, c, d, ..] = six.segments();
        let gateway = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 1);
        self.namespace.run(&["ip", "address", "add", &format!("{six}/64"), "dev", "eth0", "nodad"])?;
        self.namespace.run(&["ip", "-6", "route", "add", "default", "via", &gateway.to_string()]).map(drop)
    }

    /// Gives it addresses that are no port's.
    pub fn also_has(&self, addresses: &[&str]) -> Result<()> {
        let dad = |address: &str| address.contains(':').then_some("nodad");
        addresses.iter().try_for_each(|address| {
            let words = ["ip", "address", "add", address, "dev", "lo"].into_iter().chain(dad(address));
            self.namespace.run(&words.collect::<Vec<_>>()).map(drop)
        })
    }

    /// Gives it what DHCP says, by a client of its own.
    pub fn ask_dhcp(&self) -> Result<()> {
        let mut script = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempfile()?;
        script.write_all(DHCP_SCRIPT.as_bytes())?;
        let script = script.into_temp_path();
        let path = script.to_str().context("path of the script")?;
        self.namespace
            .run(&["busybox", "udhcpc", "-f", "-q", "-n", "-t", "10", "-T", "1", "-i", "eth0", "-s", path])?;
        Ok(())
    }

    /// Takes the link down and up again: its link-local address is made anew from the MAC address that it has now, and no other is left.
    pub fn restart_link(&self) -> Result<()> {
        self.namespace.run(&["ip", "link", "set", "dev", "eth0", "down"])?;
        self.namespace.up("eth0")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a bounded poll: the kernel tells nobody that a namespace has a route"
    )]
    /// Takes what the router advertisement and DHCPv6 say: gives the addresses granted and the name servers.
    pub fn ask_ipv6(&self) -> Result<(Vec<Ipv6Addr>, Vec<Ipv6Addr>)> {
        // A link that comes up solicits routers at once.
        self.restart_link()?;
        let deadline = 100;
        let mut looks = 0;
        while !self.namespace.run(&["ip", "-6", "route", "show", "default"])?.contains("via fe80::") {
            looks += 1;
            anyhow::ensure!(looks < deadline, "no default route by router advertisement");
            std::thread::sleep(Duration::from_millis(200));
        }
        let (addresses, servers) = dhcp6::lease(&self.namespace, "eth0")?;
        for address in &addresses {
            self.namespace.add_address("eth0", &format!("{address}/128"))?;
        }
        Ok((addresses, servers))
    }

    /// How many DHCPv6 questions it asked at once, and how many were answered.
    pub fn flood_dhcp6(&self) -> Result<(usize, usize)> {
        dhcp6::flood(&self.namespace, "eth0")
    }

    /// How many of three pings were answered.
    pub fn pings(&self, target: impl Into<IpAddr>) -> Result<u32> {
        self.namespace.ping(target.into(), 3, REACH_TIMEOUT)
    }

    /// Whether one of two pings got through, for targets that should be out of reach.
    pub fn leaks(&self, target: impl Into<IpAddr>) -> Result<bool> {
        Ok(self.namespace.ping(target.into(), 2, SILENCE)? > 0)
    }

    /// A server inside, on this port, for both versions of IP.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        self.namespace.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?.context("listen inside a machine")
    }

    /// Whether a connection to a server inside another machine comes about and carries bytes both ways.
    pub fn reaches(&self, target: impl Into<IpAddr>, listener: &TcpListener) -> Result<bool> {
        self.connects(target.into(), listener, REACH_TIMEOUT)
    }

    /// The same, for targets that should be out of reach.
    pub fn intrudes(&self, target: impl Into<IpAddr>, listener: &TcpListener) -> Result<bool> {
        self.connects(target.into(), listener, SILENCE)
    }

    /// Whether it reaches a server by another address and port than the server's own.
    pub fn reaches_by(&self, target: Ipv4Addr, port: u16, listener: &TcpListener) -> Result<bool> {
        self.connects_to((target, port).into(), listener, REACH_TIMEOUT)
    }

    /// The same, for targets that should be out of reach.
    pub fn intrudes_by(&self, target: Ipv4Addr, port: u16, listener: &TcpListener) -> Result<bool> {
        self.connects_to((target, port).into(), listener, SILENCE)
    }

    fn connects(&self, target: IpAddr, listener: &TcpListener, timeout: Duration) -> Result<bool> {
        self.connects_to((target, listener.local_addr()?.port()).into(), listener, timeout)
    }

    fn connects_to(&self, address: SocketAddr, listener: &TcpListener, timeout: Duration) -> Result<bool> {
        let Ok(mut client) = self.namespace.enter(|| TcpStream::connect_timeout(&address, timeout))? else {
            return Ok(false);
        };
        let mut server = accept(listener, LIMIT)?;
        client.set_read_timeout(Some(REACH_TIMEOUT))?;
        server.set_read_timeout(Some(REACH_TIMEOUT))?;
        let mut answer = [0; 4];
        client.write_all(b"ping")?;
        server.read_exact(&mut answer)?;
        server.write_all(&answer)?;
        client.read_exact(&mut answer)?;
        Ok(answer == *b"ping")
    }
}
