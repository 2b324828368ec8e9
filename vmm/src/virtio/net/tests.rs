//! Shows the device between rings in memory and a socket that keeps packets apart, as a tap does: what passes, what waits for room, what is dropped.

use super::*;
use crate::virtio::testing::{Bench, hostile_chains};
use basalt_tests::require;
use basalt_tests::skip::Need;
use std::os::unix::net::UnixDatagram;

const DATA: u64 = 0x20_0000;
const MORE: u64 = 0x30_0000;

struct Wire {
    net: Net,
    bench: Bench,
    peer: UnixDatagram,
}

impl Wire {
    fn new(features: u64) -> Self {
        let (ours, peer) = UnixDatagram::pair().unwrap();
        [&ours, &peer].into_iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let mac = "52:54:00:00:00:07".parse().unwrap();
        let mut net = Net::new(Arc::new(Tap::of(ours)), mac, Some(1450));
        let mut bench = Bench::new(&[QUEUE_SIZE; 2]);
        bench.with(|context| net.activate(features, context));
        Self { net, bench, peer }
    }

    fn serve(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let net = &mut self.net;
        self.bench.with(|context| net.serve(queue, context));
        self.bench.used(queue)
    }

    fn count(&self, name: &str) -> u64 {
        self.net.counters()[name]
    }
}

/// A virtio header of zeros and then bytes that count up.
fn packet(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    packet.extend((0..bytes).map(|at| u8::try_from(at % 251).unwrap()));
    packet
}

#[test]
fn the_driver_is_told_address_and_mtu() {
    let net = Wire::new(0).net;
    assert_eq!(net.config(), [0x52, 0x54, 0, 0, 0, 7, 1, 0, 1, 0, 0xaa, 5]);
    assert_eq!(net.features() & (F_MAC | F_MTU | F_MRG_RXBUF), F_MAC | F_MTU | F_MRG_RXBUF);
}

#[test]
fn a_packet_in_pieces_goes_out_whole() {
    require!(Need::Kvm);
    let mut wire = Wire::new(0);
    let sent = packet(100);
    wire.bench.write(DATA, &sent[..50]);
    wire.bench.write(MORE, &sent[50..]);
    wire.bench.add(SEND, &[(DATA, 50, false), (MORE, 62, false)]);
    assert_eq!(wire.serve(SEND), [(0, 0)]);
    let mut seen = [0; 200];
    assert_eq!(wire.peer.recv(&mut seen).unwrap(), 112);
    assert_eq!(&seen[..112], sent);
    assert_eq!((wire.count("send_packets"), wire.count("send_bytes")), (1, 100));
}

#[test]
fn what_is_no_packet_is_dropped_and_given_back() {
    require!(Need::Kvm);
    let mut wire = Wire::new(0);
    let rows: [&[(u64, u32, bool)]; 5] = [
        &[(DATA, 12, false)],
        &[(DATA, 70_000, false)],
        &[(0xffff_ffff_0000, 60, false)],
        &[(DATA, 60, true)],
        &[(DATA, 60, false), (u64::MAX, 60, false)],
    ];
    for buffers in rows {
        wire.bench.add(SEND, buffers);
    }
    assert_eq!(wire.serve(SEND).len(), rows.len());
    assert_eq!((wire.count("send_packets"), wire.count("send_dropped_packets")), (0, 5));
    assert!(wire.peer.recv(&mut [0; 100]).is_err());
}

/// An indirect table that claims more descriptors than a system call takes is refused, not cut.
#[test]
fn a_packet_in_too_many_pieces_is_dropped() {
    require!(Need::Kvm);
    let mut wire = Wire::new(0);
    for at in 0..1100 {
        wire.bench.descriptor(MORE, at, (DATA, 1, u16::from(at < 1099), at + 1));
    }
    wire.bench.descriptor(Bench::table(SEND), 0, (MORE, 1100 * 16, 4, 0));
    wire.bench.offer(SEND, 0);
    assert_eq!(wire.serve(SEND), [(0, 0)]);
    assert_eq!(wire.count("send_dropped_packets"), 1);
}

#[test]
fn a_packet_comes_in_whole_and_says_how_many_buffers_it_took() {
    require!(Need::Kvm);
    let mut wire = Wire::new(0);
    wire.bench.add(RECEIVE, &[(DATA, 40, true), (MORE, 400, true)]);
    wire.peer.send(&packet(100)).unwrap();
    assert_eq!(wire.serve(RECEIVE), [(0, 112)]);
    let seen = [wire.bench.read(DATA, 40), wire.bench.read(MORE, 72)].concat();
    assert_eq!(seen[10..12], [1, 0]);
    assert_eq!(seen[12..], packet(100)[12..]);
    assert_eq!((wire.count("receive_packets"), wire.count("receive_bytes")), (1, 100));
}

#[test]
fn buffers_are_merged_where_the_driver_can() {
    require!(Need::Kvm);
    let mut wire = Wire::new(F_MRG_RXBUF);
    for index in 0..3 {
        wire.bench.add(RECEIVE, &[(DATA + index * 4096, 50, true)]);
    }
    wire.peer.send(&packet(100)).unwrap();
    assert_eq!(wire.serve(RECEIVE), [(0, 50), (1, 50), (2, 12)]);
    let seen = [wire.bench.read(DATA, 50), wire.bench.read(DATA + 4096, 50), wire.bench.read(DATA + 8192, 12)].concat();
    assert_eq!((seen[10], &seen[12..]), (3, &packet(100)[12..]));
}

#[test]
fn a_packet_waits_for_room_and_takes_none_meanwhile() {
    require!(Need::Kvm);
    let mut wire = Wire::new(F_MRG_RXBUF);
    wire.bench.add(RECEIVE, &[(DATA, 60, true)]);
    wire.peer.send(&packet(100)).unwrap();
    assert_eq!(wire.serve(RECEIVE), []);
    wire.bench.add(RECEIVE, &[(MORE, 60, true)]);
    assert_eq!(wire.serve(RECEIVE), [(0, 60), (1, 52)]);
}

#[test]
fn a_packet_that_fits_nowhere_is_dropped_and_the_next_one_passes() {
    require!(Need::Kvm);
    let mut wire = Wire::new(0);
    wire.bench.add(RECEIVE, &[(DATA, 60, true)]);
    wire.bench.add(RECEIVE, &[(0xffff_ffff_0000, 600, true)]);
    wire.bench.add(RECEIVE, &[(DATA, 600, true)]);
    (0..3).for_each(|_| assert_eq!(wire.peer.send(&packet(100)).unwrap(), 112));
    assert_eq!(wire.serve(RECEIVE), [(0, 0), (1, 0), (2, 112)]);
    assert_eq!((wire.count("receive_dropped_packets"), wire.count("receive_packets")), (2, 1));
}

#[test]
fn hostile_rings_are_survived() {
    require!(Need::Kvm);
    for queue in [RECEIVE, SEND] {
        let mut wire = Wire::new(0);
        (0..20).for_each(|_| assert_eq!(wire.peer.send(&packet(64)).unwrap(), 76));
        hostile_chains(&mut wire.net, queue);
    }
}
