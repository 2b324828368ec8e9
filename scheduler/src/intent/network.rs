//! Networks and their subnets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::domain::{Domain, DomainError};
use model::network::{Announced, Network, Subnet};
use model::provider::{Provider, ProviderError, Segmentation, VlanId};
use model::{NetworkId, SubnetId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::address::{Pool, whole_pools};
use super::north::check_prefixes;
use super::{Context, Intent, check_name, find, refuse_users};
use crate::refusal::Refusal;

/// The most pools that a subnet can have.
const POOLS_MAX: usize = 16;
/// The most name servers that DHCP announces (they share one option of 255 bytes with room for others).
const DNS_MAX: usize = 8;

/// What Ethernet carries (RFC 894): the MTU of a provider network unless said.
const PROVIDER_MTU: u16 = 1500;

/// What no subnet may have addresses of: hosts speak to their neighbours, to themselves and to many with them (RFC 3927, RFC 4291 §2.4, RFC 6890), and
/// the services to machines answer at two of them.
const RESERVED: [(IpNet, &str); 7] = [
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8)), "it stands for no host"),
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)), "each host has it for itself"),
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)), "metadata and names are served there"),
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3)), "it is for multicast, or for nobody"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 8)), "it stands for no host"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)), "each link has it for itself"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)), "it is for multicast"),
];

/// The least MTU of a link that carries IPv6 (RFC 8200 §5).
const IPV6_MTU_MIN: u16 = 1280;

/// A subnet with the addresses that may be given to ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubnetIntent {
    pub(crate) subnet: Subnet,
    pub(crate) pools: Vec<Pool>,
}

/// A network to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewNetwork {
    /// Its name.
    name: String,
    /// The largest IP packet in bytes: 68 to 9000. The underlay must carry 50 bytes more. Of a provider network 1500 unless said.
    mtu: Option<u16>,
    /// Where it is, for a network of the data centre; without, it is a tenant's, in tunnels.
    provider: Option<NewProvider>,
    /// Prefixes of IPv6 that the data centre routes to it, for a provider network; none unless said.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    routed_prefixes: Vec<Ipv6Net>,
}

/// Where a provider network is.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewProvider {
    /// How it is told from others there.
    network_type: NetworkType,
    /// The physical network, by the name that agents have it under.
    physical_network: String,
    /// The VLAN, 1 to 4094, of networks of that type.
    segmentation_id: Option<u16>,
}

/// How a provider network is told from others on the same physical network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkType {
    /// It is what has no tag.
    Flat,
    /// By the tag of a VLAN.
    Vlan,
}

/// A subnet to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSubnet {
    /// Its name.
    name: String,
    /// The network, by name or id.
    network: String,
    /// The addresses, host bits zero.
    #[schema(value_type = String, example = "10.1.0.0/24")]
    cidr: IpNet,
    /// The default gateway; without one the first host address. `no_gateway` for none at all.
    #[schema(value_type = Option<String>)]
    gateway: Option<IpAddr>,
    /// Announce no gateway.
    #[serde(default)]
    no_gateway: bool,
    /// Whether DHCP answers; true unless said.
    dhcp: Option<bool>,
    /// Name servers that DHCP announces; where no subnet of a port has any, the host answers: for machines itself, for other names it asks others.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    dns: Vec<IpAddr>,
    /// The domain that machines are in: they are known by their names in it to the machines of the same network.
    #[schema(example = "cloud.example.org")]
    domain: Option<String>,
    /// Addresses that may be given to ports; all but the gateway unless said. IPv6 subnets have none: they are never full.
    pools: Option<Vec<Pool>>,
}

impl Intent {
    /// Makes a network.
    pub(crate) fn create_network(&mut self, context: &mut Context<'_>, new: NewNetwork) -> Result<NetworkId, Refusal> {
        check_name(&self.networks, &new.name)?;
        let provider = new.provider.as_ref().map(check_provider).transpose()?;
        if let Some(provider) = &provider
            && let Some(other) = self.networks.values().find(|other| other.provider.as_ref() == Some(provider))
        {
            let owner = format!("network {}", other.name);
            return Err(Refusal::Taken { field: "provider".to_owned(), what: provider.to_string(), owner });
        }
        let usual = if provider.is_some() { PROVIDER_MTU } else { context.defaults.mtu };
        let mtu = new.mtu.unwrap_or(usual);
        if !(68..=9000).contains(&mtu) {
            return Err(Refusal::invalid("mtu", format!("{mtu} is outside of 68 to 9000")));
        }
        let id = NetworkId::from_uuid((context.draw)());
        let mut routed_prefixes = new.routed_prefixes;
        routed_prefixes.sort_unstable();
        routed_prefixes.dedup();
        check_prefixes((&new.name, provider.is_some()), &routed_prefixes)?;
        let vni = self.counters.next_vni()?;
        self.networks.insert(id, Arc::new(Network { id, name: new.name, vni, mtu, provider, routed_prefixes }));
        Ok(id)
    }

    /// Forgets a network without subnets and ports.
    pub(crate) fn delete_network(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, network) = find(&self.networks, name, None)?;
        let subnets = self.subnets.values().filter(|subnet| subnet.subnet.network == id);
        let subnets = subnets.map(|subnet| format!("subnet {}", subnet.subnet.name));
        let ports = self.ports.values().filter(|port| port.port.network == id);
        refuse_users(
            format!("network {}", network.name),
            subnets.chain(ports.map(|port| format!("port {}", port.port.name))),
        )?;
        self.networks.remove(&id);
        Ok(())
    }

    /// Makes a subnet.
    pub(crate) fn create_subnet(&mut self, context: &mut Context<'_>, new: NewSubnet) -> Result<SubnetId, Refusal> {
        check_name(&self.subnets, &new.name)?;
        let (network, _) = find(&self.networks, &new.network, Some("network"))?;
        let cidr = new.cidr;
        if cidr != cidr.trunc() {
            return Err(Refusal::invalid("cidr", format!("{cidr} has host bits set: the subnet is {}", cidr.trunc())));
        }
        let lengths = if cidr.addr().is_ipv4() { 8..=30 } else { 48..=120 };
        if !lengths.contains(&cidr.prefix_len()) {
            let problem = format!("{cidr} has a prefix length outside of {} to {}", lengths.start(), lengths.end());
            return Err(Refusal::invalid("cidr", problem));
        }
        if let Some((reserved, what)) = RESERVED.into_iter().find(|(reserved, _)| overlap(*reserved, cidr)) {
            return Err(Refusal::invalid("cidr", format!("{cidr} overlaps {reserved}: {what}")));
        }
        let mtu = self.networks.get(&network).map_or(u16::MAX, |network| network.mtu);
        if cidr.addr().is_ipv6() && mtu < IPV6_MTU_MIN {
            return Err(Refusal::invalid(
                "cidr",
                format!("its network has an MTU of {mtu}, IPv6 needs {IPV6_MTU_MIN}"),
            ));
        }
        let siblings = self.subnets.values().filter(|other| other.subnet.network == network);
        for other in siblings {
            if other.subnet.cidr.contains(&new.cidr) || new.cidr.contains(&other.subnet.cidr) {
                let problem = format!("{cidr} overlaps {} of subnet {}", other.subnet.cidr, other.subnet.name);
                return Err(Refusal::invalid("cidr", problem));
            }
        }
        if let Some(problem) = self.is_routed_there(network, cidr) {
            return Err(Refusal::invalid("cidr", problem));
        }
        let gateway = check_gateway(&new, cidr)?;
        if new.dns.len() > DNS_MAX {
            return Err(Refusal::invalid("dns", format!("more than {DNS_MAX} name servers")));
        }
        let domain = new.domain.as_deref().map(check_domain).transpose()?;
        let pools = match (&new.pools, cidr, gateway) {
            (None, IpNet::V4(cidr), Some(IpAddr::V4(gateway))) => whole_pools(cidr, Some(gateway)),
            (None, IpNet::V4(cidr), _) => whole_pools(cidr, None),
            (None, IpNet::V6(_), _) => Vec::new(),
            (Some(pools), IpNet::V4(cidr), _) => check_pools(pools, cidr)?,
            (Some(_), IpNet::V6(_), _) => return Err(Refusal::invalid("pools", "an IPv6 subnet has no pools")),
        };
        let id = SubnetId::from_uuid((context.draw)());
        let subnet = Subnet {
            id,
            name: new.name,
            network,
            cidr: new.cidr,
            gateway,
            dhcp: new.dhcp.unwrap_or(true),
            dns: new.dns,
            announced: Announced { domain, ..Announced::default() },
        };
        self.subnets.insert(id, Arc::new(SubnetIntent { subnet, pools }));
        Ok(id)
    }

    /// Forgets a subnet that no port and no load balancer has an address of and no router stands in.
    pub(crate) fn delete_subnet(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, subnet) = find(&self.subnets, name, None)?;
        let ports = self.ports.values().filter(|port| port.port.addresses.iter().any(|fixed| fixed.subnet == id));
        let ports = ports.map(|port| format!("port {}", port.port.name));
        let stands = |router: &model::network::Router| {
            router.interfaces.iter().any(|foot| foot.subnet == id)
                || router.external.as_ref().is_some_and(|external| external.subnet == id)
                || router.ipv6_gateway.as_ref().is_some_and(|gateway| gateway.subnet == id)
        };
        let routers = self.routers.values().filter(|router| stands(router));
        let balancers = self.balancers.values().filter(|balancer| balancer.subnet == id);
        let balancers = balancers.map(|balancer| format!("load balancer {}", balancer.name));
        refuse_users(
            format!("subnet {}", subnet.subnet.name),
            ports.chain(routers.map(|router| format!("router {}", router.name))).chain(balancers),
        )?;
        self.subnets.remove(&id);
        Ok(())
    }
}

fn check_provider(new: &NewProvider) -> Result<Provider, Refusal> {
    let physical_network = new
        .physical_network
        .parse()
        .map_err(|error: ProviderError| Refusal::invalid("provider.physical_network", error.to_string()))?;
    let refuse = |problem: String| Refusal::invalid("provider.segmentation_id", problem);
    let segmentation = match (new.network_type, new.segmentation_id) {
        (NetworkType::Flat, None) => Segmentation::Flat,
        (NetworkType::Flat, Some(_)) => return Err(refuse("a flat network has none".to_owned())),
        (NetworkType::Vlan, None) => return Err(refuse("a VLAN network needs its VLAN, 1 to 4094".to_owned())),
        (NetworkType::Vlan, Some(vlan)) => {
            Segmentation::Vlan(VlanId::try_from(vlan).map_err(|error| refuse(error.to_string()))?)
        }
    };
    Ok(Provider { physical_network, segmentation })
}

fn check_domain(text: &str) -> Result<Domain, Refusal> {
    text.parse().map_err(|error: DomainError| Refusal::invalid("domain", error.to_string()))
}

fn check_gateway(new: &NewSubnet, cidr: IpNet) -> Result<Option<IpAddr>, Refusal> {
    let gateway = match (new.gateway, new.no_gateway) {
        (Some(_), true) => return Err(Refusal::invalid("gateway", "it is given, and no_gateway too")),
        (None, true) => return Ok(None),
        (Some(gateway), false) => gateway,
        (None, false) => match cidr {
            IpNet::V4(cidr) => Ipv4Addr::from_bits(cidr.network().to_bits() + 1).into(),
            IpNet::V6(cidr) => Ipv6Addr::from_bits(cidr.network().to_bits() + 1).into(),
        },
    };
    // IPv6 knows no broadcast: its last address is one like others.
    let is_edge = gateway == cidr.network() || cidr.addr().is_ipv4() && gateway == cidr.broadcast();
    if !cidr.contains(&gateway) || is_edge {
        return Err(Refusal::invalid("gateway", format!("{gateway} is no host address of {cidr}")));
    }
    Ok(Some(gateway))
}

fn check_pools(pools: &[Pool], cidr: ipnet::Ipv4Net) -> Result<Vec<Pool>, Refusal> {
    if pools.is_empty() || pools.len() > POOLS_MAX {
        return Err(Refusal::invalid("pools", format!("want 1 to {POOLS_MAX} pools")));
    }
    for (index, pool) in pools.iter().enumerate() {
        for (edge, address) in [("start", pool.start), ("end", pool.end)] {
            if !cidr.contains(&address) || address == cidr.network() || address == cidr.broadcast() {
                let problem = format!("{address} is no host address of {cidr}");
                return Err(Refusal::invalid(format!("pools[{index}].{edge}"), problem));
            }
        }
        if pool.end < pool.start {
            let problem = format!("{} lies before the start {}", pool.end, pool.start);
            return Err(Refusal::invalid(format!("pools[{index}].end"), problem));
        }
        let earlier = pools.iter().take(index).find(|other| pool.start <= other.end && other.start <= pool.end);
        if let Some(other) = earlier {
            let problem = format!("it overlaps the pool {} to {}", other.start, other.end);
            return Err(Refusal::invalid(format!("pools[{index}]"), problem));
        }
    }
    Ok(pools.to_vec())
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}
