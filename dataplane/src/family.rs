//! What differs between IPv4 and IPv6 in matches: the fields and numbers of each version under one name.
//!
//! Owns [`Family`] and the few matches that take any address. Features say "from this address" here and never spell a version out.
//! Source: RFC 792 and RFC 4443 §4 (echo), RFC 4291 §2.5.6 (link-local addresses).

use std::net::IpAddr;

use ipnet::IpNet;
use model::security::Ethertype;
use openflow::flow::{Field, FieldValue, Match, ip_proto};

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Both versions.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// 4 or 6.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    /// The address that a field of this version holds.
    pub(crate) fn address(self, value: u128) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(u32::try_from(value & u128::from(u32::MAX)).unwrap_or_default().into()),
            Self::V6 => IpAddr::V6(value.into()),
        }
    }

    /// Packets of this version.
    pub(crate) fn packets(self) -> Match {
        match self {
            Self::V4 => Match::new().ip(),
            Self::V6 => Match::new().ipv6(),
        }
    }

    pub(crate) const fn source(self) -> Field {
        match self {
            Self::V4 => Field::Ipv4Src,
            Self::V6 => Field::Ipv6Src,
        }
    }

    pub(crate) const fn target(self) -> Field {
        match self {
            Self::V4 => Field::Ipv4Dst,
            Self::V6 => Field::Ipv6Dst,
        }
    }

    pub(crate) const fn icmp(self) -> u8 {
        match self {
            Self::V4 => ip_proto::ICMP,
            Self::V6 => ip_proto::ICMPV6,
        }
    }

    pub(crate) const fn icmp_type(self) -> Field {
        match self {
            Self::V4 => Field::IcmpType,
            Self::V6 => Field::Icmpv6Type,
        }
    }

    pub(crate) const fn icmp_code(self) -> Field {
        match self {
            Self::V4 => Field::IcmpCode,
            Self::V6 => Field::Icmpv6Code,
        }
    }

    /// ICMP types of an echo request and its reply.
    pub(crate) const fn echo(self) -> (u8, u8) {
        match self {
            Self::V4 => (8, 0),
            Self::V6 => (128, 129),
        }
    }
}

impl From<Ethertype> for Family {
    fn from(ethertype: Ethertype) -> Self {
        match ethertype {
            Ethertype::IPv4 => Self::V4,
            Ethertype::IPv6 => Self::V6,
        }
    }
}

/// An address as the value of a field.
pub(crate) fn value(address: IpAddr) -> FieldValue {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Packets of the version of a prefix.
pub(crate) fn packets(prefix: IpNet) -> Match {
    Family::of(prefix.addr()).packets()
}

/// Packets from an address.
pub(crate) fn from(address: IpAddr) -> Match {
    let family = Family::of(address);
    family.packets().with(family.source(), value(address))
}

/// Packets to an address.
pub(crate) fn to(address: IpAddr) -> Match {
    let family = Family::of(address);
    family.packets().with(family.target(), value(address))
}

/// Also from an address in this prefix.
pub(crate) fn from_net(matching: Match, prefix: IpNet) -> Match {
    match prefix {
        IpNet::V4(prefix) => matching.ipv4_src_net(prefix.network(), prefix.prefix_len()),
        IpNet::V6(prefix) => matching.ipv6_src_net(prefix.network(), prefix.prefix_len()),
    }
}

/// Also to an address in this prefix.
pub(crate) fn to_net(matching: Match, prefix: IpNet) -> Match {
    match prefix {
        IpNet::V4(prefix) => matching.ipv4_dst_net(prefix.network(), prefix.prefix_len()),
        IpNet::V6(prefix) => matching.ipv6_dst_net(prefix.network(), prefix.prefix_len()),
    }
}
