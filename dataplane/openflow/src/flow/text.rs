//! Reading ovs-ofctl syntax: cutting text into items and keys, and reading and writing values of fields.
//!
//! Owns the grammar below the level of flows and actions. Never looks at what a key means.
//! Invariant: for every format, parsing what was printed gives the value back.
//! Source: ovs-ofctl(8) "Flow Syntax", ovs-fields(7).

use std::{
    fmt::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
};

use thiserror::Error;

use super::{
    PortNo,
    field::{Field, Format, ones},
    subfield::{Subfield, SubfieldError},
};

/// Text that is not in ovs-ofctl syntax.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TextError {
    /// Parentheses do not pair up.
    #[error("unbalanced parentheses in {0:?}")]
    Unbalanced(String),
    /// Nested deeper than is ever useful.
    #[error("actions nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// No such field.
    #[error("no field is called {0:?}")]
    UnknownField(String),
    /// No such key or action.
    #[error("{key:?} is not known in {context}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it stood.
        context: &'static str,
    },
    /// A value that the key cannot take.
    #[error("{value:?} is not a value for {key}")]
    BadValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// A key without the value it needs.
    #[error("{0} needs a value")]
    MissingValue(String),
    /// Bits that a field does not have.
    #[error("bad subfield")]
    Subfield(#[from] SubfieldError),
    /// A combination that cannot be.
    #[error("{0}")]
    Invalid(String),
}

pub(crate) fn bad(key: &str, value: &str) -> TextError {
    TextError::BadValue { key: key.to_owned(), value: value.to_owned() }
}

/// Cuts `text` at commas and white space outside of parentheses; empty items vanish.
pub(crate) fn items(text: &str) -> Result<Vec<&str>, TextError> {
    let pieces = cut(text, |c| c == ',' || c.is_ascii_whitespace())?;
    Ok(pieces.into_iter().filter(|piece| !piece.is_empty()).collect())
}

/// Cuts `text` at characters outside of parentheses that `is_cut` accepts; empty pieces stay.
pub(crate) fn cut(text: &str, is_cut: impl Fn(char) -> bool) -> Result<Vec<&str>, TextError> {
    let mut pieces = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or_else(|| TextError::Unbalanced(text.to_owned()))?,
            c if depth == 0 && is_cut(c) => {
                pieces.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(TextError::Unbalanced(text.to_owned()));
    }
    pieces.push(&text[start..]);
    Ok(pieces)
}

/// Cuts an item into key and value at the first `=`, `:` or `(`; the value of `key(value)` comes without its parentheses.
pub(crate) fn key_value(item: &str) -> (&str, Option<&str>) {
    let Some(at) = item.find(['=', ':', '(']) else { return (item, None) };
    let (key, rest) = item.split_at(at);
    match rest.strip_prefix('(') {
        Some(inner) => (key, Some(inner.strip_suffix(')').unwrap_or(rest))),
        None => (key, Some(&rest[1..])),
    }
}

/// Reads a decimal or `0x` hexadecimal number that fits the target type.
pub(crate) fn number<T: TryFrom<u128>>(key: &str, text: &str) -> Result<T, TextError> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u128::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.ok().and_then(|value| T::try_from(value).ok()).ok_or_else(|| bad(key, text))
}

/// A number printed as ovs-ofctl prints hexadecimal in matches: zero without a prefix.
pub(crate) struct AltHex(pub(crate) u128);

impl fmt::Display for AltHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { f.write_str("0") } else { write!(f, "{:#x}", self.0) }
    }
}

/// Six octets as an Ethernet address.
pub(crate) struct Ethernet(pub(crate) u128);

impl fmt::Display for Ethernet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, shift) in [40, 32, 24, 16, 8, 0].into_iter().enumerate() {
            if index > 0 {
                f.write_char(':')?;
            }
            write!(f, "{:02x}", self.0 >> shift & 0xff)?;
        }
        Ok(())
    }
}

fn parse_ethernet(key: &str, text: &str) -> Result<u128, TextError> {
    let octets: Vec<_> = text.split(':').collect();
    if octets.len() != 6 || octets.iter().any(|octet| octet.is_empty() || octet.len() > 2) {
        return Err(bad(key, text));
    }
    octets.iter().try_fold(0_u128, |sum, octet| {
        u8::from_str_radix(octet, 16).map(|octet| sum << 8 | u128::from(octet)).map_err(|_| bad(key, text))
    })
}

/// The low 32 bits as an IPv4 address.
pub(crate) fn ipv4(value: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::try_from(value & u128::from(u32::MAX)).unwrap_or(0))
}

/// Names of single-bit flags, least significant first; unnamed bits have an empty name.
type FlagNames = &'static [&'static str];

const CT_STATE: FlagNames = &["new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"];
const TUNNEL_FLAGS: FlagNames = &["oam"];
const TCP_FLAGS: FlagNames = &["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];

fn flag_names(format: Format) -> FlagNames {
    match format {
        Format::CtState => CT_STATE,
        Format::TunnelFlags => TUNNEL_FLAGS,
        Format::TcpFlags => TCP_FLAGS,
        _ => &[],
    }
}

fn format_flags(value: u128, mask: u128, full: u128, names: FlagNames, f: &mut dyn fmt::Write) -> fmt::Result {
    let bits = (0..names.len()).filter(|bit| mask >> bit & 1 == 1);
    if mask != full {
        return bits
            .into_iter()
            .try_for_each(|bit| write!(f, "{}{}", if value >> bit & 1 == 1 { '+' } else { '-' }, names[bit]));
    }
    if value == 0 {
        return f.write_char('0');
    }
    let mut first = true;
    for bit in bits.filter(|bit| value >> bit & 1 == 1) {
        if !std::mem::take(&mut first) {
            f.write_char('|')?;
        }
        f.write_str(names[bit])?;
    }
    Ok(())
}

fn parse_flags(key: &str, text: &str, full: u128, names: FlagNames) -> Result<(u128, u128), TextError> {
    let bit_of = |name: &str| names.iter().position(|known| *known == name).ok_or_else(|| bad(key, text));
    if !text.starts_with(['+', '-']) {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return parse_masked_number(key, text, full);
        }
        let value = text.split('|').try_fold(0_u128, |sum, name| bit_of(name).map(|bit| sum | 1 << bit))?;
        return Ok((value, full));
    }
    let (mut value, mut mask) = (0_u128, 0_u128);
    let mut rest = text;
    while let Some(sign) = rest.chars().next() {
        let tail = &rest[1..];
        let end = tail.find(['+', '-']).unwrap_or(tail.len());
        let bit = bit_of(&tail[..end])?;
        mask |= 1 << bit;
        if sign == '+' {
            value |= 1 << bit;
        }
        rest = &tail[end..];
    }
    Ok((value, mask))
}

fn parse_masked_number(key: &str, text: &str, full: u128) -> Result<(u128, u128), TextError> {
    match text.split_once('/') {
        Some((value, mask)) => Ok((number(key, value)?, number(key, mask)?)),
        None => Ok((number(key, text)?, full)),
    }
}

const FRAGMENTS: [(&str, u128, u128); 5] =
    [("no", 0, 3), ("yes", 1, 1), ("first", 1, 3), ("later", 3, 3), ("not_later", 0, 2)];

fn parse_ipv4(key: &str, text: &str) -> Result<(u128, u128), TextError> {
    let address = |text: &str| text.parse::<Ipv4Addr>().map(|a| u128::from(a.to_bits())).map_err(|_| bad(key, text));
    match text.split_once('/') {
        None => Ok((address(text)?, ones(32))),
        Some((value, mask)) if mask.contains('.') => Ok((address(value)?, address(mask)?)),
        Some((value, length)) => Ok((address(value)?, prefix_mask(key, length, 32)?)),
    }
}

fn parse_ipv6(key: &str, text: &str) -> Result<(u128, u128), TextError> {
    let address = |text: &str| text.parse::<Ipv6Addr>().map(Ipv6Addr::to_bits).map_err(|_| bad(key, text));
    match text.split_once('/') {
        None => Ok((address(text)?, u128::MAX)),
        Some((value, mask)) if mask.contains(':') => Ok((address(value)?, address(mask)?)),
        Some((value, length)) => Ok((address(value)?, prefix_mask(key, length, 128)?)),
    }
}

fn prefix_mask(key: &str, length: &str, width: u8) -> Result<u128, TextError> {
    let bits: u8 = number(key, length)?;
    if bits > width {
        return Err(bad(key, length));
    }
    Ok(ones(width) & !ones(width - bits))
}

/// The prefix length that `mask` stands for, if it stands for one.
fn prefix_length(mask: u128, width: u8) -> Option<u8> {
    (0..=width).find(|bits| ones(width) & !ones(width - bits) == mask)
}

/// Name space and type in parentheses, or one number.
fn parse_packet_type(key: &str, text: &str) -> Result<u128, TextError> {
    match text.trim_start_matches('(').trim_end_matches(')').split_once(',') {
        Some((space, kind)) => {
            let (space, kind): (u16, u16) = (number(key, space.trim())?, number(key, kind.trim())?);
            Ok(u128::from(space) << 16 | u128::from(kind))
        }
        None => number(key, text),
    }
}

/// Reads the text of a value with optional mask for `field`. The result may be too wide: the caller checks.
pub(crate) fn parse_value(field: Field, key: &str, text: &str) -> Result<(u128, u128), TextError> {
    let full = field.full_mask();
    match field.info().format {
        Format::Decimal | Format::Hexadecimal => parse_masked_number(key, text, full),
        Format::Ethernet => match text.split_once('/') {
            Some((value, mask)) => Ok((parse_ethernet(key, value)?, parse_ethernet(key, mask)?)),
            None => Ok((parse_ethernet(key, text)?, full)),
        },
        Format::Ipv4 => parse_ipv4(key, text),
        Format::Ipv6 => parse_ipv6(key, text),
        Format::Fragment => match FRAGMENTS.iter().find(|(name, ..)| *name == text) {
            Some((_, value, mask)) => Ok((*value, *mask)),
            None => parse_masked_number(key, text, full),
        },
        Format::PacketType => Ok((parse_packet_type(key, text)?, full)),
        Format::Port => {
            let port: PortNo = text.parse().map_err(|_| bad(key, text))?;
            let value = match field {
                Field::InPort16 => u128::from(port.to_u16().ok_or_else(|| bad(key, text))?),
                _ => u128::from(port.0),
            };
            Ok((value, full))
        }
        format => parse_flags(key, text, full, flag_names(format)),
    }
}

/// Where a value is printed, since ovs-ofctl writes numbers differently in the two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Inside a match.
    Match,
    /// Inside `set_field`.
    Action,
}

/// Writes a value with its mask as ovs-ofctl does.
pub(crate) fn format_value(
    f: &mut dyn fmt::Write,
    field: Field,
    (value, mask): (u128, u128),
    place: Place,
) -> fmt::Result {
    let full = field.full_mask();
    let exact = mask == full;
    let hex = |value: u128| if place == Place::Match { AltHex(value).to_string() } else { format!("{value:#x}") };
    match field.info().format {
        Format::Decimal if exact => write!(f, "{value}"),
        Format::Decimal | Format::Hexadecimal if !exact => write!(f, "{}/{}", hex(value), hex(mask)),
        Format::Decimal | Format::Hexadecimal => f.write_str(&hex(value)),
        Format::Ethernet if exact => write!(f, "{}", Ethernet(value)),
        Format::Ethernet => write!(f, "{}/{}", Ethernet(value), Ethernet(mask)),
        Format::Ipv4 => {
            write!(f, "{}", ipv4(value))?;
            match prefix_length(mask, 32) {
                _ if exact => Ok(()),
                Some(length) => write!(f, "/{length}"),
                None => write!(f, "/{}", ipv4(mask)),
            }
        }
        Format::Ipv6 => {
            write!(f, "{}", Ipv6Addr::from_bits(value))?;
            match prefix_length(mask, 128) {
                _ if exact => Ok(()),
                Some(length) => write!(f, "/{length}"),
                None => write!(f, "/{}", Ipv6Addr::from_bits(mask)),
            }
        }
        Format::Fragment => match FRAGMENTS.iter().find(|(_, v, m)| (*v, *m) == (value, mask)) {
            Some((name, ..)) => f.write_str(name),
            None => write!(f, "{}/{}", hex(value), hex(mask)),
        },
        Format::PacketType => write!(f, "({},{:#x})", value >> 16, value & 0xffff),
        Format::Port => match field {
            Field::InPort16 => write!(f, "{}", PortNo::from_u16(u16::try_from(value).unwrap_or(u16::MAX))),
            _ => write!(f, "{}", PortNo(u32::try_from(value).unwrap_or(u32::MAX))),
        },
        format => {
            let names = flag_names(format);
            if mask & !ones(u8::try_from(names.len()).unwrap_or(u8::MAX)) & full != 0 && !exact {
                return write!(f, "{}/{}", hex(value), hex(mask));
            }
            // The one tunnel flag is signed in a match even though it is the whole field.
            let listed = if format == Format::TunnelFlags && place == Place::Match { u128::MAX } else { full };
            format_flags(value, mask, listed, names, f)
        }
    }
}

impl std::str::FromStr for Subfield {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let (name, range) = match text.split_once('[') {
            None => (text, ""),
            Some((name, rest)) => (name, rest.strip_suffix(']').ok_or_else(|| bad("subfield", text))?),
        };
        let field = Field::by_name(name).ok_or_else(|| TextError::UnknownField(name.to_owned()))?;
        if range.is_empty() {
            return Ok(Self::whole(field));
        }
        let (first, last): (u8, u8) = match range.split_once("..") {
            Some((first, last)) => (number("subfield", first)?, number("subfield", last)?),
            None => (number("subfield", range)?, number("subfield", range)?),
        };
        let bits = last.checked_sub(first).and_then(|bits| bits.checked_add(1)).ok_or_else(|| bad("subfield", text))?;
        Ok(Self::new(field, first, bits)?)
    }
}

/// Connection tracking state bits, for [`Field::CtState`].
pub mod ct_state {
    /// The packet begins a connection that is not committed yet.
    pub const NEW: u32 = 0x01;
    /// The packet belongs to a committed connection.
    pub const ESTABLISHED: u32 = 0x02;
    /// The packet is related to a committed connection (an ICMP error, an FTP data connection).
    pub const RELATED: u32 = 0x04;
    /// The packet flows against the direction that opened the connection.
    pub const REPLY: u32 = 0x08;
    /// The tracker could not make sense of the packet.
    pub const INVALID: u32 = 0x10;
    /// The packet has been through the tracker.
    pub const TRACKED: u32 = 0x20;
    /// Source address translation was applied.
    pub const SNAT: u32 = 0x40;
    /// Destination address translation was applied.
    pub const DNAT: u32 = 0x80;
}
