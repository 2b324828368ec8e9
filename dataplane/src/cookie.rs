//! Cookies: which feature wanted a flow, and for which object.
//!
//! The top 16 bits say that a flow is ours; what lacks them on our bridge is foreign. A cookie does not carry the generation of the spec: a
//! flow that says the same in two generations is the same flow, and is not touched.
//!
//! ```text
//! 63           48 47        40 39     32 31                    0
//! |    0xba5a    |  feature   |  kind   | key of the object    |
//! ```

use std::fmt;

use crate::feature::Feature;

/// What the top 16 bits of our cookies hold.
pub const MAGIC: u16 = 0xba5a;

/// The object that a flow or a group stands for, by its key in flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// The pipeline itself.
    Pipeline,
    /// A network, by its VNI.
    Network(u32),
    /// A port, by its key.
    Port(u32),
    /// A router, by its key.
    Router(u32),
    /// A security group, by its key.
    Group(u32),
    /// A set of security groups, by its identity.
    Identity(u32),
    /// An address group, by its key.
    Addresses(u32),
    /// A load balancer, by its key.
    Balancer(u32),
    /// A rule of a firewall policy, by its key.
    FirewallRule(u32),
    /// A port that gets copies, by the VNI that they carry: only named, no flow is its own.
    Mirror(u32),
    /// A listener of TCP, by the key of its load balancer and its port, 16 bits each: on what the switch counts for it.
    TcpListener(u32),
    /// The same of UDP.
    UdpListener(u32),
}

impl Object {
    const fn parts(self) -> (u8, u32) {
        match self {
            Self::Pipeline => (0, 0),
            Self::Network(key) => (1, key),
            Self::Port(key) => (2, key),
            Self::Router(key) => (3, key),
            Self::Group(key) => (4, key),
            Self::Identity(key) => (5, key),
            Self::Addresses(key) => (6, key),
            Self::Balancer(key) => (8, key),
            Self::FirewallRule(key) => (9, key),
            Self::Mirror(key) => (11, key),
            Self::TcpListener(key) => (12, key),
            Self::UdpListener(key) => (13, key),
        }
    }

    const fn from_parts(kind: u8, key: u32) -> Option<Self> {
        match kind {
            0 => Some(Self::Pipeline),
            1 => Some(Self::Network(key)),
            2 => Some(Self::Port(key)),
            3 => Some(Self::Router(key)),
            4 => Some(Self::Group(key)),
            5 => Some(Self::Identity(key)),
            6 => Some(Self::Addresses(key)),
            8 => Some(Self::Balancer(key)),
            9 => Some(Self::FirewallRule(key)),
            11 => Some(Self::Mirror(key)),
            12 => Some(Self::TcpListener(key)),
            13 => Some(Self::UdpListener(key)),
            _ => None,
        }
    }
}

/// Why a flow exists, as its cookie says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie {
    /// The feature that wanted it.
    pub feature: Feature,
    /// The object it is for.
    pub object: Object,
}

impl Cookie {
    /// The number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u64 {
        let (kind, key) = self.object.parts();
        u64::from(MAGIC) << 48 | u64::from(self.feature.number()) << 40 | u64::from(kind) << 32 | u64::from(key)
    }

    /// Reads a cookie; none when it was not made by this pipeline.
    #[must_use]
    pub fn from_wire(wire: u64) -> Option<Self> {
        let [magic_high, magic_low, feature, kind, key @ ..] = wire.to_be_bytes();
        if u16::from_be_bytes([magic_high, magic_low]) != MAGIC {
            return None;
        }
        let object = Object::from_parts(kind, u32::from_be_bytes(key))?;
        Some(Self { feature: Feature::by_number(feature)?, object })
    }
}

/// Whether a flow with this cookie is ours, be it of this version of the pipeline or another.
#[must_use]
pub const fn is_ours(wire: u64) -> bool {
    wire >> 48 == MAGIC as u64
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipeline => f.write_str("pipeline"),
            Self::Network(key) => write!(f, "network {key}"),
            Self::Port(key) => write!(f, "port {key}"),
            Self::Router(key) => write!(f, "router {key}"),
            Self::Group(key) => write!(f, "security group {key}"),
            Self::Identity(key) => write!(f, "identity {key:#x}"),
            Self::Addresses(key) => write!(f, "address group {key}"),
            Self::Balancer(key) => write!(f, "load balancer {key}"),
            Self::FirewallRule(key) => write!(f, "firewall rule {key}"),
            Self::Mirror(key) => write!(f, "mirror {key}"),
            Self::TcpListener(key) => write!(f, "tcp port {} of load balancer {}", key & 0xffff, key >> 16),
            Self::UdpListener(key) => write!(f, "udp port {} of load balancer {}", key & 0xffff, key >> 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_reads_as_it_was_written_and_foreign_ones_do_not() {
        let objects = [
            Object::Pipeline,
            Object::Network(0xff_ffff),
            Object::Port(u32::MAX),
            Object::Router(7),
            Object::Group(9),
            Object::Identity(0x8000_0001),
            Object::Addresses(3),
            Object::Balancer(4),
            Object::FirewallRule(5),
            Object::Mirror(0xf0_0000),
            Object::TcpListener(0x4_0050),
            Object::UdpListener(0x4_0035),
        ];
        for object in objects {
            let cookie = Cookie { feature: Feature::Security, object };
            assert_eq!(Cookie::from_wire(cookie.to_wire()), Some(cookie));
            assert!(is_ours(cookie.to_wire()));
        }
        assert_eq!(Cookie::from_wire(0x1234), None);
        assert!(!is_ours(0x1234));
        assert_eq!(Cookie::from_wire(0xba5a_ff00_0000_0000), None);
        assert!(is_ours(0xba5a_ff00_0000_0000));
    }
}
