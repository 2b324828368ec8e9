//! The connection tracking action and address translation inside it.
//!
//! Owns [`Ct`], [`Nat`] and their text. Never knows what zones or marks mean.
//! Invariant: text and value convert both ways without loss.
//! Source: ovs-actions(7) "The ct action".

use std::{fmt, net::IpAddr};

use super::{
    action::Action,
    action_text::{ActionList, parse_list},
    subfield::Subfield,
    text::{self, TextError},
};

/// The zone of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtZone {
    /// This number.
    Fixed(u16),
    /// The number in these 16 bits.
    From(Subfield),
}

impl Default for CtZone {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

/// Sends the packet through connection tracking.
///
/// ```
/// use openflow::flow::{Action, Ct, CtZone, Field, Subfield};
/// let track = Ct { zone: CtZone::From(Subfield::new(Field::Reg3, 0, 16)?), table: Some(21), ..Ct::default() };
/// assert_eq!(Action::ct(track).to_string(), "ct(table=21,zone=NXM_NX_REG3[0..15])");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ct {
    /// Whether the connection is committed.
    pub commit: bool,
    /// Whether a connection of the other direction is replaced; needs `commit`.
    pub force: bool,
    /// The zone.
    pub zone: CtZone,
    /// The table in which the packet continues with its state known; `None` continues here without it.
    pub table: Option<u8>,
    /// Port of the protocol whose helper is attached: 21 FTP, 69 TFTP; 0 is none.
    pub helper_port: u16,
    /// `nat`, and writes to `ct_mark` and `ct_label`.
    pub actions: Vec<Action>,
}

impl Ct {
    /// Commits the connection in `zone`.
    #[must_use]
    pub fn commit(zone: CtZone) -> Self {
        Self { commit: true, zone, ..Self::default() }
    }

    /// Tracks in `zone` and continues in `table`.
    #[must_use]
    pub fn track(zone: CtZone, table: u8) -> Self {
        Self { zone, table: Some(table), ..Self::default() }
    }
}

const HELPERS: [(u16, &str); 2] = [(21, "ftp"), (69, "tftp")];

impl fmt::Display for Ct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.commit {
            parts.push("commit".to_owned());
        }
        if self.force {
            parts.push("force".to_owned());
        }
        parts.extend(self.table.map(|table| format!("table={table}")));
        match self.zone {
            CtZone::Fixed(0) => {}
            CtZone::Fixed(zone) => parts.push(format!("zone={zone}")),
            CtZone::From(bits) => parts.push(format!("zone={bits}")),
        }
        let mut rest = self.actions.as_slice();
        if let [first @ Action::Nat(_), others @ ..] = rest {
            parts.push(first.to_string());
            rest = others;
        }
        if !rest.is_empty() {
            parts.push(format!("exec({})", ActionList(rest)));
        }
        if self.helper_port != 0 {
            let name = HELPERS.iter().find(|(port, _)| *port == self.helper_port).map(|(_, name)| (*name).to_owned());
            parts.push(format!("alg={}", name.unwrap_or_else(|| self.helper_port.to_string())));
        }
        write!(f, "ct({})", parts.join(","))
    }
}

impl Ct {
    pub(super) fn parse(text: &str, depth: usize) -> Result<Self, TextError> {
        let mut ct = Self::default();
        let mut nat = None;
        for item in text::items(text)? {
            let (key, value) = text::key_value(item);
            match (key, value) {
                ("commit", None) => ct.commit = true,
                ("force", None) => ct.force = true,
                ("nat", value) => nat = Some(Nat::parse(value.unwrap_or(""))?),
                ("table", Some(value)) => ct.table = Some(text::number(key, value)?),
                ("zone", Some(value)) if value.starts_with(|c: char| c.is_ascii_digit()) => {
                    ct.zone = CtZone::Fixed(text::number(key, value)?);
                }
                ("zone", Some(value)) => ct.zone = CtZone::From(value.parse()?),
                ("alg", Some(value)) => {
                    let known = HELPERS.iter().find(|(_, name)| *name == value).map(|(port, _)| *port);
                    ct.helper_port = known.map_or_else(|| text::number(key, value), Ok)?;
                }
                ("exec", Some(value)) => ct.actions.extend(parse_list(value, depth + 1)?),
                _ => return Err(TextError::UnknownKey { key: key.to_owned(), context: "ct()" }),
            }
        }
        if let Some(nat) = nat {
            ct.actions.insert(0, Action::Nat(nat));
        }
        Ok(ct)
    }
}

/// Which end of the connection is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatSide {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// Where addresses and ports are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatRange {
    /// Which end.
    pub side: NatSide,
    /// First and last address; both of one family.
    pub addresses: Option<(IpAddr, Option<IpAddr>)>,
    /// First and last port. Only with addresses.
    pub ports: Option<(u16, Option<u16>)>,
}

/// How a port is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum NatChoice {
    /// As the switch likes.
    #[default]
    Default,
    /// By hash.
    Hash,
    /// At random.
    Random,
}

/// Address translation inside [`Ct`]. Without a range it only applies what a committed connection says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nat {
    /// The new addresses and ports.
    pub range: Option<NatRange>,
    /// Whether the mapping outlives a restart of the tracker.
    pub persistent: bool,
    /// How the port is chosen.
    pub choice: NatChoice,
}

fn bracketed(address: IpAddr, with_ports: bool) -> String {
    if with_ports && address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(range) = self.range {
            let mut part = String::from(if range.side == NatSide::Source { "src" } else { "dst" });
            if let Some((first, last)) = range.addresses {
                part += &format!("={}", bracketed(first, range.ports.is_some()));
                if let Some(last) = last {
                    part += &format!("-{}", bracketed(last, range.ports.is_some()));
                }
            }
            if let Some((first, last)) = range.ports {
                part += &format!(":{first}");
                if let Some(last) = last {
                    part += &format!("-{last}");
                }
            }
            parts.push(part);
        }
        if self.persistent {
            parts.push("persistent".to_owned());
        }
        match self.choice {
            NatChoice::Default => {}
            NatChoice::Hash => parts.push("hash".to_owned()),
            NatChoice::Random => parts.push("random".to_owned()),
        }
        if parts.is_empty() {
            return f.write_str("nat");
        }
        write!(f, "nat({})", parts.join(","))
    }
}

impl Nat {
    pub(super) fn parse(text: &str) -> Result<Self, TextError> {
        let mut nat = Self::default();
        for item in text::items(text)? {
            let (key, value) = item.split_once('=').map_or((item, None), |(key, value)| (key, Some(value)));
            match key {
                "src" => nat.range = Some(parse_range(NatSide::Source, key, value)?),
                "dst" => nat.range = Some(parse_range(NatSide::Destination, key, value)?),
                "persistent" => nat.persistent = true,
                "hash" => nat.choice = NatChoice::Hash,
                "random" => nat.choice = NatChoice::Random,
                _ => return Err(TextError::UnknownKey { key: key.to_owned(), context: "nat()" }),
            }
        }
        Ok(nat)
    }
}

fn parse_range(side: NatSide, key: &str, value: Option<&str>) -> Result<NatRange, TextError> {
    let Some(value) = value else { return Ok(NatRange { side, addresses: None, ports: None }) };
    let (first, rest) = parse_address(key, value)?;
    let (last, rest) = match rest.strip_prefix('-') {
        None => (None, rest),
        Some(rest) => parse_address(key, rest).map(|(last, rest)| (Some(last), rest))?,
    };
    let ports = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err(text::bad(key, value)),
        Some(ports) => Some(match ports.split_once('-') {
            None => (text::number(key, ports)?, None),
            Some((first, last)) => (text::number(key, first)?, Some(text::number(key, last)?)),
        }),
    };
    if last.is_some_and(|last| last.is_ipv4() != first.is_ipv4()) {
        return Err(text::bad(key, value));
    }
    Ok(NatRange { side, addresses: Some((first, last)), ports })
}

/// Reads one address from the front; gives what follows it. An IPv6 address with ports stands in brackets.
fn parse_address<'a>(key: &str, text: &'a str) -> Result<(IpAddr, &'a str), TextError> {
    let (address, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or_else(|| text::bad(key, text))?,
        None => {
            let stops: &[char] = if text.contains('.') && !text.contains("::") { &['-', ':'] } else { &['-'] };
            text.split_at(text.find(stops).unwrap_or(text.len()))
        }
    };
    Ok((address.parse().map_err(|_| text::bad(key, text))?, rest))
}
