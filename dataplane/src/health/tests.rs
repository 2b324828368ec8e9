//! What follows from host networks, and from answers in a row.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::balancer::monitor::{Check, Monitor};
use model::balancer::{MemberHealth, MemberRef, Transport};
use model::{BalancerId, Mac};
use proptest::prelude::*;
use uuid::Uuid;

use super::{CHECKS_MAX, DATAGRAMS_MAX, Engine, Target};
use crate::line::Sent;

const OWN: Mac = Mac::new([2, 4, 0, 0, 0, 100]);
const GUEST: Mac = Mac::new([2, 1, 0, 0, 0, 11]);
const PORT: u32 = 7;

fn target(check: Check, six: bool, number: u16) -> Target {
    let [source, address]: [IpAddr; 2] = if six {
        ["fd00::64", "fd00::b"].map(|text| text.parse().unwrap())
    } else {
        ["10.0.1.100", "10.0.1.11"].map(|text| text.parse().unwrap())
    };
    let member = MemberRef {
        balancer: BalancerId::from_uuid(Uuid::from_u128(1)),
        protocol: if check == Check::UdpConnect { Transport::Udp } else { Transport::Tcp },
        listener: 80,
        address,
        port: number,
    };
    let monitor = Monitor { delay_seconds: 10, max_retries: 2, ..Monitor::new(check) };
    Target { member, port: PORT, source, macs: (OWN, GUEST), mtu: 1450, monitor, in_error: false }
}

fn engine(targets: &[Target]) -> Engine {
    let mut engine = Engine::new(1);
    engine.update(targets.iter().map(|target| (target.member, target.clone())).collect(), Duration::ZERO);
    engine
}

/// A member that answers as its kind wants: with what it is told, to what it is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guest {
    Open,
    Closed,
    Silent,
}

/// What a guest of UDP and ICMP answers to a frame.
fn answer(guest: Guest, frame: &[u8]) -> Option<Vec<u8>> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let mut answer = Vec::new();
    let ethernet = PacketBuilder::ethernet2(GUEST.bytes(), OWN.bytes());
    let quoted = &frame[14..];
    match (packet.net.unwrap(), packet.transport.unwrap(), guest) {
        (NetSlice::Ipv4(ip), transport, _) => {
            let ip = ethernet.ipv4(ip.header().destination(), ip.header().source(), 64);
            match (transport, guest) {
                (TransportSlice::Icmpv4(icmp), Guest::Open) => {
                    let [a, b, c, d] = icmp.bytes5to8();
                    let (id, sequence) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    ip.icmpv4_echo_reply(id, sequence).write(&mut answer, &[]).unwrap();
                }
                (TransportSlice::Udp(_), Guest::Closed) => {
                    ip.icmpv4_raw(3, 3, [0; 4]).write(&mut answer, quoted).unwrap();
                }
                _ => return None,
            }
        }
        (NetSlice::Ipv6(ip), transport, _) => {
            let ip = ethernet.ipv6(ip.header().destination(), ip.header().source(), 64);
            match (transport, guest) {
                (TransportSlice::Icmpv6(icmp), Guest::Open) => {
                    let [a, b, c, d] = icmp.bytes5to8();
                    let (id, sequence) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    ip.icmpv6_echo_reply(id, sequence).write(&mut answer, &[]).unwrap();
                }
                (TransportSlice::Udp(_), Guest::Closed) => {
                    ip.icmpv6_raw(1, 4, [0; 4]).write(&mut answer, quoted).unwrap();
                }
                _ => return None,
            }
        }
        _ => return None,
    }
    Some(answer)
}

/// Lets time pass until a check is over; says what is known then.
fn round(engine: &mut Engine, now: &mut Duration, guest: Guest) -> Vec<MemberHealth> {
    loop {
        *now = engine.next_tick(*now).unwrap().max(*now);
        let sent = engine.tick(*now, true);
        let began = !sent.is_empty();
        for Sent { port, frame } in sent {
            assert_eq!((port, &frame[..6]), (PORT, &GUEST.bytes()[..]));
            if let Some(answer) = answer(guest, &frame) {
                assert!(
                    engine.receive(PORT + 1, &answer, *now).is_empty() && engine.in_flight() == 1,
                    "of another port"
                );
                engine.receive(PORT, &answer, *now);
            }
        }
        if engine.in_flight() == 0 && (began || guest == Guest::Silent || guest == Guest::Open) {
            return engine.verdicts();
        }
    }
}

fn said(verdicts: &[MemberHealth]) -> Option<(bool, &str)> {
    verdicts.first().map(|it| (it.online, it.reason.as_str()))
}

/// A member turns after as many checks in a row as its monitor wants, both ways; one that agrees starts the count again.
#[test]
fn verdicts_turn_after_checks_in_a_row() {
    for six in [false, true] {
        let mut engine = engine(&[target(Check::Ping, six, 80)]);
        let (mut now, well) = (Duration::ZERO, Some((true, "answers checks by PING")));
        let late = Some((false, "timed out after 3 s"));
        assert_eq!(said(&engine.verdicts()), None, "nothing is found out yet");
        assert_eq!(said(&round(&mut engine, &mut now, Guest::Open)), well);
        for _ in 0..2 {
            assert_eq!(said(&round(&mut engine, &mut now, Guest::Silent)), well, "two are not three");
        }
        assert_eq!(said(&round(&mut engine, &mut now, Guest::Open)), well);
        for verdict in [well, well, late, late] {
            assert_eq!(said(&round(&mut engine, &mut now, Guest::Silent)), verdict);
        }
        assert_eq!(said(&round(&mut engine, &mut now, Guest::Open)), late, "one is not two");
        assert_eq!(said(&round(&mut engine, &mut now, Guest::Open)), well);
    }
}

/// What was found is new once for each verdict and each reason, not for each check, and when a member goes.
#[test]
fn only_what_is_new_is_news() {
    let mut engine = engine(&[target(Check::Ping, false, 80)]);
    let mut now = Duration::ZERO;
    assert!(engine.take_news() && !engine.take_news());
    let mut news = Vec::new();
    for guest in [Guest::Open, Guest::Open, Guest::Silent, Guest::Silent, Guest::Silent, Guest::Silent, Guest::Open] {
        round(&mut engine, &mut now, guest);
        news.push(engine.take_news());
    }
    assert_eq!(news, [true, false, false, false, true, false, false]);
    engine.update(BTreeMap::new(), now);
    assert!(engine.take_news());
}

/// A closed port of UDP says so; silence is an open one.
#[test]
fn a_closed_port_is_told_from_an_open_one() {
    for six in [false, true] {
        let mut engine = engine(&[target(Check::UdpConnect, six, 53)]);
        let mut now = Duration::ZERO;
        assert_eq!(said(&round(&mut engine, &mut now, Guest::Silent)), Some((true, "answers checks by UDP-CONNECT")));
        round(&mut engine, &mut now, Guest::Closed);
        round(&mut engine, &mut now, Guest::Closed);
        let closed = Some((false, "its port is closed (ICMP port unreachable)"));
        assert_eq!(said(&round(&mut engine, &mut now, Guest::Closed)), closed);
    }
}

/// A member that was in error before the agent started stays so until checks say otherwise; another question keeps the verdict; who is gone is forgotten.
#[test]
fn what_was_known_before_holds() {
    let before = Target { in_error: true, ..target(Check::Ping, false, 80) };
    let mut engine = engine(std::slice::from_ref(&before));
    let mut now = Duration::ZERO;
    assert_eq!(said(&round(&mut engine, &mut now, Guest::Silent)), Some((false, "timed out after 3 s")));
    let mut other = before.clone();
    other.monitor.check = Check::http();
    engine.update(BTreeMap::from([(other.member, other)]), now);
    assert_eq!(said(&engine.verdicts()), Some((false, "timed out after 3 s")));
    engine.update(BTreeMap::new(), now);
    assert!(engine.is_idle() && engine.verdicts().is_empty() && engine.next_tick(now).is_none());
}

/// Checks of a host that starts begin at moments of their own, as many at once as there may be, and none is asked twice in a delay; what the switch lost has no verdict.
#[test]
fn checks_are_spread_and_bounded() {
    let most = |check: &Check| {
        let targets: Vec<Target> = (1..=1500).map(|number| target(check.clone(), false, number)).collect();
        let mut engine = engine(&targets);
        let mut most = 0;
        for tick in 0..100 {
            engine.tick(Duration::from_millis(tick * 100), true);
            most = most.max(engine.in_flight());
        }
        assert!(engine.late(Duration::from_secs(30)).is_some_and(|(members, _)| members > 0));
        (most, engine, targets)
    };
    assert_eq!(most(&Check::Tcp).0, CHECKS_MAX);
    let (most, mut engine, targets) = most(&Check::Ping);
    assert_eq!(most, DATAGRAMS_MAX);
    engine.forget();
    assert_eq!(engine.in_flight(), 0);
    assert!(engine.tick(Duration::from_secs(100), false).is_empty(), "not before the switch is ready");
    let few: Vec<Target> = targets.into_iter().take(40).collect();
    let mut engine = self::engine(&few);
    let mut seconds = BTreeMap::<u64, usize>::new();
    for tick in 0..=100 {
        let now = Duration::from_millis(tick * 100);
        *seconds.entry(now.as_secs()).or_default() += engine.tick(now, true).len();
    }
    assert_eq!(seconds.values().sum::<usize>(), 40, "each once in a delay");
    assert!(seconds.values().all(|count| *count <= 16), "{seconds:?}");
}

/// Datagrams to one port keep their distance, a question that was not sent says nothing, and a monitor that is changed asks soon.
#[test]
fn silence_counts_only_where_a_machine_could_have_spoken() {
    let targets: Vec<Target> = (1..=4).map(|number| target(Check::UdpConnect, false, number)).collect();
    let mut engine = engine(&targets);
    let mut last = None;
    for tick in 0..400 {
        let now = Duration::from_millis(tick * 100);
        let count = engine.tick(now, true).len();
        assert!(count <= 1, "{count} at once");
        if count == 1 {
            assert!(last.is_none_or(|last| now - last >= Duration::from_secs(1)), "{now:?} after {last:?}");
            last = Some(now);
        }
    }
    assert_eq!(engine.verdicts().len(), 4);
    let mut engine = self::engine(&targets[..1]);
    for tick in 0..400 {
        if !engine.tick(Duration::from_millis(tick * 100), true).is_empty() {
            engine.unsent(PORT);
        }
    }
    assert_eq!(engine.verdicts(), [], "nothing was asked");
    let slow = Target { monitor: Monitor { delay_seconds: 3600, ..targets[0].monitor.clone() }, ..targets[0].clone() };
    let mut engine = self::engine(std::slice::from_ref(&slow));
    let soon = Duration::from_secs(5);
    assert!(engine.next_tick(Duration::ZERO).unwrap() <= soon);
    assert_eq!(engine.tick(soon, true).len(), 1);
    engine.update(BTreeMap::from([(targets[0].member, targets[0].clone())]), soon);
    assert!(engine.next_tick(soon).unwrap() <= soon * 2, "another monitor asks soon");
}

/// Members that answer nothing for as long as may be keep those of another load balancer, and what is no connection, from nothing; what is late is said.
#[test]
fn who_is_slow_keeps_nobody_else_waiting() {
    let slow = |number| {
        let mut target = target(Check::Tcp, false, number);
        (target.monitor.delay_seconds, target.monitor.timeout_seconds) = (3600, 3600);
        target
    };
    let mut targets: Vec<Target> = (1..=300).map(slow).collect();
    let mut other = target(Check::Tcp, false, 1);
    other.member.balancer = BalancerId::from_uuid(Uuid::from_u128(2));
    let ping = target(Check::Ping, false, 1000);
    targets.extend([other.clone(), ping.clone()]);
    let mut engine = engine(&targets);
    let is_found = |engine: &Engine, of: &Target| engine.verdicts().iter().any(|it| it.member == of.member);
    let mut now = Duration::ZERO;
    let mut most = 0;
    while now < Duration::from_secs(3600 + 120) {
        for Sent { frame, .. } in engine.tick(now, true) {
            if let Some(answer) = answer(Guest::Open, &frame) {
                engine.receive(PORT, &answer, now);
            }
        }
        most = most.max(engine.in_flight());
        now += Duration::from_secs(1);
        if now == Duration::from_secs(60) {
            assert!(is_found(&engine, &ping), "a ping waits for no connection");
        }
    }
    assert!(most <= CHECKS_MAX / 2 + 2, "{most} of one load balancer and its neighbour");
    // The neighbour has not answered three times, each of 3 s, every 10 s: that is a verdict, whoever is slow.
    let verdicts = engine.verdicts();
    let neighbour = verdicts.iter().find(|it| it.member == other.member).unwrap();
    assert!(!neighbour.online, "{neighbour:?}");
}

/// Beginnings of TCP answers, by a peer made of the same library: see `tests/health.rs` for real ones. Here: a refusal, and silence.
#[test]
fn a_refusal_is_told_from_silence() {
    for (six, guest, reason) in [
        (false, Guest::Closed, "connection refused"),
        (true, Guest::Closed, "connection refused"),
        (false, Guest::Silent, "timed out after 3 s"),
    ] {
        let mut engine = engine(&[target(Check::Tcp, six, 80)]);
        let mut now = Duration::ZERO;
        let mut verdict = None;
        while verdict.is_none() {
            now = engine.next_tick(now).unwrap().max(now);
            for Sent { frame, .. } in engine.tick(now, true) {
                if guest == Guest::Closed {
                    engine.receive(PORT, &reset(&frame), now);
                }
            }
            verdict = said(&engine.verdicts()).map(|(online, reason)| (online, reason.to_owned()));
            assert!(now < Duration::from_secs(100));
        }
        assert_eq!(verdict, Some((false, reason.to_owned())));
    }
}

/// What a closed port of TCP answers to a SYN (RFC 9293 §3.10.7.1).
fn reset(frame: &[u8]) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
    let ethernet = PacketBuilder::ethernet2(GUEST.bytes(), OWN.bytes());
    let mut answer = Vec::new();
    let (from, to, acknowledged) = (tcp.destination_port(), tcp.source_port(), tcp.sequence_number().wrapping_add(1));
    match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ethernet.ipv4(ip.header().destination(), ip.header().source(), 64);
            ip.tcp(from, to, 0, 0).rst().ack(acknowledged).write(&mut answer, &[]).unwrap();
        }
        NetSlice::Ipv6(ip) => {
            let ip = ethernet.ipv6(ip.header().destination(), ip.header().source(), 64);
            ip.tcp(from, to, 0, 0).rst().ack(acknowledged).write(&mut answer, &[]).unwrap();
        }
        NetSlice::Arp(_) => panic!("no IP"),
    }
    answer
}

proptest! {
    /// Whatever a member sends, nothing stumbles, and a verdict wants as many checks as ever.
    #[test]
    fn no_frame_makes_it_stumble(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20), mangled in any::<usize>()) {
        for check in [Check::Tcp, Check::Ping, Check::http()] {
            let mut engine = engine(&[target(check, false, 80)]);
            let mut now = engine.next_tick(Duration::ZERO).unwrap();
            let sent = engine.tick(now, true);
            for frame in &frames {
                now += Duration::from_millis(1);
                engine.receive(PORT, frame, now);
            }
            for Sent { frame, .. } in sent {
                let mut reset = if frame[23] == 6 { reset(&frame) } else { frame };
                let at = mangled % reset.len();
                reset[at] ^= 0xff;
                engine.receive(PORT, &reset, now);
            }
            prop_assert!(engine.verdicts().iter().all(|it| it.online));
        }
    }
}
