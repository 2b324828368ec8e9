//! Flow records as a collector reads them: IPFIX (RFC 7011) off the wire, of what Open vSwitch sends as much as tests ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

/// Information elements (IANA registry "IPFIX Information Elements").
const PACKETS: u16 = 2;
const SOURCE_IPV4: u16 = 8;
const TARGET_IPV4: u16 = 12;
const SOURCE_IPV6: u16 = 27;
const TARGET_IPV6: u16 = 28;
const DIRECTION: u16 = 61;
const PACKETS_TOTAL: u16 = 86;
const DROPPED_TOTAL: u16 = 135;
const SELECTOR_NAME: u16 = 335;
const STATION_INTERFACE_NAME: u16 = 348;
const INTERFACE_NAME: u16 = 82;
/// What marks an element as somebody's own, whose number follows; the length of an element that says its own; and the sets that are no data
/// (RFC 7011 §3.2, §7 and §3.3.2).
const ENTERPRISE: u16 = 0x8000;
const VARIABLE: u16 = 0xffff;
const LONG: u64 = 255;
const TEMPLATES: u16 = 2;
const DATA: u16 = 256;

/// The elements of a template with their lengths; those of enterprises have no number here.
type Elements = Vec<(Option<u16>, u16)>;

/// What a collector was told.
#[derive(Debug, Default)]
pub struct Told {
    /// Of each exporter's templates the elements.
    templates: BTreeMap<(SocketAddr, u16), Elements>,
    /// Packets by source and destination.
    pub packets: BTreeMap<(IpAddr, IpAddr), u64>,
    /// Packets of named ports, by their name and direction: 0 is into the switch.
    pub ports: BTreeMap<(String, u8), u64>,
    /// Packets that were let by or dropped, by what decided that.
    pub selectors: BTreeMap<String, u64>,
    /// Where they came in or went out.
    pub interfaces: BTreeSet<String>,
    /// Who tells of flows.
    pub domains: BTreeSet<u32>,
}

fn address(octets: &[u8]) -> Result<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(Ipv4Addr::from).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(Ipv6Addr::from).map(IpAddr::from)).context("an address")
}

fn number(octets: &[u8]) -> u64 {
    octets.iter().fold(0, |number, octet| number << 8 | u64::from(*octet))
}

/// Takes the first octets off.
fn cut<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (head, tail) = from.split_at_checked(length).with_context(|| format!("{length} octets of {}", from.len()))?;
    *from = tail;
    Ok(head)
}

/// A value that says its own length, in one octet or in the two behind it (RFC 7011 §7).
fn variable<'a>(from: &mut &'a [u8]) -> Result<&'a [u8]> {
    let short = number(cut(from, 1)?);
    let length = if short == LONG { number(cut(from, 2)?) } else { short };
    cut(from, usize::try_from(length)?)
}

fn word(from: &mut &[u8]) -> Result<u16> {
    Ok(u16::try_from(number(cut(from, 2)?))?)
}

impl Told {
    /// Takes a message of an exporter: its header and the sets behind it (RFC 7011 §3.1).
    ///
    /// # Errors
    /// It is no message of IPFIX, or ends in the middle of one.
    pub fn take(&mut self, exporter: SocketAddr, mut from: &[u8]) -> Result<()> {
        let (version, length) = (word(&mut from)?, usize::from(word(&mut from)?));
        ensure!((version, length) == (10, from.len() + 4), "version {version}, {length} octets, {} more", from.len());
        cut(&mut from, 8)?;
        let domain = u32::try_from(number(cut(&mut from, 4)?))?;
        while !from.is_empty() {
            let (set, length) = (word(&mut from)?, usize::from(word(&mut from)?));
            let body = cut(&mut from, length - 4)?;
            match set {
                TEMPLATES => self.template(exporter, body)?,
                DATA.. if self.templates.contains_key(&(exporter, set)) => {
                    self.domains.insert(domain);
                    self.records((exporter, set), body)?;
                }
                // Options say nothing of flows.
                _ => {}
            }
        }
        Ok(())
    }

    fn template(&mut self, exporter: SocketAddr, mut from: &[u8]) -> Result<()> {
        while !from.is_empty() {
            let (id, count) = (word(&mut from)?, word(&mut from)?);
            let mut elements = Vec::new();
            for _ in 0..count {
                let (element, length) = (word(&mut from)?, word(&mut from)?);
                let is_own = element & ENTERPRISE != 0;
                elements.push(((!is_own).then_some(element), length));
                cut(&mut from, if is_own { 4 } else { 0 })?;
            }
            self.templates.insert((exporter, id), elements);
        }
        Ok(())
    }

    fn records(&mut self, template: (SocketAddr, u16), mut from: &[u8]) -> Result<()> {
        let elements = self.templates.get(&template).context("template")?;
        ensure!(!elements.is_empty(), "template {template:?} is of nothing");
        while !from.is_empty() {
            let mut record = BTreeMap::new();
            for (element, length) in elements {
                let value = match *length {
                    VARIABLE => variable(&mut from)?,
                    length => cut(&mut from, length.into())?,
                };
                element.map(|element| record.insert(element, value));
            }
            let count = |element| record.get(&element).map_or(0, |value| number(value));
            let text = |element| record.get(&element).map(|value| String::from_utf8_lossy(value).into_owned());
            let end =
                |four, six| record.get(&four).or_else(|| record.get(&six)).map(|value| address(value)).transpose();
            if let (Some(source), Some(target)) = (end(SOURCE_IPV4, SOURCE_IPV6)?, end(TARGET_IPV4, TARGET_IPV6)?) {
                *self.packets.entry((source, target)).or_default() += count(PACKETS);
            }
            self.interfaces.extend(text(INTERFACE_NAME));
            if let Some(port) = text(STATION_INTERFACE_NAME) {
                let direction = u8::try_from(count(DIRECTION)).context("a direction")?;
                self.ports.insert((port, direction), count(PACKETS_TOTAL));
            }
            if let Some(selector) = text(SELECTOR_NAME) {
                self.selectors.insert(selector, count(PACKETS_TOTAL) + count(DROPPED_TOTAL));
            }
        }
        Ok(())
    }
}
