//! What an ICMP error quotes: the packet that it is about, as who sends the error saw it, and as who hears it knows it.
//!
//! A floating IP stands for an address in the header of a packet, which flows rewrite. What is quoted in an error they can not reach: it is made here,
//! in a frame that goes on in the switch afterwards. Only the address that the floating IP stands for, or is, changes in it, and the checksums with that.
//! Invariant: a checksum that was wrong before is wrong afterwards. Never panics on what a station or a guest sends.
//!
//! ```text
//! Ethernet | IPv4 | ICMP: type, code, checksum, 4 octets | IPv4 quoted: source or target | at least 8 octets of what it carried
//! ```
//!
//! Source: RFC 792, RFC 1812 §4.3.2.3, RFC 5508 §4 (what translators do with errors), RFC 1624 (checksums made anew by their difference).

use std::net::Ipv4Addr;

use openflow::flow::ip_proto;

/// Errors that quote a packet: destination unreachable, time exceeded, parameter problem (RFC 792).
pub const ERRORS: [u8; 3] = [3, 11, 12];

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [8, 0];
/// Octets of an IPv4 header without options, and of the ICMP header of an error.
const IPV4_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
/// Where the checksums are, from the beginning of their header.
const ICMP_CHECKSUM: usize = 2;
const IPV4_CHECKSUM: usize = 10;
const UDP_CHECKSUM: usize = 6;
const TCP_CHECKSUM: usize = 16;

/// Which end of the quoted packet is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Who sent it: the error comes back to them.
    Source,
    /// Who it was for: they send the error.
    Target,
}

impl End {
    const fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }

    /// Where the address is in an IPv4 header.
    const fn offset(self) -> usize {
        match self {
            Self::Source => 12,
            Self::Target => 16,
        }
    }
}

/// A frame in which nothing is quoted that could be translated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("translate {from} to {to} in what an ICMP error of {length} octets quotes: {reason}")]
pub struct QuotedError {
    /// The address to be replaced.
    pub from: Ipv4Addr,
    /// By which.
    pub to: Ipv4Addr,
    /// Octets of the frame.
    pub length: usize,
    /// Why not.
    pub reason: &'static str,
}

/// The frame of an error with `to` in the place of `from` at one end of the packet that it quotes. The frame has no tag.
///
/// # Errors
/// [`QuotedError`] when it is no such error, or quotes somebody else.
pub fn translate(frame: &[u8], end: End, from: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<u8>, QuotedError> {
    let mut frame = frame.to_vec();
    let length = frame.len();
    replace(&mut frame, end, from, to).map_err(|reason| QuotedError { from, to, length, reason })?;
    Ok(frame)
}

/// The address at the other end of the packet that an error quotes; none when the frame is no such error.
#[must_use]
pub fn other_end(frame: &[u8], end: End) -> Option<Ipv4Addr> {
    let packet = frame.get(ETHERNET..)?;
    let (_, outer) = header(packet).ok()?;
    let quoted = packet.get(outer + ICMP_HEADER..)?;
    header(quoted).ok()?;
    let at = end.other().offset();
    let octets: [u8; 4] = quoted.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

fn replace(frame: &mut [u8], end: End, from: Ipv4Addr, to: Ipv4Addr) -> Result<(), &'static str> {
    if frame.get(12..ETHERNET) != Some(&IPV4) {
        return Err("it is no IPv4 packet");
    }
    let packet = frame.get_mut(ETHERNET..).unwrap_or_default();
    let (protocol, header) = header(packet)?;
    let whole = usize::from(word(packet, 2).unwrap_or_default());
    let icmp = packet.get_mut(header..whole).ok_or("it is cut short")?;
    let is_error = icmp.first().is_some_and(|kind| ERRORS.contains(kind));
    if protocol != ip_proto::ICMP || !is_error {
        return Err("it is no ICMP error");
    }
    let quoted = icmp.get_mut(ICMP_HEADER..).unwrap_or_default();
    let (protocol, header) = self::header(quoted)?;
    let at = end.offset();
    if quoted.get(at..at + 4) != Some(&from.octets()) {
        return Err("the packet that it quotes is another's");
    }
    let is_first = word(quoted, 6).unwrap_or_default() & 0x1fff == 0;
    quoted.get_mut(at..at + 4).unwrap_or_default().copy_from_slice(&to.octets());
    let change = Change { from, to };
    // The header has the address and its own sum, so that what is summed over both stays what it was.
    change.mend(quoted, IPV4_CHECKSUM);
    let inner = match protocol {
        ip_proto::TCP => TCP_CHECKSUM,
        // No sum was made (RFC 768).
        ip_proto::UDP if word(quoted, header + UDP_CHECKSUM) != Some(0) => UDP_CHECKSUM,
        _ => return Ok(()),
    };
    if !is_first {
        return Ok(());
    }
    // The sum over the ports' header counts the addresses, too; where it is quoted, it changes, and so does the sum over the whole message.
    if let Some((before, after)) = change.mend(quoted, header + inner)
        && let Some(sum) = word(icmp, ICMP_CHECKSUM)
    {
        put(icmp, ICMP_CHECKSUM, mended(sum, before, after));
    }
    Ok(())
}

/// The protocol that an IPv4 packet carries, and the octets of its header.
fn header(packet: &[u8]) -> Result<(u8, usize), &'static str> {
    let (Some(first), Some(protocol)) = (packet.first(), packet.get(9)) else { return Err("it is cut short") };
    let length = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || length < IPV4_HEADER || packet.len() < length {
        return Err("it is cut short, or no IPv4 packet");
    }
    Ok((*protocol, length))
}

/// An address in the place of another.
struct Change {
    from: Ipv4Addr,
    to: Ipv4Addr,
}

impl Change {
    /// Makes a checksum count the other address; gives what it was and is.
    fn mend(&self, octets: &mut [u8], at: usize) -> Option<(u16, u16)> {
        let before = word(octets, at)?;
        let [a, b] = halves(self.from);
        let [c, d] = halves(self.to);
        // A sum of 0 is written as its other zero, for 0 says that there is none (RFC 768).
        let after = Some(mended(mended(before, a, c), b, d)).filter(|sum| *sum != 0).unwrap_or(u16::MAX);
        put(octets, at, after);
        Some((before, after))
    }
}

fn halves(address: Ipv4Addr) -> [u16; 2] {
    let [a, b, c, d] = address.octets();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// A checksum after one word that it counts became another: `~(~sum + ~before + after)` (RFC 1624 §3).
fn mended(sum: u16, before: u16, after: u16) -> u16 {
    let total = u32::from(!sum) + u32::from(!before) + u32::from(after);
    let once = (total & 0xffff) + (total >> 16);
    !u16::try_from((once & 0xffff) + (once >> 16)).unwrap_or(u16::MAX)
}

fn word(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

fn put(octets: &mut [u8], at: usize, value: u16) {
    if let Some(two) = octets.get_mut(at..at + 2) {
        two.copy_from_slice(&value.to_be_bytes());
    }
}
