//! What is to blame for a packet that goes nowhere, in terms of the objects that their owners can change: one cause, one line, one way out.
//!
//! Owns [`blame`], [`Blame`] and [`Cause`]. The walk has said in which table the packet ended; this looks up in the specification why it had to.
//! Invariant: whatever leaves the switch in some copy has no blame, and whatever leaves it in none has exactly one.

use std::fmt;
use std::net::IpAddr;

use model::balancer::Transport;
use model::network::{Port, Router};
use model::provider::VlanId;
use model::security::{Direction, Protocol, Remote, Rule, SecurityGroup};
use model::spec::HostNetwork;
use model::{AddressGroupId, Mac};
use openflow::flow::{Field, eth_type, ip_proto};
use serde::{Deserialize, Serialize};

use super::{Packet, PacketError, Path, Verdict};
use crate::compile::PortNumbers;
use crate::family::{self, Family};
use crate::feature::balancer::{ITSELF, NO_HEALTHY_MEMBER, NO_LISTENER, NO_MEMBER, NO_MORE};
use crate::feature::firewall::{DENIES, NO_POLICY, NO_RULE};
use crate::feature::floating::{NO_SENDER, NO_WAY_OUT};
use crate::feature::north::{NO_PORT, NOT_ITS_OWN, NOT_ROUTED};
use crate::feature::path_mtu;
use crate::feature::provider::NOT_WIRED;
use crate::feature::router::LOST;
use crate::feature::security::rule;
use crate::feature::snat::{NO_GATEWAY_HOST, NOT_FORWARDED};
use crate::feature::trunk::OTHER_TAG_NOTE;
use crate::feature::way_out::NO_FLOATING_IP;
use crate::table::Table;

/// What changes what a firewall allows.
const FIREWALL_REMEDY: &str = "flowctl firewall-policy add-rule POLICY puts a rule before it that allows it; flowctl router show names the policies";

/// Rules, and members, that are named at most, the closest first.
const RULES_MAX: usize = 3;

/// Why a packet goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its source is none that its port may use.
    SpoofedSource,
    /// It says what only routers and servers say, or speaks for a neighbour.
    ForbiddenMessage,
    /// It has the tag of a VLAN that no sub-port of its trunk has.
    NoSubPort,
    /// Nobody on the subnet has its destination.
    NoSuchAddress,
    /// The port that has its destination belongs to no running machine.
    NotPluggedIn,
    /// Its sender's subnet has no router.
    NoRouter,
    /// The router knows no way to its destination.
    NoRoute,
    /// The next hop of the route is no port.
    NoNextHop,
    /// Its port has no floating IP, and SNAT of its router is off.
    SnatOff,
    /// No host is up and wired that could be the gateway of its router.
    NoGatewayHost,
    /// Its address is of no prefix that the data centre routes to the network that its router leads out to.
    NotRouted,
    /// Its router leads no IPv6 out.
    NoIpv6Gateway,
    /// Its router forwards nothing that comes to this port of its address, or not to those behind itself.
    NotForwarded,
    /// This host is not wired to the physical network that it goes to.
    NotWired,
    /// The guarded port is in no security group.
    NoGroup,
    /// There are rules for such packets, but not with this other side.
    WrongRemote,
    /// No rule is for such packets.
    NoRule,
    /// The firewall of the router whose border it would cross does not allow it.
    Firewall,
    /// The load balancer that it is for does not listen for it.
    NoListener,
    /// The load balancer has nobody to give it to.
    NoMember,
    /// As many connections of its listener are open from this host as may be.
    ConnectionLimit,
    /// The connection tracker knows no connection that it could be of.
    InvalidConnection,
    /// It is larger than what its network carries.
    TooLarge,
    /// The machine that has the port does not run.
    MachineDown,
    /// The host that it goes to cannot be reached.
    HostDown,
    /// What stands in the switch is not what should.
    StaleFlows,
    /// The switch does not answer.
    SwitchDown,
    /// Something else, which the line says.
    Other,
}

/// What is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blame {
    /// In one word, for programs.
    pub cause: Cause,
    /// In one line.
    pub line: String,
    /// The way out.
    pub remedy: String,
}

impl Blame {
    /// A blame that others than this module found.
    #[must_use]
    pub fn new(cause: Cause, line: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause, line: line.into(), remedy: remedy.into() }
    }

    /// What is to blame when no packet can be made at all; none when the question itself was wrong.
    #[must_use]
    pub fn of_error(error: &PacketError) -> Option<Self> {
        let PacketError::NoGateway { port, target } = error else { return None };
        let line = format!("port {port} has no router to {target}: none stands in its subnet");
        Some(Self::new(Cause::NoRouter, line, "flowctl router attach ROUTER SUBNET"))
    }

    /// What is to blame when a packet of `octets` (IP header included) is more than its sender's network carries; none when it is not.
    #[must_use]
    pub fn of_size(host: &HostNetwork, sender: &Port, octets: u32) -> Option<Self> {
        let network = host.networks.get(&sender.network)?;
        let mtu = network.mtu;
        let line =
            || format!("a packet of {octets} octets is larger than the {mtu} that network {} carries", network.name);
        let remedy = "have the guest take its MTU from DHCP or router advertisements, or give the network a larger one";
        (octets > u32::from(mtu)).then(|| Self::new(Cause::TooLarge, line(), remedy))
    }

    /// What is to blame when a packet of `octets` (IP header included) is more than a network on its way carries; none when it is not, or when a
    /// smaller one would not get there either.
    #[must_use]
    pub fn of_way(path: &Path, octets: u32) -> Option<Self> {
        let (limit, _) = path.too_large()?;
        let limit = u32::from(limit.saturating_sub(path_mtu::ETHERNET));
        let line = || {
            format!(
                "a packet of {octets} octets is larger than the {limit} that its way carries, and its router tells the sender so"
            )
        };
        let remedy =
            "have the guest heed what ICMP says of the path's MTU, or give all networks of the router the same one";
        (octets > limit && path.why_not().is_none()).then(|| Self::new(Cause::TooLarge, line(), remedy))
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; way out: {}", self.line, self.remedy)
    }
}

/// What is to blame for the end of this way; none when some copy of the packet gets out.
#[must_use]
pub fn blame(host: &HostNetwork, numbers: &PortNumbers, packet: &Packet, path: &Path) -> Option<Blame> {
    let Verdict::Dropped { table, why } = path.why_not()? else { return None };
    let given = given(host, packet, path);
    let packet = given.as_ref().unwrap_or(packet);
    let seen = Seen::new(host, numbers, packet);
    let table = Table::by_name(table)?;
    // A flow that is there to drop says itself why, where only the lack of one is looked into.
    let is_said = match table {
        Table::Forward | Table::Host | Table::Beyond | Table::Output => why != table.info().miss,
        Table::Route => seen.routers().any(|router| router.external.is_some()) && !why.ends_with(LOST),
        _ => false,
    };
    let found = match table {
        _ if why.ends_with(NO_LISTENER) => Some(Blame::new(
            Cause::NoListener,
            why.as_str(),
            "flowctl load-balancer show shows what it listens for, flowctl load-balancer add-listener adds to that",
        )),
        _ if [NO_MEMBER, NO_MORE, ITSELF].iter().any(|words| why.ends_with(words)) => Some(Blame::new(
            Cause::NoMember,
            why.as_str(),
            "flowctl load-balancer show shows its members; start a machine that is one, or flowctl load-balancer add-member",
        )),
        _ if why.ends_with(NO_HEALTHY_MEMBER) => Some(Blame::new(
            Cause::NoMember,
            seen.in_error(why),
            "flowctl load-balancer members shows what the health monitor found; mend the service, or the monitor (flowctl load-balancer set-monitor)",
        )),
        Table::Balance => Some(Blame::new(Cause::InvalidConnection, why.as_str(), "have the client connect anew")),
        Table::Route | Table::Output if why.ends_with(NOT_WIRED) => Some(seen.not_wired(why)),
        Table::Route | Table::Output if leaving(why) => seen.no_way_out(),
        Table::Route if why.ends_with(NOT_ROUTED) => seen.not_routed(),
        Table::Output if why.ends_with(NOT_ITS_OWN) => seen.not_its_own(),
        Table::Beyond if why.ends_with(NO_PORT) => {
            Some(Blame::new(Cause::NoSuchAddress, why.as_str(), "flowctl port list shows who has which address"))
        }
        Table::Nat if why.ends_with(NOT_FORWARDED) => seen.not_forwarded(),
        Table::Forward if why.contains(NO_SENDER) => seen.own_address(),
        _ if is_said => None,
        Table::Classify if why.ends_with(OTHER_TAG_NOTE) => seen.other_tag().or_else(|| seen.refused_at_the_door()),
        Table::Classify | Table::Guard => seen.refused_at_the_door(),
        Table::Forward | Table::Host | Table::Output => seen.nobody_there(),
        Table::Route => seen.no_route(),
        Table::Firewall if [NO_RULE, NO_POLICY].iter().any(|words| why.ends_with(words)) || why.contains(DENIES) => {
            Some(Blame::new(Cause::Firewall, why.as_str(), FIREWALL_REMEDY))
        }
        Table::State | Table::Firewall => Some(Blame::new(
            Cause::InvalidConnection,
            "the connection tracker knows no connection that this packet could be of",
            "have the client connect anew",
        )),
        Table::Egress => seen.sender.map(|port| seen.no_rule(port, Direction::Egress)),
        Table::Ingress => seen.receiver().map(|port| seen.no_rule(port, Direction::Ingress)),
        _ => None,
    };
    Some(found.unwrap_or_else(|| Blame::new(Cause::Other, why.as_str(), "flowctl trace shows each step")))
}

/// The packet as it was given to a member, when it is for a load balancer.
fn given(host: &HostNetwork, packet: &Packet, path: &Path) -> Option<Packet> {
    let leaving = &path.outcomes.first()?.leaving;
    let field = [Field::Ipv4Dst, Field::Ipv6Dst].into_iter().find(|field| packet.get(*field) != leaving.get(*field))?;
    let family = if field == Field::Ipv4Dst { Family::V4 } else { Family::V6 };
    let (before, after) = (family.address(packet.get(field)), family.address(leaving.get(field)));
    let is_balanced = host.balancers.values().any(|balancer| balancer.address == before);
    let port = if packet.get(Field::IpProto) == ip_proto::TCP.into() { Field::TcpDst } else { Field::UdpDst };
    let given_port = u16::try_from(leaving.get(port)).ok()?;
    is_balanced.then(|| packet.clone().with(field, family::value(after)).with(port, given_port))
}

/// Whether a packet was dropped because neither a floating IP nor its router's address leads it out.
fn leaving(why: &str) -> bool {
    [NO_FLOATING_IP, NO_WAY_OUT, NO_GATEWAY_HOST].iter().any(|words| why.ends_with(words))
}

/// A packet with those who have to do with it.
struct Seen<'a> {
    host: &'a HostNetwork,
    packet: &'a Packet,
    sender: Option<&'a Port>,
    family: Option<Family>,
}

impl<'a> Seen<'a> {
    fn new(host: &'a HostNetwork, numbers: &PortNumbers, packet: &'a Packet) -> Self {
        let family = match u16::try_from(packet.get(Field::EthType)) {
            Ok(eth_type::IPV4) => Some(Family::V4),
            Ok(eth_type::IPV6) => Some(Family::V6),
            _ => None,
        };
        let in_port = packet.get(Field::InPort);
        let at = |port: &&Port| numbers.of(port).is_some_and(|number| u128::from(number.0) == in_port);
        let here = || host.local_ports().filter(at);
        let of_tag = here().find(|port| port.tag().map(VlanId::get) == packet.vlan());
        let sender = of_tag.or_else(|| here().find(|port| port.trunk.is_none()));
        let seen = Self { host, packet, sender, family };
        let from_afar = || host.ports.values().find(|port| seen.source().is_some_and(|source| owns(port, source)));
        Self { sender: sender.or_else(from_afar), ..seen }
    }

    fn source(&self) -> Option<IpAddr> {
        self.family.map(|family| family.address(self.packet.get(family.source())))
    }

    fn target(&self) -> Option<IpAddr> {
        self.family.map(|family| family.address(self.packet.get(family.target())))
    }

    /// The port that has the destination, on the sender's network or behind a router of it.
    fn receiver(&self) -> Option<&'a Port> {
        let (target, sender) = (self.target()?, self.sender?);
        let reachable = |port: &&Port| port.network == sender.network || self.router_to(port).is_some();
        self.host.ports.values().filter(|port| owns(port, target)).find(reachable)
    }

    /// A router that stands both in a subnet of the sender and in one of `port`.
    fn router_to(&self, port: &Port) -> Option<&'a Router> {
        let stands = |router: &Router, port: &Port| {
            let mut feet = router.interfaces.iter();
            feet.any(|foot| port.addresses.iter().any(|fixed| fixed.subnet == foot.subnet))
        };
        let sender = self.sender?;
        self.host.routers.values().find(|router| stands(router, sender) && stands(router, port))
    }

    fn routers(&self) -> impl Iterator<Item = &'a Router> {
        let subnets: Vec<_> = self.sender.iter().flat_map(|port| &port.addresses).map(|fixed| fixed.subnet).collect();
        let stands = move |router: &&Router| router.interfaces.iter().any(|foot| subnets.contains(&foot.subnet));
        self.host.routers.values().filter(stands)
    }

    /// A tag that no port of the trunk has.
    fn other_tag(&self) -> Option<Blame> {
        let (port, vlan) = (self.sender?, self.packet.vlan()?);
        let line = format!("trunk {} has no sub-port in VLAN {vlan}", port.name);
        let remedy =
            format!("flowctl port create --trunk {} --vlan {vlan}, or have the guest send without a tag", port.name);
        port.trunk.is_none().then(|| Blame::new(Cause::NoSubPort, line, remedy))
    }

    fn refused_at_the_door(&self) -> Option<Blame> {
        let port = self.sender?;
        let [.., a, b, c, d, e, f] = self.packet.get(Field::EthSrc).to_be_bytes();
        let source = Mac::new([a, b, c, d, e, f]);
        let own = || port.addresses.iter().map(|fixed| fixed.address.to_string()).collect::<Vec<_>>().join(", ");
        let remedy = "give the port an allowed pair (flowctl port set --allowed-pair), or the guest its own address";
        if source != port.mac {
            let line = format!("port {} may send from {} and does from {source}", port.name, port.mac);
            return Some(Blame::new(Cause::SpoofedSource, line, remedy));
        }
        if let Some(address) = self.source().filter(|address| !owns(port, *address) && !is_link_local(*address)) {
            let line = format!("port {} may send from {} and does from {address}", port.name, own());
            return Some(Blame::new(Cause::SpoofedSource, line, remedy));
        }
        let line = format!("port {} ({}) may not speak for routers, servers or other neighbours", port.name, own());
        let remedy =
            "stop the service in the guest, or take port security off (flowctl port set --port-security false)";
        Some(Blame::new(Cause::ForbiddenMessage, line, remedy))
    }

    /// Who is in error, beside what the flow says.
    fn in_error(&self, why: &str) -> String {
        let fronts = self.host.balancers.values().filter(|front| Some(front.address) == self.target());
        let listeners = fronts.flat_map(|front| &front.listeners).filter(|listener| {
            let field = if listener.protocol == Transport::Tcp { Field::TcpDst } else { Field::UdpDst };
            self.packet.get(field) == u128::from(listener.port)
        });
        let down = listeners.flat_map(|listener| &listener.members).filter(|member| member.in_error);
        let names: Vec<String> = down.take(RULES_MAX).map(|it| format!("{} port {}", it.address, it.port)).collect();
        format!("{why}: {}", names.join(", "))
    }

    /// The packet found nobody on the subnet, or somebody who is not there yet.
    fn nobody_there(&self) -> Option<Blame> {
        let target = self.target()?;
        if let Some(port) = self.receiver() {
            let line = format!("port {} has {target}, and no running machine has the port", port.name);
            let remedy = "start the machine (flowctl vm start), or attach the port to one";
            return Some(Blame::new(Cause::NotPluggedIn, line, remedy));
        }
        if let Some((router, hop)) = self.next_hop(target) {
            let line = format!("the route of router {} to {target} leads to {hop}, which is no port", router.name);
            return Some(Blame::new(Cause::NoNextHop, line, "give a port that address, or take the route away"));
        }
        let line = format!("no port that the sender can reach has {target}");
        Some(Blame::new(Cause::NoSuchAddress, line, "flowctl port list shows who has which address"))
    }

    /// The next hop of a static route to `target` that no port has.
    fn next_hop(&self, target: IpAddr) -> Option<(&'a Router, IpAddr)> {
        let lost = |hop: &IpAddr| !self.host.ports.values().any(|port| owns(port, *hop));
        self.routers().find_map(|router| {
            let leads = router.routes.iter().filter(|route| route.destination.contains(&target));
            leads.map(|route| route.next_hop).find(lost).map(|hop| (router, hop))
        })
    }

    /// The router leads out, and not this port.
    fn no_way_out(&self) -> Option<Blame> {
        let port = self.sender?;
        let (router, external) = self.routers().find_map(|router| Some((router, router.external.as_ref()?)))?;
        let outside = self.host.subnets.get(&external.subnet).map_or("external", |subnet| subnet.name.as_str());
        let who = format!("port {} has no floating IP, and router {}", port.name, router.name);
        Some(match &external.snat {
            None => Blame::new(
                Cause::SnatOff,
                format!("{who} does no SNAT"),
                format!(
                    "flowctl router set-gateway {} {outside}, without --no-snat, or flowctl router add-floating-ip",
                    router.name
                ),
            ),
            Some(snat) => Blame::new(
                Cause::NoGatewayHost,
                format!("{who} has {} outside, and no host to be its gateway: none is up and wired", snat.address),
                "flowctl host list shows which hosts are up; [[physical]] in its configuration wires one",
            ),
        })
    }

    /// The router leads out by IPv6, and not this address.
    fn not_routed(&self) -> Option<Blame> {
        let (port, source) = (self.sender?, self.source()?);
        let (router, gateway) = self.routers().find_map(|router| Some((router, router.ipv6_gateway.as_ref()?)))?;
        let outside = self.host.networks.get(&self.host.subnets.get(&gateway.subnet)?.network)?;
        let prefixes: Vec<String> = outside.routed_prefixes.iter().map(ToString::to_string).collect();
        let known = if prefixes.is_empty() { "nothing".to_owned() } else { prefixes.join(", ") };
        let line = format!(
            "port {} has {source}, which is not routed to network {}, where router {} leads out: {known} is",
            port.name, outside.name, router.name
        );
        let remedy = format!(
            "flowctl network set {} --routed PREFIX, if the data centre routes it there; or a subnet in what it does route",
            outside.name
        );
        Some(Blame::new(Cause::NotRouted, line, remedy))
    }

    /// It leaves with an address that is routed, and another's.
    fn not_its_own(&self) -> Option<Blame> {
        let (port, source) = (self.sender?, self.source()?);
        let line = format!("port {} does not have {source}: no answer from outside would come to it", port.name);
        Some(Blame::new(Cause::SpoofedSource, line, "have the guest send from an address of the port"))
    }

    /// The router that has the destination outside.
    fn translating(&self) -> Option<&'a Router> {
        let target = self.target()?;
        let has = |router: &&Router| {
            let snat = router.external.as_ref().and_then(|external| external.snat.as_ref());
            snat.is_some_and(|snat| target == IpAddr::V4(snat.address))
        };
        self.host.routers.values().find(has)
    }

    /// It went to the address of a router, and no further.
    fn not_forwarded(&self) -> Option<Blame> {
        let (router, target) = (self.translating()?, self.target()?);
        let (protocol, port) = match u8::try_from(self.packet.get(Field::IpProto)) {
            Ok(ip_proto::TCP) => ("tcp", self.packet.get(Field::TcpDst)),
            Ok(ip_proto::UDP) => ("udp", self.packet.get(Field::UdpDst)),
            _ => {
                let line =
                    format!("router {} forwards ports of TCP and UDP to its {target}, nothing else", router.name);
                return Some(Blame::new(Cause::NotForwarded, line, "flowctl router add-floating-ip"));
            }
        };
        let line = format!("router {} forwards no {protocol} port {port} of {target}", router.name);
        let remedy = format!(
            "flowctl router add-port-forwarding {} --protocol {protocol} --external-port {port} --port PORT --internal-port NUMBER",
            router.name
        );
        Some(Blame::new(Cause::NotForwarded, line, remedy))
    }

    /// It left by the address that it goes to.
    fn own_address(&self) -> Option<Blame> {
        let (router, target, port) = (self.translating()?, self.target()?, self.sender?);
        if !self.routers().any(|own| own.id == router.id) {
            return None;
        }
        let line = format!("port {} is behind router {}, whose {target} is for those outside", port.name, router.name);
        Some(Blame::new(Cause::NotForwarded, line, "ask the port behind the router by its own address"))
    }

    fn not_wired(&self, why: &str) -> Blame {
        let external = self.routers().find_map(|router| router.snat_on(self.host.host).map(|snat| (router, snat)));
        let line = match external {
            Some((router, snat)) => format!("{why}, which is the gateway of router {} ({})", router.name, snat.address),
            None => why.to_owned(),
        };
        Blame::new(Cause::NotWired, line, "plug in the interface that [[physical]] in its configuration names for it")
    }

    fn no_route(&self) -> Option<Blame> {
        let (target, router) = (self.target()?, self.routers().next()?);
        if let Some((router, hop)) = self.next_hop(target) {
            let line = format!("the route of router {} to {target} leads to {hop}, which is no port", router.name);
            return Some(Blame::new(Cause::NoNextHop, line, "give a port that address, or take the route away"));
        }
        let feet = router.interfaces.iter().filter_map(|foot| self.host.subnets.get(&foot.subnet));
        let stands: Vec<String> = feet.map(|subnet| subnet.cidr.to_string()).collect();
        let mut line = format!("router {} stands in {} and has no route to {target}", router.name, stands.join(", "));
        let mut remedy = "flowctl router add-route, or flowctl router attach it to the destination's subnet";
        let is_known = self.host.ports.values().any(|port| owns(port, target));
        if target.is_ipv4() && router.external.is_none() && !is_known {
            line += " and no external gateway";
            remedy =
                "flowctl router set-gateway leads it out; flowctl router add-route, or flowctl router attach, inside";
        }
        if target.is_ipv6()
            && router.ipv6_gateway.is_none()
            && !is_known
            && router.routes.iter().all(|route| route.destination.addr().is_ipv4())
        {
            line += ", nor a gateway of IPv6";
            let remedy = "flowctl router set-ipv6-gateway leads it out; flowctl router add-route, or flowctl router attach, inside";
            return Some(Blame::new(Cause::NoIpv6Gateway, line, remedy));
        }
        Some(Blame::new(Cause::NoRoute, line, remedy))
    }

    fn no_rule(&self, port: &Port, direction: Direction) -> Blame {
        let (way, verb) = match direction {
            Direction::Egress => ("out of", "egress"),
            Direction::Ingress => ("in to", "ingress"),
        };
        let remedy =
            format!("flowctl group allow GROUP ({verb}), or put the port in another group (flowctl port set --group)");
        let groups: Vec<&SecurityGroup> = port.groups.iter().filter_map(|id| self.host.groups.get(id)).collect();
        if groups.is_empty() {
            let line = format!("port {} is in no security group: nothing may go {way} it", port.name);
            return Blame::new(Cause::NoGroup, line, remedy);
        }
        let names = groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>().join(", ");
        let rules = groups.iter().flat_map(|group| &group.rules).filter(|rule| rule.direction == direction);
        let mut rules: Vec<&Rule> = rules.filter(|rule| Some(Family::from(rule.ethertype)) == self.family).collect();
        rules.sort_by_key(|rule| std::cmp::Reverse(self.likeness(rule.protocol)));
        let is_for_it = |rule: &&&Rule| self.likeness(rule.protocol) == Likeness::Carries;
        if let Some(rule) = rules.iter().find(is_for_it) {
            let line = format!("{} does not have this other side (port {}: {names})", self.words(rule), port.name);
            let remedy = match rule.remote {
                Remote::Addresses(id) => {
                    let name = self.name_of_addresses(id);
                    format!("flowctl address-group add {name} PREFIX, or add a rule for the other side")
                }
                _ => "put the other side in that group or prefix, or add a rule for it".to_owned(),
            };
            return Blame::new(Cause::WrongRemote, line, remedy);
        }
        let closest: Vec<String> = rules.iter().take(RULES_MAX).map(|rule| self.words(rule)).collect();
        let has = if closest.is_empty() { format!("no {verb} rule at all") } else { closest.join("; ") };
        let line = format!("no rule lets it {way} port {} ({names}), which has: {has}", port.name);
        Blame::new(Cause::NoRule, line, remedy)
    }

    fn words(&self, rule: &Rule) -> String {
        let other = match rule.remote {
            Remote::Any => "anyone".to_owned(),
            Remote::Prefix(prefix) => prefix.to_string(),
            Remote::Group(id) => {
                let name = self.host.groups.get(&id).map_or_else(|| id.to_string(), |group| group.name.clone());
                format!("members of {name}")
            }
            Remote::Addresses(id) => format!("addresses of {}", self.name_of_addresses(id)),
        };
        rule::words(rule, &other)
    }

    fn name_of_addresses(&self, id: AddressGroupId) -> String {
        self.host.address_groups.get(&id).map_or_else(|| id.to_string(), |group| group.name.clone())
    }

    /// How near a rule comes to what the packet carries.
    fn likeness(&self, protocol: Protocol) -> Likeness {
        let carried = u8::try_from(self.packet.get(Field::IpProto)).unwrap_or(u8::MAX);
        let port = |field| u16::try_from(self.packet.get(field)).unwrap_or(0);
        let icmp = self.family.map_or(ip_proto::ICMP, Family::icmp);
        let (number, fits) = match protocol {
            Protocol::Any => return Likeness::Carries,
            Protocol::Tcp(range) => (ip_proto::TCP, range.holds(port(Field::TcpDst))),
            Protocol::Udp(range) => (ip_proto::UDP, range.holds(port(Field::UdpDst))),
            Protocol::Icmp { kind, code } => (icmp, self.is_icmp(kind, code)),
            Protocol::Number(number) => (number, true),
        };
        match (number == carried, fits) {
            (true, true) => Likeness::Carries,
            (true, false) => Likeness::SameProtocol,
            (false, _) => Likeness::None,
        }
    }

    fn is_icmp(&self, kind: Option<u8>, code: Option<u8>) -> bool {
        let Some(family) = self.family else { return false };
        let has = |field, wanted: Option<u8>| wanted.is_none_or(|wanted| self.packet.get(field) == u128::from(wanted));
        has(family.icmp_type(), kind) && has(family.icmp_code(), code)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    None,
    SameProtocol,
    Carries,
}

fn owns(port: &Port, address: IpAddr) -> bool {
    let fixed = port.addresses.iter().any(|fixed| fixed.address == address);
    fixed || port.allowed_pairs.iter().any(|pair| pair.addresses.contains(&address))
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local() || address.is_unspecified())
}
