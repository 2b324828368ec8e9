//! The features of the pipeline, one module each: what flows a feature wants for a host's networks.
//!
//! A feature has a function for each kind of unit that it makes flows for (`host`, `network`, `router`, `group`, `port`). It reads a `View` and
//! fills a `Part`; it never reads another feature's flows. What one hands to the next stands in the
//! registers (see [`register`](crate::register)).

pub(crate) mod arp;
pub(crate) mod arrival;
pub(crate) mod balancer;
pub mod canary;
pub(crate) mod classify;
pub(crate) mod connection_limit;
pub(crate) mod deliver;
pub(crate) mod dhcp;
pub(crate) mod failover;
pub(crate) mod firewall;
pub(crate) mod floating;
pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod identity;
pub(crate) mod mirror;
pub(crate) mod neighbour;
pub(crate) mod north;
pub(crate) mod path_mtu;
pub(crate) mod port_forwarding;
pub(crate) mod provider;
pub(crate) mod qos;
pub(crate) mod quoted;
pub(crate) mod router;
pub(crate) mod security;
pub mod service;
pub(crate) mod snat;
pub(crate) mod static_route;
pub(crate) mod trunk;
pub(crate) mod tunnel;
pub(crate) mod way_out;

/// A part of the pipeline that owns flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Source port, network, and anti-spoofing.
    Classify,
    /// Groups of senders behind tunnels.
    Identity,
    /// ARP answers.
    Arp,
    /// DHCP requests and router solicitations, handed to the agent.
    Dhcp,
    /// Layer 2.
    Forward,
    /// Layer 3.
    Router,
    /// Security groups.
    Security,
    /// Delivery to ports here.
    Deliver,
    /// VXLAN, in and out.
    Tunnel,
    /// Neighbour discovery: what guests may say, and answers.
    Neighbour,
    /// Services of the host to its machines, at link-local addresses.
    Service,
    /// The flow that tells the version.
    Canary,
    /// Ways beyond a router's subnets.
    StaticRoute,
    /// Networks of the data centre.
    Provider,
    /// Addresses of those that stand for ports behind routers.
    Floating,
    /// Addresses of those that all other ports behind a router share.
    Snat,
    /// What is too large for the network it is routed to.
    PathMtu,
    /// Ports on the tap of another, by the tags of VLANs.
    Trunk,
    /// Ports of a router's address that lead behind it.
    PortForwarding,
    /// Addresses whose connections are shared out.
    Balancer,
    /// What may cross the border of a router.
    Firewall,
    /// Copies of the frames of ports, for others.
    Mirror,
    /// What ports may send and be sent in a second.
    Qos,
    /// Ports that are awaited on another host.
    Arrival,
    /// Ways out by IPv6.
    North,
}

/// What is known of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureInfo {
    /// The feature.
    pub feature: Feature,
    /// Its number in cookies; never used again for another.
    pub number: u8,
    /// Its name in dumps.
    pub name: &'static str,
}

/// All features.
pub const FEATURES: &[FeatureInfo] = &[
    FeatureInfo { feature: Feature::Classify, number: 1, name: "classify" },
    FeatureInfo { feature: Feature::Identity, number: 2, name: "identity" },
    FeatureInfo { feature: Feature::Arp, number: 3, name: "arp" },
    FeatureInfo { feature: Feature::Dhcp, number: 4, name: "dhcp" },
    FeatureInfo { feature: Feature::Forward, number: 5, name: "forward" },
    FeatureInfo { feature: Feature::Router, number: 6, name: "router" },
    FeatureInfo { feature: Feature::Security, number: 7, name: "security" },
    FeatureInfo { feature: Feature::Deliver, number: 8, name: "deliver" },
    FeatureInfo { feature: Feature::Tunnel, number: 9, name: "tunnel" },
    FeatureInfo { feature: Feature::Neighbour, number: 10, name: "neighbour" },
    FeatureInfo { feature: Feature::Service, number: 11, name: "service" },
    FeatureInfo { feature: Feature::Canary, number: 15, name: "canary" },
    FeatureInfo { feature: Feature::StaticRoute, number: 16, name: "static route" },
    FeatureInfo { feature: Feature::Provider, number: 17, name: "provider" },
    FeatureInfo { feature: Feature::Floating, number: 18, name: "floating ip" },
    FeatureInfo { feature: Feature::Snat, number: 19, name: "snat" },
    FeatureInfo { feature: Feature::PathMtu, number: 21, name: "path mtu" },
    FeatureInfo { feature: Feature::Trunk, number: 23, name: "trunk" },
    FeatureInfo { feature: Feature::PortForwarding, number: 24, name: "port forwarding" },
    FeatureInfo { feature: Feature::Balancer, number: 26, name: "load balancer" },
    FeatureInfo { feature: Feature::Firewall, number: 27, name: "firewall" },
    FeatureInfo { feature: Feature::Mirror, number: 29, name: "mirror" },
    FeatureInfo { feature: Feature::Qos, number: 30, name: "qos" },
    FeatureInfo { feature: Feature::Arrival, number: 31, name: "arrival" },
    FeatureInfo { feature: Feature::North, number: 32, name: "routed ipv6" },
];

impl Feature {
    /// What is known of it.
    #[must_use]
    pub const fn info(self) -> &'static FeatureInfo {
        &FEATURES[self as usize]
    }

    /// Its number in cookies.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.info().number
    }

    /// The feature with this number.
    #[must_use]
    pub fn by_number(number: u8) -> Option<Self> {
        FEATURES.iter().find(|info| info.number == number).map(|info| info.feature)
    }
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.info().name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        for (index, info) in FEATURES.iter().enumerate() {
            assert_eq!(info.feature as usize, index);
            assert_eq!(Feature::by_number(info.number), Some(info.feature));
        }
        assert_eq!(Feature::by_number(0), None);
    }
}
