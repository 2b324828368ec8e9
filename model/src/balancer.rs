//! Load balancers of layer 4: an address on a network whose connections are shared out among members.
//!
//! Owns [`Balancer`] with its listeners and members, and what must hold within one. Never says where members are: an address is found among ports by who
//! makes flows. The words are those of Octavia.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::Mac;
use crate::id::{BalancerId, SubnetId};

pub mod monitor;

use monitor::{Monitor, MonitorError};

/// The most load balancers on one network.
pub const BALANCERS_MAX: usize = 64;
/// The most listeners of one load balancer: which one it is has 8 bits in the number of a group of flows.
pub const LISTENERS_MAX: usize = 64;
/// The most members of one listener: all stand in one group of flows, whose message must not have more than 65,535 octets.
pub const MEMBERS_MAX: usize = 256;
/// The most members of all listeners of one load balancer: every host with clients of it is told of all.
pub const MEMBERS_OF_BALANCER_MAX: usize = 1024;
/// The most members of all load balancers of one network, for the same reason.
pub const MEMBERS_OF_NETWORK_MAX: usize = 4096;
/// The largest limit of connections: for each new one the switch goes through those that are open, and all tenants of a host share the switch.
pub const CONNECTION_LIMIT_MAX: u32 = 1_000;
/// The largest weight, as Octavia has it.
pub const WEIGHT_MAX: u16 = 256;

/// A load balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balancer {
    /// Identity.
    pub id: BalancerId,
    /// Name given by its owner.
    pub name: String,
    /// Number of this load balancer in flows: unique in the cloud, 1 to 65535, never used again for another.
    pub key: u16,
    /// The subnet that its address is of.
    pub subnet: SubnetId,
    /// Its address: no port and no router has it.
    pub address: IpAddr,
    /// Its MAC address there: the same on every host.
    pub mac: Mac,
    /// What it listens for.
    #[serde(default)]
    pub listeners: Vec<Listener>,
}

/// What a load balancer listens for, and who gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// The protocol.
    pub protocol: Transport,
    /// The port, 1 to 65535.
    pub port: u16,
    /// Which connections keep to one member.
    #[serde(default)]
    pub persistence: Persistence,
    /// How its members are checked; written only where they are, for agents from before that refuse what they do not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Monitor>,
    /// How many of its connections may be open at once from each host, 1 to [`CONNECTION_LIMIT_MAX`]; none: any number. Written only where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_limit: Option<u32>,
    /// Who gets the connections.
    #[serde(default)]
    pub members: Vec<Member>,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Which connections go to the same member, as long as it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Persistence {
    /// Each one for itself.
    #[default]
    None,
    /// All of one client address.
    SourceIp,
}

/// Who gets a share of a listener's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its address, of the version of the load balancer's.
    pub address: IpAddr,
    /// The port that it listens on, 1 to 65535.
    pub port: u16,
    /// Its share beside those of the others, 0 to [`WEIGHT_MAX`]; 0: it keeps what it has and gets nothing new.
    pub weight: u16,
    /// Whether the last verdict of its health monitor was that it does not serve: it keeps what it has and gets nothing new. Written only where it is so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_error: bool,
}

/// What a host found out about a member on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberHealth {
    /// Whom it is about.
    pub member: MemberRef,
    /// Whether it serves.
    pub online: bool,
    /// What the last checks said, in words.
    pub reason: String,
}

/// Which member of which listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRef {
    /// The load balancer.
    pub balancer: BalancerId,
    /// The protocol of the listener.
    pub protocol: Transport,
    /// The port of the listener.
    pub listener: u16,
    /// The address of the member.
    pub address: IpAddr,
    /// The port of the member.
    pub port: u16,
}

/// What does not fit within a load balancer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BalancerError {
    /// Its address is no station's.
    #[error("{address} is no address that a load balancer can have")]
    NoStation {
        /// The address.
        address: IpAddr,
    },
    /// There are too many listeners.
    #[error("it has {count} listeners, want {LISTENERS_MAX} at most")]
    TooManyListeners {
        /// How many.
        count: usize,
    },
    /// Two listeners for the same.
    #[error("it listens on {protocol} port {port} twice")]
    ListenerTwice {
        /// The protocol.
        protocol: Transport,
        /// The port.
        port: u16,
    },
    /// There are too many members.
    #[error("its listener on {protocol} port {port} has {count} members, want {MEMBERS_MAX} at most")]
    TooManyMembers {
        /// The protocol.
        protocol: Transport,
        /// The port.
        port: u16,
        /// How many.
        count: usize,
    },
    /// There are too many members of all listeners.
    #[error(
        "its listeners have {count} members together, want {MEMBERS_OF_BALANCER_MAX} at most: take some away, or have another load balancer for them"
    )]
    TooManyTogether {
        /// How many.
        count: usize,
    },
    /// A member is given twice.
    #[error("its member {address} port {port} is given twice")]
    MemberTwice {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// A limit of connections that can not be.
    #[error(
        "its listener on {protocol} port {port} has a limit of {limit} connections, want 1 to {CONNECTION_LIMIT_MAX}, or none for any number"
    )]
    ConnectionLimit {
        /// The protocol.
        protocol: Transport,
        /// The port.
        port: u16,
        /// The limit.
        limit: u32,
    },
    /// A health monitor that can not be.
    #[error("the health monitor of its listener on {protocol} port {port}: {problem}")]
    Monitor {
        /// The protocol.
        protocol: Transport,
        /// The port.
        port: u16,
        /// What is wrong.
        problem: MonitorError,
    },
    /// Port 0 is nobody's.
    #[error("port 0 is no port to listen on")]
    NoPort,
    /// A weight that nobody can have.
    #[error("its member {address} port {port} has weight {weight}, want 0 to {WEIGHT_MAX}")]
    Weight {
        /// The member's address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// The weight.
        weight: u16,
    },
    /// A member of the other version of IP.
    #[error("its member {address} is of another version of IP than {own}")]
    Family {
        /// The member's address.
        address: IpAddr,
        /// The load balancer's.
        own: IpAddr,
    },
    /// A load balancer that would balance to itself.
    #[error("{address} is the load balancer itself")]
    Itself {
        /// The address.
        address: IpAddr,
    },
}

impl MemberRef {
    /// This member of this listener.
    #[must_use]
    pub const fn of(balancer: &Balancer, listener: &Listener, member: &Member) -> Self {
        let Listener { protocol, port, .. } = *listener;
        Self { balancer: balancer.id, protocol, listener: port, address: member.address, port: member.port }
    }
}

impl Balancer {
    /// Whether what it holds fits together.
    ///
    /// # Errors
    /// The first [`BalancerError`] found.
    pub fn check(&self) -> Result<(), BalancerError> {
        let address = self.address;
        let is_near_only = matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
        if address.is_multicast() || address.is_unspecified() || address.is_loopback() || is_near_only {
            return Err(BalancerError::NoStation { address });
        }
        if self.listeners.len() > LISTENERS_MAX {
            return Err(BalancerError::TooManyListeners { count: self.listeners.len() });
        }
        let mut seen = BTreeSet::new();
        for listener in &self.listeners {
            let Listener { protocol, port, .. } = *listener;
            if !seen.insert((protocol, port)) {
                return Err(BalancerError::ListenerTwice { protocol, port });
            }
            listener.check(address)?;
        }
        let count = self.members();
        if count > MEMBERS_OF_BALANCER_MAX {
            return Err(BalancerError::TooManyTogether { count });
        }
        Ok(())
    }

    /// How many members its listeners have together; one that several have counts for each.
    #[must_use]
    pub fn members(&self) -> usize {
        self.listeners.iter().map(|listener| listener.members.len()).sum()
    }

    /// The listener on a port.
    #[must_use]
    pub fn listener(&self, protocol: Transport, port: u16) -> Option<&Listener> {
        self.listeners.iter().find(|listener| (listener.protocol, listener.port) == (protocol, port))
    }
}

impl Listener {
    /// The health monitor that checks its members, if one does.
    #[must_use]
    pub fn checks(&self) -> Option<&Monitor> {
        self.monitor.as_ref().filter(|monitor| monitor.admin_state_up)
    }

    /// Has nobody in error any more where nobody is checked: a verdict without a monitor would stand for ever.
    pub fn clear_verdicts(&mut self) {
        if self.checks().is_none() {
            self.members.iter_mut().for_each(|member| member.in_error = false);
        }
    }

    fn check(&self, own: IpAddr) -> Result<(), BalancerError> {
        let Self { protocol, port, .. } = *self;
        if port == 0 {
            return Err(BalancerError::NoPort);
        }
        if self.members.len() > MEMBERS_MAX {
            return Err(BalancerError::TooManyMembers { protocol, port, count: self.members.len() });
        }
        if let Some(limit) = self.connection_limit.filter(|limit| !(1..=CONNECTION_LIMIT_MAX).contains(limit)) {
            return Err(BalancerError::ConnectionLimit { protocol, port, limit });
        }
        let wrong = |problem| BalancerError::Monitor { protocol, port, problem };
        self.monitor.as_ref().map_or(Ok(()), |monitor| monitor.check_for(protocol)).map_err(wrong)?;
        let mut seen = BTreeSet::new();
        for member in &self.members {
            let Member { address, port, weight, .. } = *member;
            if address.is_ipv4() != own.is_ipv4() {
                return Err(BalancerError::Family { address, own });
            }
            if address == own {
                return Err(BalancerError::Itself { address });
            }
            if port == 0 {
                return Err(BalancerError::NoPort);
            }
            if weight > WEIGHT_MAX {
                return Err(BalancerError::Weight { address, port, weight });
            }
            if !seen.insert((address, port)) {
                return Err(BalancerError::MemberTwice { address, port });
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl std::str::FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(format!("{:?} is not tcp or udp", other.chars().take(64).collect::<String>())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn balancer(members: &[(&str, u16, u16)]) -> Balancer {
        let member = |(address, port, weight): &(&str, u16, u16)| Member {
            address: address.parse().unwrap(),
            port: *port,
            weight: *weight,
            in_error: false,
        };
        let members = members.iter().map(member).collect();
        let (protocol, persistence) = (Transport::Tcp, Persistence::None);
        let listener = Listener { protocol, port: 80, persistence, monitor: None, connection_limit: None, members };
        Balancer {
            id: BalancerId::from_uuid(Uuid::from_u128(1)),
            name: "front".to_owned(),
            key: 1,
            subnet: SubnetId::from_uuid(Uuid::from_u128(2)),
            address: "10.0.1.100".parse().unwrap(),
            mac: Mac::new([2, 4, 0, 0, 0, 1]),
            listeners: vec![listener],
        }
    }

    fn says(balancer: &Balancer) -> String {
        balancer.check().map_or_else(|error| error.to_string(), |()| "fits".to_owned())
    }

    #[test]
    fn members_are_of_its_version_each_once_and_with_a_weight() {
        assert_eq!(says(&balancer(&[("10.0.1.11", 80, 0), ("10.0.1.11", 81, 256)])), "fits");
        for (member, problem) in [
            (("10.0.1.12", 80, 257), "its member 10.0.1.12 port 80 has weight 257, want 0 to 256"),
            (("fd00::1", 80, 1), "its member fd00::1 is of another version of IP than 10.0.1.100"),
            (("10.0.1.100", 80, 1), "10.0.1.100 is the load balancer itself"),
            (("10.0.1.12", 0, 1), "port 0 is no port to listen on"),
            (("10.0.1.11", 80, 2), "its member 10.0.1.11 port 80 is given twice"),
        ] {
            assert_eq!(says(&balancer(&[("10.0.1.11", 80, 1), member])), problem);
        }
    }

    #[test]
    fn listeners_are_few_and_each_once() {
        let mut front = balancer(&[]);
        front.listeners.push(Listener { protocol: Transport::Udp, ..front.listeners[0].clone() });
        assert_eq!(says(&front), "fits", "another protocol is another listener");
        for (limit, problem) in [
            (1, "fits"),
            (1_000, "fits"),
            (0, "its listener on udp port 80 has a limit of 0 connections, want 1 to 1000, or none for any number"),
            (
                1_001,
                "its listener on udp port 80 has a limit of 1001 connections, want 1 to 1000, or none for any number",
            ),
        ] {
            front.listeners[1].connection_limit = Some(limit);
            assert_eq!(says(&front), problem);
        }
        front.listeners[1].connection_limit = None;
        front.listeners.push(front.listeners[0].clone());
        assert_eq!(says(&front), "it listens on tcp port 80 twice");
        let listener = |port| Listener { port, ..front.listeners[0].clone() };
        let many = Balancer { listeners: (1..=65).map(listener).collect(), ..front.clone() };
        assert_eq!(says(&many), "it has 65 listeners, want 64 at most");
        let member =
            |number: u16| Member { address: "10.0.1.9".parse().unwrap(), port: number, weight: 1, in_error: false };
        front.listeners.truncate(1);
        front.listeners[0].members = (1..=257).map(member).collect();
        assert_eq!(says(&front), "its listener on tcp port 80 has 257 members, want 256 at most");
        front.listeners[0].members.truncate(256);
        let full = front.listeners[0].clone();
        front.listeners = (1..=4).map(|port| Listener { port, ..full.clone() }).collect();
        assert_eq!((front.members(), says(&front).as_str()), (1024, "fits"));
        front.listeners.push(Listener { port: 5, members: vec![member(1)], ..full });
        let problem = "its listeners have 1025 members together, want 1024 at most: take some away, or have another load balancer for them";
        assert_eq!(says(&front), problem);
    }
}
