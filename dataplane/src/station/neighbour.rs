//! Neighbour messages of IPv6 that stations outside and this host tell each other, as frames without a tag.
//!
//! Owns their bytes. Never knows who is asked or answered. Never panics on what comes from outside.
//! Source: RFC 4861 §4.3, §4.4 and §7.2; RFC 4291 §2.7.1 (the group that an address listens on), RFC 2464 §7 (its MAC address).

use std::net::Ipv6Addr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::Mac;

use crate::feature::neighbour::{ADVERT, SOLICIT, UNROUTED};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The group of an address is this and its last 24 bits.
const SOLICITED_NODE: u128 = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits();
/// Options that say a MAC address, and their length in units of 8 octets.
const SOURCE_OPTION: [u8; 2] = [1, 1];
const TARGET_OPTION: [u8; 2] = [2, 1];
/// Flags of an advertisement: the sender is a router; it was asked for; it overrides what was known.
const IS_ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Who speaks: an address, its MAC address, and whether that is a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Speaker {
    pub(super) address: Ipv6Addr,
    pub(super) mac: Mac,
    pub(super) is_router: bool,
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Somebody asks who has an address: from this address and MAC address.
    Asked(Ipv6Addr, (Ipv6Addr, Mac)),
    /// An address is at a MAC address.
    Told(Ipv6Addr, Mac),
    /// Something else goes to this address.
    Sent(Ipv6Addr),
}

/// Asks for an address, in the name of a link-local one.
pub(super) fn solicit(mac: Mac, target: Ipv6Addr) -> Option<Vec<u8>> {
    let group = Ipv6Addr::from_bits(SOLICITED_NODE | target.to_bits() & 0x00ff_ffff);
    let payload = [&target.octets()[..], &SOURCE_OPTION, &mac.bytes()].concat();
    message((mac, mac.link_local()), (group_mac(group), group), (SOLICIT, 0), &payload)
}

/// Says to all who has an address.
pub(super) fn announce(speaker: Speaker) -> Option<Vec<u8>> {
    let from = (speaker.mac, speaker.mac.link_local());
    message(from, (group_mac(ALL_NODES), ALL_NODES), (ADVERT, OVERRIDE | router(speaker)), &told(speaker))
}

/// Answers who asked. A probe is told to all that the address is taken (RFC 4861 §7.2.4).
pub(super) fn answer(speaker: Speaker, (asker, asker_mac): (Ipv6Addr, Mac)) -> Option<Vec<u8>> {
    if asker.is_unspecified() {
        return announce(speaker);
    }
    let flags = SOLICITED | OVERRIDE | router(speaker);
    message((speaker.mac, speaker.address), (asker_mac, asker), (ADVERT, flags), &told(speaker))
}

/// Reads a frame without a tag.
pub(super) fn read(frame: &[u8]) -> Option<Said> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Ipv6(ip)) = &packet.net else { return None };
    let header = ip.header();
    let (source, target) = (header.source_addr(), header.destination_addr());
    let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { return Some(Said::Sent(target)) };
    let kind = icmp.type_u8();
    if kind != SOLICIT && kind != ADVERT {
        return Some(Said::Sent(target));
    }
    if header.hop_limit() != UNROUTED || icmp.code_u8() != 0 {
        return None;
    }
    // What follows the first eight octets of the message.
    let (about, options) = icmp.payload().split_first_chunk::<16>()?;
    let about = Ipv6Addr::from(*about);
    let sender = Mac::new(packet.link.as_ref()?.to_header()?.ethernet2()?.source);
    if kind == SOLICIT {
        // Where it may be answered is what it says, not where it comes from: bridges and redundant gateways differ there.
        let mac = option(options, SOURCE_OPTION).unwrap_or(sender);
        return mac.is_unicast().then_some(Said::Asked(about, (source, mac)));
    }
    // A unicast answer may leave its MAC address out (RFC 4861 §7.2.4).
    Some(Said::Told(about, option(options, TARGET_OPTION).unwrap_or(sender)))
}

/// The MAC address of an option among the first few.
fn option(mut options: &[u8], wanted: [u8; 2]) -> Option<Mac> {
    while let Some(([kind, length], rest)) = options.split_first_chunk::<2>() {
        if [*kind, *length] == wanted {
            return rest.first_chunk::<6>().copied().map(Mac::new);
        }
        options = options.get(8 * usize::from((*length).max(1))..)?;
    }
    None
}

fn router(speaker: Speaker) -> u8 {
    if speaker.is_router { IS_ROUTER } else { 0 }
}

fn told(speaker: Speaker) -> Vec<u8> {
    [&speaker.address.octets()[..], &TARGET_OPTION, &speaker.mac.bytes()].concat()
}

fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac::new([0x33, 0x33, a, b, c, d])
}

fn message(from: (Mac, Ipv6Addr), to: (Mac, Ipv6Addr), (kind, flags): (u8, u8), payload: &[u8]) -> Option<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(from.0.bytes(), to.0.bytes())
        .ipv6(from.1.octets(), to.1.octets(), UNROUTED)
        .icmpv6_raw(kind, 0, [flags, 0, 0, 0]);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac::new([2, 6, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac::new([2, 9, 0, 0, 0, 1]);

    #[test]
    fn messages_read_as_they_were_written() {
        let [address, gateway]: [Ipv6Addr; 2] = ["2001:db8:1::b", "2001:db8:ffff::1"].map(|text| text.parse().unwrap());
        let solicitation = solicit(OURS, gateway).unwrap();
        assert_eq!(solicitation[..6], [0x33, 0x33, 0xff, 0, 0, 1]);
        assert_eq!(read(&solicitation), Some(Said::Asked(gateway, (OURS.link_local(), OURS))));
        let speaker = Speaker { address, mac: OURS, is_router: false };
        let reply = answer(speaker, (gateway, THEIRS)).unwrap();
        assert_eq!((read(&reply), &reply[..6]), (Some(Said::Told(address, OURS)), &THEIRS.bytes()[..]));
        assert_eq!(reply[58], SOLICITED | OVERRIDE);
        let probed = answer(speaker, (Ipv6Addr::UNSPECIFIED, THEIRS)).unwrap();
        assert_eq!(probed, announce(speaker).unwrap());
        assert_eq!((probed[..6].to_vec(), probed[58]), (vec![0x33, 0x33, 0, 0, 0, 1], OVERRIDE));
        for length in 0..solicitation.len() {
            let _nothing_bad = read(&solicitation[..length]);
        }
        let mut routed = solicitation;
        routed[21] = 254;
        assert_eq!(read(&routed), None, "a router has passed it on");
    }
}
