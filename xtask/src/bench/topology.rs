//! The topology that both sides get: ports on networks of 50, one router, one security group of 10 rules with a remote group on every port, every
//! other port on this host.
//!
//! Owns the numbers and, for ours, the specification made from them. Never starts anything.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use model::network::{Binding, FixedIp, Network, Port, Router, RouterInterface, Subnet};
use model::security::{Direction, Ethertype, PortRange, Protocol, Remote, Rule, SecurityGroup};
use model::spec::{Generation, NodeSpec, SpecParts};
use model::{HostId, Mac, MachineId, NetworkId, PortId, RouterId, RuleId, SecurityGroupId, SubnetId, Vni};
use uuid::Uuid;

/// Ports on one network.
pub(super) const PER_NETWORK: u32 = 50;
/// The port that servers in machines listen on: inside of the range that a rule allows.
pub(super) const SERVICE: u16 = 8080;

/// So many ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Topology {
    pub(super) ports: u32,
}

/// Machines that packets are sent between: two on the first network, one on the second.
pub(super) const MACHINES: [u32; 3] = [0, 2, PER_NETWORK];

fn id(kind: u128, number: u32) -> Uuid {
    Uuid::from_u128(kind << 64 | u128::from(number))
}

fn octet(number: u32, shift: u32) -> u8 {
    number.to_be_bytes()[usize::try_from(3 - shift / 8).unwrap_or(3)]
}

impl Topology {
    pub(super) const fn new(ports: u32) -> Self {
        Self { ports }
    }

    pub(super) fn networks(self) -> u32 {
        self.ports.div_ceil(PER_NETWORK)
    }

    /// Whether a port is on this host.
    pub(super) fn is_here(port: u32) -> bool {
        port.is_multiple_of(2)
    }

    pub(super) fn here(self) -> impl Iterator<Item = u32> {
        (0..self.ports).filter(|port| Self::is_here(*port))
    }

    pub(super) fn there(self) -> impl Iterator<Item = u32> {
        (0..self.ports).filter(|port| !Self::is_here(*port))
    }

    pub(super) fn subnet(network: u32) -> (u8, u8) {
        (octet(network / 250, 0), octet(network % 250, 0))
    }

    pub(super) fn gateway(network: u32) -> Ipv4Addr {
        let (b, c) = Self::subnet(network);
        Ipv4Addr::new(10, b, c, 254)
    }

    pub(super) fn router_mac(network: u32) -> Mac {
        Mac::new([2, 1, 0, 0, octet(network, 8), octet(network, 0)])
    }

    /// The network of a port. Ports past the last are added to the first network.
    pub(super) fn network_of(self, port: u32) -> u32 {
        if port < self.ports { port / PER_NETWORK } else { 0 }
    }

    pub(super) fn address(self, port: u32) -> Ipv4Addr {
        let (b, c) = Self::subnet(self.network_of(port));
        let last = if port < self.ports { port % PER_NETWORK + 1 } else { port - self.ports + 100 };
        Ipv4Addr::new(10, b, c, octet(last, 0))
    }

    pub(super) fn mac(self, port: u32) -> Mac {
        let kind = if port < self.ports { 2 } else { 3 };
        Mac::new([2, kind, 0, octet(port, 16), octet(port, 8), octet(port, 0)])
    }

    /// The device of a port on this host.
    pub(super) fn link(port: u32) -> String {
        format!("d{port}")
    }

    pub(super) fn port_id(port: u32) -> PortId {
        PortId::from_uuid(id(6, port))
    }

    pub(super) fn machine_id(port: u32) -> MachineId {
        MachineId::from_uuid(id(7, port))
    }

    pub(super) fn port(self, number: u32) -> Port {
        let network = self.network_of(number);
        let host = u32::from(!Self::is_here(number) && number < self.ports) + 1;
        Port {
            id: Self::port_id(number),
            name: format!("lp{number}"),
            network: NetworkId::from_uuid(id(2, network)),
            key: number + 1,
            mac: self.mac(number),
            addresses: vec![FixedIp {
                subnet: SubnetId::from_uuid(id(3, network)),
                address: self.address(number).into(),
            }],
            groups: vec![SecurityGroupId::from_uuid(id(5, 0))],
            allowed_pairs: Vec::new(),
            qos: model::qos::Qos::default(),
            port_security: true,
            trunk: None,
            mirror: None,
            arriving: None,
            binding: Some(Binding {
                machine: Self::machine_id(number),
                hostname: format!("lp{number}"),
                host: HostId::from_uuid(id(1, host)),
                tunnel: Ipv4Addr::new(127, 0, 0, octet(host, 0)),
            }),
        }
    }

    /// The group that every port is in, with more rules for single ports above 9000.
    pub(super) fn group(more: &[u16]) -> Result<SecurityGroup> {
        let this = SecurityGroupId::from_uuid(id(5, 0));
        let tcp = |first, last| PortRange::new(first, last).map(Protocol::Tcp);
        let prefix = Remote::Prefix("10.0.0.0/8".parse().context("10.0.0.0/8")?);
        let mut rules = vec![
            (Direction::Egress, Ethertype::IPv4, Protocol::Any, Remote::Any),
            (Direction::Egress, Ethertype::IPv6, Protocol::Any, Remote::Any),
            (Direction::Ingress, Ethertype::IPv4, Protocol::Any, Remote::Group(this)),
            (Direction::Ingress, Ethertype::IPv4, tcp(22, 22)?, Remote::Any),
            (Direction::Ingress, Ethertype::IPv4, tcp(80, 80)?, Remote::Any),
            (Direction::Ingress, Ethertype::IPv4, tcp(443, 443)?, Remote::Any),
            (Direction::Ingress, Ethertype::IPv4, tcp(8000, 8999)?, Remote::Any),
            (Direction::Ingress, Ethertype::IPv4, Protocol::Icmp { kind: None, code: None }, Remote::Any),
            (Direction::Ingress, Ethertype::IPv4, Protocol::Udp(PortRange::new(53, 53)?), Remote::Any),
            (Direction::Ingress, Ethertype::IPv4, tcp(5432, 5432)?, prefix),
        ];
        for port in more {
            rules.push((Direction::Ingress, Ethertype::IPv4, tcp(*port, *port)?, Remote::Any));
        }
        let rule = |(number, (direction, ethertype, protocol, remote))| Rule {
            id: RuleId::from_uuid(id(8, number)),
            direction,
            ethertype,
            protocol,
            remote,
        };
        let rules = (1..).zip(rules).map(rule).collect();
        Ok(SecurityGroup { id: this, name: "sg0".to_owned(), key: 1, stateful: true, rules })
    }

    /// What our agent is told.
    pub(super) fn spec(self) -> Result<NodeSpec> {
        let networks = (0..self.networks())
            .map(|number| {
                Ok(Network {
                    id: NetworkId::from_uuid(id(2, number)),
                    name: format!("sw{number}"),
                    vni: Vni::try_from(5001 + number)?,
                    mtu: 1450,
                    provider: None,
                    routed_prefixes: Vec::new(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let subnets = (0..self.networks())
            .map(|number| {
                let (b, c) = Self::subnet(number);
                Ok(Subnet {
                    id: SubnetId::from_uuid(id(3, number)),
                    name: format!("sw{number}"),
                    network: NetworkId::from_uuid(id(2, number)),
                    cidr: format!("10.{b}.{c}.0/24").parse()?,
                    gateway: Some(Self::gateway(number).into()),
                    dhcp: true,
                    announced: model::network::Announced::default(),
                    dns: Vec::new(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let interfaces = (0..self.networks()).map(|number| RouterInterface {
            subnet: SubnetId::from_uuid(id(3, number)),
            address: Self::gateway(number).into(),
            mac: Self::router_mac(number),
        });
        let router = Router {
            id: RouterId::from_uuid(id(4, 0)),
            name: "lr0".to_owned(),
            key: 1,
            interfaces: interfaces.collect(),
            routes: Vec::new(),
            external: None,
            ipv6_gateway: None,
            firewall: None,
        };
        let parts = SpecParts {
            generation: Generation(1),
            host: HostId::from_uuid(id(1, 1)),
            tunnel: Ipv4Addr::LOCALHOST,
            networks,
            subnets,
            routers: vec![router],
            address_groups: Vec::new(),
            balancers: Vec::new(),
            firewall_policies: Vec::new(),
            mirrors: Vec::new(),
            groups: vec![Self::group(&[])?],
            ports: (0..self.ports).map(|port| self.port(port)).collect(),
            images: Vec::new(),
            volumes: Vec::new(),
            retired_volumes: Vec::new(),
            machines: Vec::new(),
        };
        Ok(NodeSpec::check(parts)?)
    }
}
