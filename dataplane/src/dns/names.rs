//! Whose name an address is and whose address a name, on one network.
//!
//! Owns [`find`]: what is known here of a question, or that it is for others. Reads the host's networks as they are; nothing is kept. A machine has the
//! name that DHCP gives it; where two have the same, the name has the addresses of both.
//! Source: RFC 1035 §3.5 (IPv4 addresses as names), RFC 3596 §2.5 (IPv6), RFC 6303 §4 (link-local addresses), RFC 8020 (nothing below what is not).

use std::net::IpAddr;

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{PTR, SOA};
use hickory_proto::rr::{Name, RData, RecordType};
use ipnet::IpNet;
use model::domain::Domain;
use model::network::{Port, Subnet};
use model::spec::HostNetwork;

/// Records in one answer.
const RECORDS_MAX: usize = 64;
/// Types that even a single label is looked up elsewhere for: what validating resolvers ask of top-level domains.
const OF_DELEGATIONS: [RecordType; 4] = [RecordType::NS, RecordType::SOA, RecordType::DS, RecordType::DNSKEY];

/// What is known of a question.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) found: Found,
    /// The domain that the answer speaks for; none for names that stand alone.
    pub(super) apex: Option<Name>,
}

/// What there is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// These records.
    Records(Vec<RData>),
    /// The name, with no such record.
    Nothing,
    /// Not even the name.
    NoSuchName,
}

/// The network of the port that asks.
struct Neighbours<'a> {
    host: &'a HostNetwork,
    asker: &'a Port,
}

/// Looks at what is known here; none: the question is for others.
pub(super) fn find(host: &HostNetwork, asker: &Port, query: &Query) -> Option<Finding> {
    let neighbours = Neighbours { host, asker };
    let name = query.name();
    let labels: Vec<&[u8]> = name.iter().collect();
    if let [label] = labels.as_slice() {
        return neighbours.alone(label, query.query_type()).map(|found| Finding { found, apex: None });
    }
    neighbours.reverse(query).or_else(|| neighbours.in_domain(query, &labels))
}

/// What says of a domain who answers for it. Nobody copies it from here, so only its last number has a meaning: how long the answer no may be kept.
pub(super) fn soa(apex: &Name, minimum: u32) -> RData {
    let person = apex.prepend_label("hostmaster").unwrap_or_else(|_| apex.clone());
    RData::SOA(SOA::new(apex.clone(), person, 1, 3600, 600, 86_400, minimum))
}

/// A domain as a name; every checked domain is one.
fn name_of(domain: &Domain) -> Option<Name> {
    let mut name = Name::from_ascii(domain.as_str()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

impl<'a> Neighbours<'a> {
    fn subnets(&self) -> impl Iterator<Item = &'a Subnet> {
        let network = self.asker.network;
        self.host.subnets.values().filter(move |subnet| subnet.network == network)
    }

    /// The ports of the network that a machine has, each with the machine's name.
    fn named(&self) -> impl Iterator<Item = (&'a Port, &'a str)> {
        let network = self.asker.network;
        let ports = self.host.ports.values().filter(move |port| port.network == network);
        ports.filter_map(|port| Some((port, port.binding.as_ref()?.hostname.as_str())))
    }

    fn domains_of(&self, port: &'a Port) -> impl Iterator<Item = &'a Domain> {
        let host = self.host;
        let subnets = port.addresses.iter().filter_map(move |fixed| host.subnets.get(&fixed.subnet));
        subnets.filter_map(|subnet| subnet.announced.domain.as_ref())
    }

    /// A name of one label: a machine's, or nobody's.
    fn alone(&self, label: &[u8], asked: RecordType) -> Option<Found> {
        let found = addresses(self.called(label), asked);
        let is_for_others = found == Found::NoSuchName && OF_DELEGATIONS.contains(&asked);
        (!is_for_others).then_some(found)
    }

    /// A name in a domain of the network's subnets.
    fn in_domain(&self, query: &Query, labels: &[&[u8]]) -> Option<Finding> {
        let domains = self.subnets().filter_map(|subnet| subnet.announced.domain.as_ref());
        let around = domains.filter_map(|domain| Some((domain, name_of(domain)?)));
        let around = around.filter(|(_, apex)| apex.zone_of(query.name()));
        let (domain, apex) = around.max_by_key(|(_, apex)| apex.iter().count())?;
        let asked = query.query_type();
        let found = match &labels[..labels.len() - apex.iter().count()] {
            [] if matches!(asked, RecordType::SOA | RecordType::ANY) => Found::Records(vec![soa(&apex, super::TTL)]),
            [] => Found::Nothing,
            [label] => {
                let ports = self.called(label).filter(|port| self.domains_of(port).any(|other| other == domain));
                addresses(ports, asked)
            }
            _ => Found::NoSuchName,
        };
        Some(Finding { found, apex: Some(apex) })
    }

    fn called(&self, label: &[u8]) -> impl Iterator<Item = &'a Port> {
        self.named().filter(move |(_, name)| name.as_bytes().eq_ignore_ascii_case(label)).map(|(port, _)| port)
    }

    /// The name of an address of the network's subnets, or of a link-local one, which has none.
    fn reverse(&self, query: &Query) -> Option<Finding> {
        let mut plain = query.name().clone();
        plain.set_fqdn(true);
        let asked = plain.parse_arpa_name().ok()?;
        let subnet = self.subnets().map(|subnet| subnet.cidr).find(|subnet| subnet.contains(&asked));
        if subnet.is_none() && !is_link_local(asked) {
            return None;
        }
        let found = if asked.prefix_len() < asked.max_prefix_len() {
            Found::Nothing
        } else {
            let names: Vec<RData> = self.names_of(asked.addr()).take(RECORDS_MAX).collect();
            match (names.is_empty(), query.query_type()) {
                (true, _) => Found::NoSuchName,
                (false, RecordType::PTR | RecordType::ANY) => Found::Records(names),
                (false, _) => Found::Nothing,
            }
        };
        Some(Finding { found, apex: Some(reverse_apex(subnet.unwrap_or(asked))) })
    }

    fn names_of(&self, address: IpAddr) -> impl Iterator<Item = RData> {
        let owners = self.named().filter(move |(port, _)| port.addresses.iter().any(|fixed| fixed.address == address));
        owners.filter_map(|(port, name)| {
            let full = match self.domains_of(port).next() {
                Some(domain) => format!("{name}.{domain}."),
                None => format!("{name}."),
            };
            Some(RData::PTR(PTR(Name::from_ascii(full).ok()?)))
        })
    }
}

/// The addresses of these ports that the type of record asks for.
fn addresses<'a>(ports: impl Iterator<Item = &'a Port>, asked: RecordType) -> Found {
    let mut ports = ports.peekable();
    if ports.peek().is_none() {
        return Found::NoSuchName;
    }
    let all = ports.flat_map(|port| &port.addresses).map(|fixed| fixed.address);
    let fits = |address: &IpAddr| match asked {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    let mut wanted: Vec<IpAddr> = all.filter(fits).take(RECORDS_MAX).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Found::Nothing;
    }
    let record = |address| match address {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    };
    Found::Records(wanted.into_iter().map(record).collect())
}

fn is_link_local(range: IpNet) -> bool {
    match range {
        IpNet::V4(range) => range.addr().is_link_local() && range.prefix_len() >= 16,
        IpNet::V6(range) => range.addr().is_unicast_link_local() && range.prefix_len() >= 10,
    }
}

/// The name that stands for a range: cut to whole octets of IPv4, to whole digits of IPv6.
fn reverse_apex(range: IpNet) -> Name {
    let bits = if range.addr().is_ipv4() { 8 } else { 4 };
    let labels = 2 + usize::from(range.prefix_len() / bits);
    let mut name = Name::from(range.addr()).trim_to(labels);
    name.set_fqdn(true);
    name
}
