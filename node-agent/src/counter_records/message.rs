//! IPFIX messages (RFC 7011) that tell what ports and rules counted. Pure: counters in, datagrams out.
//!
//! Each message carries the templates of all three kinds of record, so that a collector may miss any other: UDP loses what it likes.
//!
//! | template | elements (IANA registry "IPFIX Information Elements") |
//! |---|---|
//! | 40000, a port, once for each direction | observationTimeSeconds, virtualStationInterfaceName, virtualStationName, flowDirection, packetTotalCount, octetTotalCount |
//! | 40001, a rule | observationTimeSeconds, selectorName, packetTotalCount, octetTotalCount |
//! | 40002, a reason for drops | observationTimeSeconds, selectorName, droppedPacketTotalCount, droppedOctetTotalCount |
//!
//! Counts are those of the switch, since each flow or port came to be. `flowDirection` is the switch's view: 0 is what a machine sent.

use crate::api::{CountersBody, Drops, PortCounted, RuleCounted};

/// The most octets of a message: with its headers it fits into what every link of IPv6 carries (RFC 8200 §5).
const MESSAGE_MAX: usize = 1200;
/// The most octets of a text; more is cut off, so that a record fits into a message with the templates.
const TEXT_MAX: usize = 400;
const VERSION: u16 = 10;
const TEMPLATE_SET: u16 = 2;
/// The length of an element that says its own (RFC 7011 §7).
const VARIABLE: u16 = 0xffff;
/// Lengths from here on take three octets (RFC 7011 §7).
const LONG: usize = 255;

const TIME: (u16, u16) = (322, 4);
const INTERFACE: (u16, u16) = (348, VARIABLE);
const STATION: (u16, u16) = (350, VARIABLE);
const SELECTOR: (u16, u16) = (335, VARIABLE);
const DIRECTION: (u16, u16) = (61, 1);
const PACKETS: (u16, u16) = (86, 8);
const OCTETS: (u16, u16) = (85, 8);
const DROPPED_PACKETS: (u16, u16) = (135, 8);
const DROPPED_OCTETS: (u16, u16) = (134, 8);

// Far from those of Open vSwitch, which tells the same collectors from the same address: not all of them heed its port.
const PORT: u16 = 40_000;
const RULE: u16 = 40_001;
const DROP: u16 = 40_002;
const TEMPLATES: [(u16, &[(u16, u16)]); 3] = [
    (PORT, &[TIME, INTERFACE, STATION, DIRECTION, PACKETS, OCTETS]),
    (RULE, &[TIME, SELECTOR, PACKETS, OCTETS]),
    (DROP, &[TIME, SELECTOR, DROPPED_PACKETS, DROPPED_OCTETS]),
];

/// What the header of each message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Seconds since 1970.
    pub(super) time: u32,
    /// By which the collector tells hosts apart.
    pub(super) domain: u32,
    /// Records sent before, modulo 2^32.
    pub(super) sequence: u32,
}

/// The messages that tell of `counted`, and how many records they have.
pub(super) fn messages(counted: &CountersBody, stamp: Stamp) -> (Vec<Vec<u8>>, u32) {
    let mut writer = Writer::new(stamp);
    for port in &counted.ports {
        port_records(port, stamp.time).for_each(|record| writer.add(PORT, &record));
    }
    for rule in &counted.rules {
        writer.add(RULE, &rule_record(rule, stamp.time));
    }
    for drops in &counted.drops {
        writer.add(DROP, &drop_record(drops, stamp.time));
    }
    writer.finish()
}

/// What a machine sent and was sent, as far as the switch keeps that.
fn port_records(port: &PortCounted, time: u32) -> impl Iterator<Item = Vec<u8>> {
    let ways = [(0_u8, port.sent_packets, port.sent_octets), (1, port.received_packets, port.received_octets)];
    ways.into_iter().filter_map(move |(direction, packets, octets)| {
        let mut record = time.to_be_bytes().to_vec();
        text(&mut record, &port.name);
        text(&mut record, port.vm.as_deref().unwrap_or_default());
        record.push(direction);
        counts(&mut record, packets?, octets?);
        Some(record)
    })
}

fn rule_record(rule: &RuleCounted, time: u32) -> Vec<u8> {
    let mut record = time.to_be_bytes().to_vec();
    text(&mut record, &format!("{}: {}", rule.owner, rule.rule));
    counts(&mut record, rule.packets, rule.octets);
    record
}

fn drop_record(drops: &Drops, time: u32) -> Vec<u8> {
    let mut record = time.to_be_bytes().to_vec();
    text(&mut record, &format!("{}: {}", drops.table, drops.reason));
    counts(&mut record, drops.packets, drops.octets);
    record
}

fn counts(record: &mut Vec<u8>, packets: u64, octets: u64) {
    record.extend(packets.to_be_bytes());
    record.extend(octets.to_be_bytes());
}

/// A text of variable length, cut off between characters.
fn text(record: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_MAX)];
    if text.len() >= LONG {
        record.push(u8::MAX);
        record.extend(word(text.len()));
    } else {
        record.push(u8::try_from(text.len()).unwrap_or_default());
    }
    record.extend(text.bytes());
}

/// A length on the wire; none here is near the largest, since messages end before.
fn word(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Puts records into sets, and sets into messages.
struct Writer {
    stamp: Stamp,
    done: Vec<Vec<u8>>,
    message: Vec<u8>,
    /// Where the set under way begins, and of which template it is.
    set: Option<(usize, u16)>,
    records: u32,
}

impl Writer {
    fn new(stamp: Stamp) -> Self {
        Self { stamp, done: Vec::new(), message: Vec::new(), set: None, records: 0 }
    }

    fn add(&mut self, template: u16, record: &[u8]) {
        // A set's header at most is added to the record.
        if !self.message.is_empty() && self.message.len() + 4 + record.len() > MESSAGE_MAX {
            self.end_message();
        }
        if self.message.is_empty() {
            self.begin_message();
        }
        if self.set.is_none_or(|(_, current)| current != template) {
            self.end_set();
            self.begin_set(template);
        }
        self.message.extend_from_slice(record);
        self.records = self.records.wrapping_add(1);
    }

    fn finish(mut self) -> (Vec<Vec<u8>>, u32) {
        self.end_message();
        (self.done, self.records)
    }

    fn begin_message(&mut self) {
        let Stamp { time, domain, sequence } = self.stamp;
        self.message.extend(VERSION.to_be_bytes());
        // The length is known at the end.
        self.message.extend([0; 2]);
        for field in [time, sequence.wrapping_add(self.records), domain] {
            self.message.extend(field.to_be_bytes());
        }
        self.begin_set(TEMPLATE_SET);
        for (template, elements) in TEMPLATES {
            self.message.extend(template.to_be_bytes());
            self.message.extend(word(elements.len()));
            for (element, length) in elements {
                self.message.extend(element.to_be_bytes());
                self.message.extend(length.to_be_bytes());
            }
        }
        self.end_set();
    }

    fn begin_set(&mut self, id: u16) {
        self.set = Some((self.message.len(), id));
        self.message.extend(id.to_be_bytes());
        self.message.extend([0; 2]);
    }

    fn end_set(&mut self) {
        if let Some((begin, _)) = self.set.take() {
            let length = word(self.message.len() - begin);
            self.message.splice(begin + 2..begin + 4, length);
        }
    }

    fn end_message(&mut self) {
        self.end_set();
        if !self.message.is_empty() {
            let length = word(self.message.len());
            self.message.splice(2..4, length);
            self.done.push(std::mem::take(&mut self.message));
        }
    }
}

#[cfg(test)]
mod tests {
    use basalt_tests::ipfix::Told;

    use super::*;

    const STAMP: Stamp = Stamp { time: 1_700_000_000, domain: 7, sequence: u32::MAX };

    fn port(name: &str, sent: Option<u64>) -> PortCounted {
        PortCounted {
            name: name.to_owned(),
            vm: Some("vm".to_owned()),
            ofport: 1,
            sent_packets: sent,
            sent_octets: sent,
            received_packets: Some(3),
            received_octets: Some(180),
            dropped_packets: None,
        }
    }

    fn rule(text: &str) -> RuleCounted {
        RuleCounted {
            owner: "security group web".to_owned(),
            rule: text.to_owned(),
            key: None,
            packets: 9,
            octets: 540,
        }
    }

    fn told(messages: &[Vec<u8>]) -> Told {
        let mut told = Told::default();
        let exporter = (std::net::Ipv4Addr::LOCALHOST, 4739).into();
        messages.iter().for_each(|message| told.take(exporter, message).unwrap());
        told
    }

    /// Nothing counted is nothing sent; a counter that the switch does not keep is no record; the rest is read as it was written.
    #[test]
    fn a_collector_reads_what_was_counted() {
        let nothing = CountersBody { ports: Vec::new(), drops: Vec::new(), rules: Vec::new() };
        assert_eq!(messages(&nothing, STAMP), (Vec::new(), 0));
        let drops = Drops { table: "deny".to_owned(), reason: "no rule".to_owned(), packets: 4, octets: 240 };
        let ports = vec![port("p1", Some(2)), port("p2", None)];
        let (messages, records) =
            messages(&CountersBody { ports, drops: vec![drops], rules: vec![rule("allow")] }, STAMP);
        assert_eq!((messages.len(), records), (1, 5));
        let told = told(&messages);
        let ports = [(("p1".to_owned(), 0), 2), (("p1".to_owned(), 1), 3), (("p2".to_owned(), 1), 3)];
        assert_eq!(told.ports, ports.into());
        assert_eq!(told.selectors["security group web: allow"], 9);
        assert_eq!(told.selectors["deny: no rule"], 4);
        assert_eq!(told.domains, [7].into());
    }

    /// Many records take several messages, each of which is small and counts those before it; texts may be long, and of any characters.
    #[test]
    fn many_records_take_several_messages() {
        let long = "ä".repeat(TEXT_MAX);
        let rules = (0..100).map(|number| rule(&format!("allow {number} {long}"))).collect();
        let (messages, records) = messages(&CountersBody { ports: Vec::new(), drops: Vec::new(), rules }, STAMP);
        assert_eq!(records, 100);
        assert!(messages.len() > 30 && messages.iter().all(|message| message.len() <= MESSAGE_MAX));
        let sequence = |message: &[u8]| u32::from_be_bytes(message[8..12].try_into().unwrap());
        assert_eq!(sequence(&messages[0]), u32::MAX);
        // Two of such records fit into a message.
        assert_eq!(sequence(&messages[1]), 1);
        assert_eq!(told(&messages).selectors.len(), 100);
    }
}
