//! What a guest may do to the connections of a host: nothing that stops them, keeps others out or makes them say more than is heard.

use etherparse::{PacketBuilder, TcpOptionElement};
use proptest::prelude::{any, prop, proptest};

use super::*;

const GUEST: [u8; 4] = [10, 0, 0, 7];

/// One page for everybody, large enough for many segments.
struct Page(usize);

impl Desk for Page {
    fn page(&self, _: u32, _: &str) -> Found {
        Found::Page(super::super::Page { kind: "text/plain", body: vec![b'x'; self.0] })
    }

    fn name(&mut self, _: Stream, _: &[u8]) -> Said {
        Said::Nothing
    }
}

struct Segment {
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    options: Vec<TcpOptionElement>,
    payload: Vec<u8>,
}

/// From the guest to the metadata service.
fn frame(source: u16, segment: &Segment) -> Vec<u8> {
    let has = |bit: u8| segment.flags & bit != 0;
    let mut builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], [2, 0xba, 0x5a, 0, 0, 0x80])
        .ipv4(GUEST, ADDRESS_V4.octets(), 64)
        .tcp(source, METADATA_PORT, segment.sequence, 4096)
        .options(&segment.options)
        .unwrap();
    for (bit, set) in [(1, 0), (2, 1), (4, 2)] {
        builder = match (has(bit), set) {
            (true, 0) => builder.fin(),
            (true, 1) => builder.syn(),
            (true, _) => builder.rst(),
            (false, _) => builder,
        };
    }
    if has(16) {
        builder = builder.ack(segment.acknowledged);
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, &segment.payload).unwrap();
    frame
}

fn syn(options: &[TcpOptionElement]) -> Segment {
    Segment { flags: 2, sequence: 1, acknowledged: 0, options: options.to_vec(), payload: Vec::new() }
}

#[test]
fn a_frame_without_a_packet_is_no_question() {
    for length in [0, ETHERNET - 1, ETHERNET] {
        assert_eq!(Stack::new(1).receive(1, &vec![0; length], 1500, Duration::ZERO, &mut Page(1)), []);
    }
}

#[test]
fn small_segments_are_not_agreed_to() {
    let mut stack = Stack::new(1);
    let mut ask = |size: Option<u16>| {
        let options = size.map(TcpOptionElement::MaximumSegmentSize);
        stack
            .receive(1, &frame(1000 + size.unwrap_or(0), &syn(options.as_slice())), 1500, Duration::ZERO, &mut Page(1))
            .len()
    };
    assert_eq!([ask(Some(1460)), ask(Some(536)), ask(None)], [1, 1, 1]);
    assert_eq!([ask(Some(535)), ask(Some(48)), ask(Some(0))], [0, 0, 0]);
}

#[test]
fn ports_that_hold_connections_open_keep_nobody_out() {
    let mut stack = Stack::new(1);
    let ports = u32::try_from(STATIONS_MAX).unwrap();
    for port in 0..ports {
        let now = Duration::from_millis(port.into());
        assert_eq!(stack.receive(port, &frame(1000, &syn(&[])), 1500, now, &mut Page(1)).len(), 1);
    }
    let answered = stack.receive(ports, &frame(1000, &syn(&[])), 1500, Duration::from_secs(1), &mut Page(1));
    assert_eq!((answered.len(), stack.stations()), (1, STATIONS_MAX));
    // The first to come was the first to go.
    let late = Segment { flags: 16, sequence: 2, ..syn(&[]) };
    let reset = stack.receive(0, &frame(1000, &late), 1500, Duration::from_secs(1), &mut Page(1));
    assert!(reset.iter().all(|sent| sent.frame[ETHERNET + 33] & 4 != 0), "no connection is left: {reset:?}");
}

proptest! {
    /// Whatever segments come, in whatever order: no panic, and a bounded answer to each.
    #[test]
    fn any_segments_are_survived(
        segments in prop::collection::vec(
            (any::<u8>(), any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..80), 0_u16..3), 1..60)
    ) {
        let mut stack = Stack::new(7);
        let mut now = Duration::ZERO;
        let mut told = 0;
        for (flags, sequence, acknowledged, payload, source) in segments {
            // Half of them come close to what a connection expects.
            let near = flags & 128 != 0;
            let segment = Segment {
                flags,
                sequence: if near { sequence % 200 } else { sequence },
                acknowledged: if near { told } else { acknowledged },
                options: vec![TcpOptionElement::MaximumSegmentSize(u16::try_from(acknowledged % 2000).unwrap())],
                payload,
            };
            let sent = stack.receive(u32::from(source), &frame(1000 + source, &segment), 1500, now, &mut Page(3000));
            assert!(sent.len() <= crate::line::PACKETS_MAX * TURNS_MAX);
            if let Some(last) = sent.last() {
                told = u32::from_be_bytes(last.frame[ETHERNET + 24..ETHERNET + 28].try_into().unwrap()).wrapping_add(1);
            }
            now += Duration::from_millis(u64::from(flags));
            stack.tick(now, &mut Page(3000));
        }
    }

    /// Nor do any octets at all.
    #[test]
    fn any_octets_are_survived(octets in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut stack = Stack::new(7);
        stack.receive(1, &octets, 1500, Duration::ZERO, &mut Page(1));
        stack.tick(Duration::from_secs(60), &mut Page(1));
    }
}
