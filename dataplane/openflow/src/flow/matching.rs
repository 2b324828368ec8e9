//! What a flow matches: a set of fields, each with a value and a mask.
//!
//! Owns [`Match`], its canonical form and the check of prerequisites. Never knows priorities or tables.
//! Invariant: equal matches are equal values, whatever way they were written: bits outside the mask are zero, fields that are
//! wholly masked out are absent, wide registers are held as plain ones, `vlan_tci` as `vlan_vid` and `vlan_pcp`, `nw_tos` as `ip_dscp`.
//! This is the form in which Open vSwitch dumps flows back.
//! Source: OpenFlow 1.5.1 §7.2.3, ovs-fields(7).

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use thiserror::Error;

use super::{
    PortNo,
    field::{Field, Prerequisite},
    subfield::{FieldValue, Subfield},
    text::ct_state,
};

/// EtherType numbers that prerequisites speak of.
pub mod eth_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// Reverse ARP.
    pub const RARP: u16 = 0x8035;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// MPLS unicast.
    pub const MPLS: u16 = 0x8847;
    /// MPLS multicast.
    pub const MPLS_MULTICAST: u16 = 0x8848;
}

/// IP protocol numbers that prerequisites speak of.
pub mod ip_proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The bit of `vlan_vid` that says a tag is present.
pub const VLAN_PRESENT: u16 = 0x1000;

/// A value under a mask. Bits outside the mask are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Masked {
    /// The value.
    pub value: u128,
    /// The mask: a one bit must match.
    pub mask: u128,
}

/// The fields that a flow matches on.
///
/// ```
/// use openflow::flow::{Field, Match};
/// let web = Match::new().tcp().ipv4_dst_net([10, 0, 0, 0].into(), 8).with(Field::TcpDst, 80).with(Field::Reg3, 7);
/// assert_eq!(web.to_string(), "tcp,reg3=0x7,nw_dst=10.0.0.0/8,tp_dst=80");
/// assert_eq!(web.to_string().parse::<Match>()?, web);
/// // A field whose prerequisite is missing is named.
/// assert!(Match::new().with(Field::TcpDst, 80).check().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Match {
    /// In the order of fields, each once: a few lie closer together than a tree would have them.
    fields: Vec<(Field, Masked)>,
    /// Whole OXM TLVs of fields that we do not know, kept so that a foreign flow can still be named and deleted.
    unknown: BTreeSet<Vec<u8>>,
}

/// A match that no switch would take.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MatchError {
    /// A bit outside the field.
    #[error("{field} has {bits} bits: value {value:#x} or mask {mask:#x} does not fit")]
    TooWide {
        /// The field.
        field: Field,
        /// Its width.
        bits: u8,
        /// The value asked for.
        value: u128,
        /// The mask asked for.
        mask: u128,
    },
    /// A mask on a field that takes none.
    #[error("{field} cannot be masked (mask {mask:#x})")]
    NotMaskable {
        /// The field.
        field: Field,
        /// The mask asked for.
        mask: u128,
    },
    /// Something that must also be matched is not.
    #[error("{field} needs a match on {needs} as well")]
    Prerequisite {
        /// The field.
        field: Field,
        /// What is missing, in words.
        needs: &'static str,
    },
}

impl Match {
    /// The match that every packet meets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with memory for some fields set aside.
    pub(crate) fn with_room(fields: usize) -> Self {
        Self { fields: Vec::with_capacity(fields), unknown: BTreeSet::new() }
    }

    /// Also matches `field` exactly; replaces what was said of it before.
    #[must_use]
    pub fn with(self, field: Field, value: impl Into<FieldValue>) -> Self {
        self.with_masked(field, value, field.full_mask())
    }

    /// Also matches the bits of `field` under `mask`; replaces what was said of it before. An empty mask removes the field.
    #[must_use]
    pub fn with_masked(mut self, field: Field, value: impl Into<FieldValue>, mask: impl Into<FieldValue>) -> Self {
        self.set(field, value.into().0, mask.into().0);
        self
    }

    /// Also matches a run of bits; what was said of other bits of the field stays.
    #[must_use]
    pub fn with_bits(mut self, bits: Subfield, value: impl Into<FieldValue>) -> Self {
        let before = self.get(bits.field()).unwrap_or(Masked { value: 0, mask: 0 });
        let value = before.value & !bits.mask() | value.into().0 << bits.start();
        self.set(bits.field(), value, before.mask | bits.mask());
        self
    }

    fn set(&mut self, field: Field, value: u128, mask: u128) {
        let parts = field.covered_registers();
        for (index, part) in parts.iter().rev().enumerate() {
            let low = |wide: u128| wide >> (32 * index) & u128::from(u32::MAX);
            self.put(*part, low(value), low(mask));
        }
        match field {
            _ if !parts.is_empty() => {}
            Field::InPort16 => {
                let port = u16::try_from(value).map_or(PortNo(u32::MAX), PortNo::from_u16);
                self.put(Field::InPort, u128::from(port.0), Field::InPort.full_mask());
            }
            Field::VlanTci if mask >> 13 == 0 || mask >> 13 == 7 => {
                self.put(Field::VlanVid, value & 0x1fff, mask & 0x1fff);
                self.put(Field::VlanPcp, value >> 13, mask >> 13);
            }
            Field::NwTos if value & 3 == 0 => self.put(Field::IpDscp, value >> 2, Field::IpDscp.full_mask()),
            _ => self.put(field, value, mask),
        }
    }

    fn put(&mut self, field: Field, value: u128, mask: u128) {
        // Bits above the field stay, for `check` to refuse.
        let masked = Masked { value: value & (mask | !field.full_mask()), mask };
        match (self.place(field), mask) {
            (Ok(at), 0) => drop(self.fields.remove(at)),
            (Ok(at), _) => self.fields[at].1 = masked,
            (Err(_), 0) => {}
            (Err(at), _) => self.fields.insert(at, (field, masked)),
        }
    }

    fn place(&self, field: Field) -> Result<usize, usize> {
        self.fields.binary_search_by_key(&field, |(other, _)| *other)
    }

    /// Gives back the memory that it does not need, for who keeps thousands.
    pub fn shrink_to_fit(&mut self) {
        self.fields.shrink_to_fit();
    }

    /// What the match says of `field`, in canonical form (a wide register is always absent: ask for the plain ones).
    #[must_use]
    pub fn get(&self, field: Field) -> Option<Masked> {
        self.place(field).ok().map(|at| self.fields[at].1)
    }

    /// The value of `field` where it is matched exactly.
    #[must_use]
    pub fn exact(&self, field: Field) -> Option<u128> {
        self.get(field).filter(|masked| masked.mask == field.full_mask()).map(|masked| masked.value)
    }

    /// The fields in the order in which they are sent.
    pub fn iter(&self) -> impl Iterator<Item = (Field, Masked)> + '_ {
        self.fields.iter().copied()
    }

    /// OXM TLVs of fields that this crate does not know, as received.
    pub fn unknown(&self) -> impl Iterator<Item = &[u8]> + '_ {
        self.unknown.iter().map(Vec::as_slice)
    }

    /// Adds the OXM TLV of a field that this crate does not know.
    pub(crate) fn add_unknown(&mut self, tlv: Vec<u8>) {
        self.unknown.insert(tlv);
    }

    /// Whether every packet meets it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.unknown.is_empty()
    }

    /// Whether a packet meets it, whose fields `read` gives. Fields that this crate does not know count as not met.
    pub fn is_met(&self, mut read: impl FnMut(Field) -> u128) -> bool {
        self.unknown.is_empty() && self.fields.iter().all(|(field, masked)| read(*field) & masked.mask == masked.value)
    }

    /// Checks widths, masks and prerequisites.
    ///
    /// # Errors
    /// Names the first field that a switch would refuse.
    pub fn check(&self) -> Result<(), MatchError> {
        for &(field, Masked { value, mask }) in &self.fields {
            let info = field.info();
            let full = field.full_mask();
            if (mask | value) & !full != 0 || matches!(field, Field::NwTos) {
                return Err(MatchError::TooWide { field, bits: info.bits, value, mask });
            }
            if (mask != full && !info.maskable) || matches!(field, Field::VlanTci) {
                return Err(MatchError::NotMaskable { field, mask });
            }
            if let Some(needs) = self.missing(info.prerequisite) {
                return Err(MatchError::Prerequisite { field, needs });
            }
        }
        Ok(())
    }

    /// Whether an action may touch `field` in packets that meet this match.
    pub(crate) fn check_prerequisite(&self, field: Field) -> Result<(), MatchError> {
        match self.missing(field.info().prerequisite) {
            Some(needs) => Err(MatchError::Prerequisite { field, needs }),
            None => Ok(()),
        }
    }

    /// What is missing for `prerequisite` to hold, in words.
    fn missing(&self, prerequisite: Prerequisite) -> Option<&'static str> {
        let ether = |wanted: u16| self.exact(Field::EthType) == Some(u128::from(wanted));
        let proto = |wanted: u8| self.exact(Field::IpProto) == Some(u128::from(wanted));
        let (v4, v6) = (ether(eth_type::IPV4), ether(eth_type::IPV6));
        let icmpv6 = v6 && proto(ip_proto::ICMPV6);
        let neighbour = |wanted: u8| {
            icmpv6
                && self.exact(Field::Icmpv6Type) == Some(u128::from(wanted))
                && self.get(Field::Icmpv6Code).is_none_or(|code| code.value == 0)
        };
        let later = self.get(Field::IpFrag).is_some_and(|frag| frag.value & 2 != 0);
        let (holds, needs) = match prerequisite {
            Prerequisite::None => (true, ""),
            Prerequisite::Vlan => (
                self.get(Field::VlanVid).is_some_and(|vid| vid.value & u128::from(VLAN_PRESENT) != 0),
                "vlan_vid (a tag that is present)",
            ),
            Prerequisite::Ipv4 => (v4, "ip (dl_type 0x0800)"),
            Prerequisite::Ipv6 => (v6, "ipv6 (dl_type 0x86dd)"),
            Prerequisite::Ip => (v4 || v6, "ip or ipv6"),
            Prerequisite::Arp => (ether(eth_type::ARP) || ether(eth_type::RARP), "arp or rarp"),
            Prerequisite::Transport(wanted) => {
                ((v4 || v6) && proto(wanted) && !later, "its transport protocol, and not later fragments")
            }
            Prerequisite::Icmpv4 => (v4 && proto(ip_proto::ICMP) && !later, "icmp"),
            Prerequisite::Icmpv6 => (icmpv6 && !later, "icmp6"),
            Prerequisite::Neighbour => (neighbour(135) || neighbour(136), "icmp6 with type 135 or 136 and code 0"),
            Prerequisite::NeighbourSolicit => (neighbour(135), "icmp6 with type 135 and code 0"),
            Prerequisite::NeighbourAdvert => (neighbour(136), "icmp6 with type 136 and code 0"),
            Prerequisite::Mpls => (ether(eth_type::MPLS) || ether(eth_type::MPLS_MULTICAST), "mpls"),
            Prerequisite::Conntrack => (self.is_tracked_and_valid(), "a ct_state that implies a valid connection"),
        };
        (!holds).then_some(needs)
    }

    /// Whether `ct_state` says that the tracker knows the connection.
    fn is_tracked_and_valid(&self) -> bool {
        use ct_state::{DNAT, ESTABLISHED, INVALID, NEW, RELATED, REPLY, SNAT, TRACKED};
        let state = self.get(Field::CtState).unwrap_or(Masked { value: 0, mask: 0 });
        let has = |bits: u32, of: u128| of & u128::from(bits) != 0;
        has(NEW | ESTABLISHED | RELATED | REPLY | SNAT | DNAT, state.value)
            || (has(TRACKED, state.value) && has(INVALID, state.mask) && !has(INVALID, state.value))
    }
}

/// Shorthands for what is matched most.
impl Match {
    /// Also matches the ingress port.
    #[must_use]
    pub fn in_port(self, port: PortNo) -> Self {
        self.with(Field::InPort, port)
    }

    /// Also matches the EtherType.
    #[must_use]
    pub fn eth_type(self, number: u16) -> Self {
        self.with(Field::EthType, number)
    }

    /// Also matches the Ethernet source.
    #[must_use]
    pub fn eth_src(self, address: [u8; 6]) -> Self {
        self.with(Field::EthSrc, address)
    }

    /// Also matches the Ethernet destination.
    #[must_use]
    pub fn eth_dst(self, address: [u8; 6]) -> Self {
        self.with(Field::EthDst, address)
    }

    /// Also matches packets with a tag of this VLAN (0 to 4095).
    #[must_use]
    pub fn vlan(self, vid: u16) -> Self {
        self.with(Field::VlanVid, u32::from(vid) | u32::from(VLAN_PRESENT))
    }

    /// Also matches packets without a VLAN tag.
    #[must_use]
    pub fn untagged(self) -> Self {
        self.with(Field::VlanVid, 0)
    }

    /// Also matches IPv4.
    #[must_use]
    pub fn ip(self) -> Self {
        self.eth_type(eth_type::IPV4)
    }

    /// Also matches IPv6.
    #[must_use]
    pub fn ipv6(self) -> Self {
        self.eth_type(eth_type::IPV6)
    }

    /// Also matches ARP.
    #[must_use]
    pub fn arp(self) -> Self {
        self.eth_type(eth_type::ARP)
    }

    /// Also matches an IP protocol; say `ip` or `ipv6` as well.
    #[must_use]
    pub fn ip_proto(self, number: u8) -> Self {
        self.with(Field::IpProto, number)
    }

    /// Also matches TCP over IPv4.
    #[must_use]
    pub fn tcp(self) -> Self {
        self.ip().ip_proto(ip_proto::TCP)
    }

    /// Also matches UDP over IPv4.
    #[must_use]
    pub fn udp(self) -> Self {
        self.ip().ip_proto(ip_proto::UDP)
    }

    /// Also matches ICMP over IPv4.
    #[must_use]
    pub fn icmp(self) -> Self {
        self.ip().ip_proto(ip_proto::ICMP)
    }

    /// Also matches TCP over IPv6.
    #[must_use]
    pub fn tcp6(self) -> Self {
        self.ipv6().ip_proto(ip_proto::TCP)
    }

    /// Also matches UDP over IPv6.
    #[must_use]
    pub fn udp6(self) -> Self {
        self.ipv6().ip_proto(ip_proto::UDP)
    }

    /// Also matches ICMPv6.
    #[must_use]
    pub fn icmp6(self) -> Self {
        self.ipv6().ip_proto(ip_proto::ICMPV6)
    }

    /// Also matches sources inside an IPv4 network; `length` above 32 counts as 32.
    #[must_use]
    pub fn ipv4_src_net(self, network: Ipv4Addr, length: u8) -> Self {
        self.with_masked(Field::Ipv4Src, network, prefix(32, length))
    }

    /// Also matches destinations inside an IPv4 network; `length` above 32 counts as 32.
    #[must_use]
    pub fn ipv4_dst_net(self, network: Ipv4Addr, length: u8) -> Self {
        self.with_masked(Field::Ipv4Dst, network, prefix(32, length))
    }

    /// Also matches sources inside an IPv6 network; `length` above 128 counts as 128.
    #[must_use]
    pub fn ipv6_src_net(self, network: Ipv6Addr, length: u8) -> Self {
        self.with_masked(Field::Ipv6Src, network, prefix(128, length))
    }

    /// Also matches destinations inside an IPv6 network; `length` above 128 counts as 128.
    #[must_use]
    pub fn ipv6_dst_net(self, network: Ipv6Addr, length: u8) -> Self {
        self.with_masked(Field::Ipv6Dst, network, prefix(128, length))
    }

    /// Also matches the connection tracking state: `set` bits are one, `clear` bits are zero (see [`ct_state`]).
    #[must_use]
    pub fn ct_state(self, set: u32, clear: u32) -> Self {
        self.with_masked(Field::CtState, set, set | clear)
    }
}

fn prefix(width: u8, length: u8) -> u128 {
    use super::field::ones;
    ones(width) & !ones(width - length.min(width))
}
