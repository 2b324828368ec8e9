//! A match in ovs-ofctl syntax, both ways.
//!
//! Owns the order in which fields are printed, protocol shorthands (`tcp`, `arp`) and legacy names (`dl_vlan`, `tp_dst`).
//! Never checks more than parsing needs, apart from [`Match::check`] at the end of it.
//! Invariant: for every match that passes `check`, parsing its text gives it back.
//! Source: ovs-ofctl(8) "Flow Syntax"; the print order is what `ovs-ofctl` 3.1 was seen to do.

use std::{fmt, str::FromStr};

use super::{
    field::Field,
    matching::{Masked, Match, VLAN_PRESENT, eth_type, ip_proto},
    text::{self, Place, TextError},
};

/// Protocol words: EtherType and IP protocol each stands for.
const SHORTHANDS: [(&str, u16, Option<u8>); 15] = [
    ("icmp", eth_type::IPV4, Some(ip_proto::ICMP)),
    ("tcp", eth_type::IPV4, Some(ip_proto::TCP)),
    ("udp", eth_type::IPV4, Some(ip_proto::UDP)),
    ("sctp", eth_type::IPV4, Some(ip_proto::SCTP)),
    ("icmp6", eth_type::IPV6, Some(ip_proto::ICMPV6)),
    ("tcp6", eth_type::IPV6, Some(ip_proto::TCP)),
    ("udp6", eth_type::IPV6, Some(ip_proto::UDP)),
    ("sctp6", eth_type::IPV6, Some(ip_proto::SCTP)),
    ("ip", eth_type::IPV4, None),
    ("ipv6", eth_type::IPV6, None),
    ("ip6", eth_type::IPV6, None),
    ("arp", eth_type::ARP, None),
    ("rarp", eth_type::RARP, None),
    ("mpls", eth_type::MPLS, None),
    ("mplsm", eth_type::MPLS_MULTICAST, None),
];

/// Fields printed before the protocol word.
const BEFORE_PROTOCOL: &[Field] = &[
    Field::PktMark,
    Field::RecircId,
    Field::DpHash,
    Field::ConjId,
    Field::ActsetOutput,
    Field::CtState,
    Field::CtZone,
    Field::CtMark,
    Field::CtLabel,
    Field::CtNwSrc,
    Field::CtIpv6Src,
    Field::CtNwDst,
    Field::CtIpv6Dst,
    Field::CtNwProto,
    Field::CtTpSrc,
    Field::CtTpDst,
];

/// Fields printed after the registers and before the VLAN.
const BEFORE_VLAN: &[Field] = &[
    Field::TunId,
    Field::TunSrc,
    Field::TunDst,
    Field::TunIpv6Src,
    Field::TunIpv6Dst,
    Field::TunGbpId,
    Field::TunGbpFlags,
    Field::TunFlags,
    Field::Metadata,
    Field::InPort,
];

/// Fields printed after the VLAN and before the EtherType (where no protocol word says it).
const BEFORE_ETH_TYPE: &[Field] = &[Field::EthSrc, Field::EthDst, Field::PacketType];

/// Fields printed last.
const REST: &[Field] = &[
    Field::Ipv4Src,
    Field::Ipv4Dst,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::ArpSpa,
    Field::ArpTpa,
    Field::Ipv6Label,
    Field::IpProto,
    Field::ArpOp,
    Field::ArpSha,
    Field::ArpTha,
    Field::IpDscp,
    Field::IpEcn,
    Field::IpTtl,
    Field::MplsLabel,
    Field::MplsTc,
    Field::MplsTtl,
    Field::MplsBos,
    Field::IpFrag,
    Field::IcmpType,
    Field::IcmpCode,
    Field::Icmpv6Type,
    Field::Icmpv6Code,
    Field::NdTarget,
    Field::NdSll,
    Field::NdTll,
    Field::NdReserved,
    Field::NdOptionsType,
    Field::TcpSrc,
    Field::TcpDst,
    Field::UdpSrc,
    Field::UdpDst,
    Field::SctpSrc,
    Field::SctpDst,
    Field::TcpFlags,
    Field::VlanTci,
    Field::NwTos,
];

/// Collects `key=value` items separated by commas.
struct Items<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    first: bool,
}

impl Items<'_, '_> {
    fn item(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.f.write_str(",")?;
        }
        self.f.write_fmt(text)
    }

    fn fields(&mut self, of: &Match, fields: &[Field]) -> fmt::Result {
        fields.iter().try_for_each(|field| match of.get(*field) {
            Some(masked) => self.field(*field, masked),
            None => Ok(()),
        })
    }

    fn field(&mut self, field: Field, Masked { value, mask }: Masked) -> fmt::Result {
        let name = field.info().match_name;
        match field {
            Field::IpDscp => return self.item(format_args!("nw_tos={}", value << 2)),
            Field::CtZone => return self.item(format_args!("{name}={value}")),
            Field::Ipv6Label if mask == field.full_mask() => return self.item(format_args!("{name}=0x{value:05x}")),
            Field::EthType => return self.item(format_args!("{name}=0x{value:04x}")),
            Field::CtLabel => {
                let hex = |value: u128| format!("{value:#x}");
                return match mask == field.full_mask() {
                    true => self.item(format_args!("{name}={}", hex(value))),
                    false => self.item(format_args!("{name}={}/{}", hex(value), hex(mask))),
                };
            }
            _ => {}
        }
        let mut shown = String::new();
        text::format_value(&mut shown, field, (value, mask), Place::Match)?;
        self.item(format_args!("{name}={shown}"))
    }

    fn vlan(&mut self, of: &Match) -> fmt::Result {
        let none = Masked { value: 0, mask: 0 };
        let vid = of.get(Field::VlanVid).unwrap_or(none);
        let pcp = of.get(Field::VlanPcp).unwrap_or(none);
        if vid.mask | pcp.mask == 0 {
            return Ok(());
        }
        let present = u128::from(VLAN_PRESENT);
        let vid_mask = vid.mask & 0xfff;
        if vid.value & present != 0 && matches!(vid_mask, 0 | 0xfff) && vid_mask | pcp.mask != 0 {
            if vid_mask != 0 {
                self.item(format_args!("dl_vlan={}", vid.value & 0xfff))?;
            }
            if pcp.mask != 0 {
                self.item(format_args!("dl_vlan_pcp={}", pcp.value))?;
            }
            return Ok(());
        }
        let (value, mask) = (vid.value | pcp.value << 13, vid.mask | pcp.mask << 13);
        if mask == 0xffff {
            return self.item(format_args!("vlan_tci=0x{value:04x}"));
        }
        self.item(format_args!("vlan_tci=0x{value:04x}/0x{mask:04x}"))
    }
}

/// The protocol word for this match, with whether it also says the IP protocol.
fn shorthand(of: &Match) -> Option<(&'static str, bool)> {
    let ether = of.exact(Field::EthType)?;
    let proto = of.exact(Field::IpProto);
    SHORTHANDS
        .iter()
        .find(|(_, e, p)| u128::from(*e) == ether && p.is_none_or(|p| Some(u128::from(p)) == proto))
        .map(|(word, _, p)| (*word, p.is_some()))
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = Items { f, first: true };
        items.fields(self, BEFORE_PROTOCOL)?;
        let word = shorthand(self);
        if let Some((word, _)) = word {
            items.item(format_args!("{word}"))?;
        }
        items.fields(self, &Field::REGS)?;
        items.fields(self, BEFORE_VLAN)?;
        items.vlan(self)?;
        items.fields(self, BEFORE_ETH_TYPE)?;
        if word.is_none() {
            items.fields(self, &[Field::EthType])?;
        }
        let says_proto = matches!(word, Some((_, true)));
        for field in REST.iter().filter(|field| !(says_proto && **field == Field::IpProto)) {
            items.fields(self, &[*field])?;
        }
        self.unknown().try_for_each(|tlv| {
            let hex: String = tlv.iter().map(|octet| format!("{octet:02x}")).collect();
            items.item(format_args!("oxm({hex})"))
        })
    }
}

impl FromStr for Match {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let mut parsed = Self::new();
        let mut dependent = Vec::new();
        for item in text::items(text)? {
            let (key, value) = text::key_value(item);
            if !parse_item(&mut parsed, key, value)? {
                dependent.push((key, value.ok_or_else(|| TextError::MissingValue(key.to_owned()))?));
            }
        }
        dependent.sort_by_key(|(key, _)| *key != "nw_proto");
        for (key, value) in dependent {
            let field = dependent_field(&parsed, key)?;
            set_parsed(&mut parsed, field, key, value)?;
        }
        parsed.check().map_err(|error| TextError::Invalid(error.to_string()))?;
        Ok(parsed)
    }
}

/// Takes one item into `parsed`; false when its meaning depends on the protocol, which may come later in the text.
pub(super) fn parse_item(parsed: &mut Match, key: &str, value: Option<&str>) -> Result<bool, TextError> {
    if let Some((_, ether, proto)) = SHORTHANDS.iter().find(|(word, ..)| *word == key && value.is_none()) {
        let taken = std::mem::take(parsed).eth_type(*ether);
        *parsed = if let Some(proto) = proto { taken.ip_proto(*proto) } else { taken };
        return Ok(true);
    }
    let value = value.ok_or_else(|| TextError::MissingValue(key.to_owned()))?;
    match key {
        "tp_src" | "tp_dst" | "icmp_type" | "icmp_code" | "nw_src" | "nw_dst" | "nw_proto" => return Ok(false),
        "dl_vlan" => {
            let vid: u16 = text::number(key, value)?;
            *parsed = match vid {
                0xffff => std::mem::take(parsed).untagged(),
                0..=0xfff => std::mem::take(parsed).vlan(vid),
                _ => return Err(text::bad(key, value)),
            };
        }
        "dl_vlan_pcp" | "vlan_pcp" => {
            set_parsed(parsed, Field::VlanPcp, key, value)?;
            if parsed.get(Field::VlanVid).is_none() {
                *parsed = std::mem::take(parsed).with_masked(Field::VlanVid, VLAN_PRESENT, VLAN_PRESENT);
            }
        }
        "oxm" => parsed.add_unknown(parse_hex(key, value)?),
        _ => {
            let field = match_field(key).ok_or_else(|| TextError::UnknownField(key.to_owned()))?;
            set_parsed(parsed, field, key, value)?;
        }
    }
    Ok(true)
}

/// The field that a name stands for in a match, where numbers of ports are always 32-bit ones.
fn match_field(key: &str) -> Option<Field> {
    match Field::by_name(key) {
        Some(Field::InPort16) => Some(Field::InPort),
        field => field,
    }
}

/// What a name stands for under the protocol that the match names.
pub(super) fn dependent_field(of: &Match, key: &str) -> Result<Field, TextError> {
    let ether = of.exact(Field::EthType).and_then(|ether| u16::try_from(ether).ok());
    let proto = of.exact(Field::IpProto).and_then(|proto| u8::try_from(proto).ok());
    let arp = matches!(ether, Some(eth_type::ARP | eth_type::RARP));
    let field = match (key, proto) {
        ("nw_src", _) if arp => Field::ArpSpa,
        ("nw_dst", _) if arp => Field::ArpTpa,
        ("nw_proto", _) if arp => Field::ArpOp,
        ("nw_src", _) => Field::Ipv4Src,
        ("nw_dst", _) => Field::Ipv4Dst,
        ("nw_proto", _) => Field::IpProto,
        ("tp_src", Some(ip_proto::TCP)) => Field::TcpSrc,
        ("tp_dst", Some(ip_proto::TCP)) => Field::TcpDst,
        ("tp_src", Some(ip_proto::UDP)) => Field::UdpSrc,
        ("tp_dst", Some(ip_proto::UDP)) => Field::UdpDst,
        ("tp_src", Some(ip_proto::SCTP)) => Field::SctpSrc,
        ("tp_dst", Some(ip_proto::SCTP)) => Field::SctpDst,
        ("icmp_type", Some(ip_proto::ICMPV6)) => Field::Icmpv6Type,
        ("icmp_code", Some(ip_proto::ICMPV6)) => Field::Icmpv6Code,
        ("icmp_type", _) => Field::IcmpType,
        ("icmp_code", _) => Field::IcmpCode,
        _ => return Err(TextError::Invalid(format!("{key} needs a match on tcp, udp or sctp as well"))),
    };
    Ok(field)
}

/// Reads the value of a field into `parsed`.
pub(super) fn set_parsed(parsed: &mut Match, field: Field, key: &str, value: &str) -> Result<(), TextError> {
    let (parsed_value, mask) = text::parse_value(field, key, value)?;
    if (parsed_value | mask) & !field.full_mask() != 0 {
        return Err(text::bad(key, value));
    }
    *parsed = std::mem::take(parsed).with_masked(field, parsed_value, mask);
    Ok(())
}

fn parse_hex(key: &str, text: &str) -> Result<Vec<u8>, TextError> {
    if text.len() < 8 || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Err(text::bad(key, text));
    }
    let octets = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    octets.collect::<Result<_, _>>().map_err(|_| text::bad(key, text))
}
