//! Shows how a session greets, keeps alive, matches answers and stays within its limits.
//!
//! How: a switch is played by hand, octet by octet, with time passed in.

use std::time::Duration;

use super::{AskError, Bundle, BundleError, Change, Event, Limits, Session, SessionError};
use crate::{
    flow::{Flow, PortNo},
    wire::{
        self, BundleControl, BundleFlags, BundleStep, FlowMod, Hello, Message, MultipartReply, MultipartRequest,
        SwitchError, TableCounters, Xid,
    },
};

const T0: Duration = Duration::ZERO;

fn octets(message: &Message, xid: Xid) -> Vec<u8> {
    wire::encode(message, xid).unwrap()
}

fn sent(session: &mut Session) -> Vec<(Xid, Message)> {
    let output = session.take_output();
    let (mut rest, mut messages) = (output.as_slice(), Vec::new());
    while let Some(length) = wire::message_length(rest).unwrap() {
        messages.push(wire::decode(&rest[..length]).unwrap());
        rest = &rest[length..];
    }
    messages
}

fn ready(limits: Limits) -> Session {
    let mut session = Session::new(limits, T0);
    assert_eq!(sent(&mut session), [(1, Message::Hello(Hello::new()))]);
    let events = session.receive(&octets(&Message::Hello(Hello::new()), 9), T0).unwrap();
    assert_eq!(events, [Event::Ready]);
    session
}

/// Shows that a hello cut into single octets still greets, and that a switch of OpenFlow 1.3 is refused with the way out.
#[test]
fn greets() {
    let mut session = Session::new(Limits::default(), T0);
    let hello = octets(&Message::Hello(Hello::new()), 9);
    let events: Vec<_> = hello.iter().flat_map(|octet| session.receive(&[*octet], T0).unwrap()).collect();
    assert_eq!(events, [Event::Ready]);

    let mut session = Session::new(Limits::default(), T0);
    let error = session.receive(&[4, 0, 0, 8, 0, 0, 0, 1], T0).unwrap_err();
    assert_eq!(error, SessionError::NoCommonVersion { versions: 0b11111 });
    assert!(error.to_string().contains("ovs-vsctl set bridge"));

    let mut session = Session::new(Limits::default(), T0);
    assert_eq!(session.receive(&octets(&Message::BarrierReply, 1), T0), Err(SessionError::NoHello));
    let mut session = Session::new(Limits::default(), T0);
    let refusal = SwitchError { kind: 0, code: 0, experimenter: None, data: Vec::new() };
    assert_eq!(session.receive(&octets(&Message::Error(refusal.clone()), 1), T0), Err(SessionError::Refused(refusal)));
}

/// Shows the echo after silence, the answer to the switch's own echo, and the end of a dead session.
#[test]
fn keeps_alive() {
    let mut session = ready(Limits::default());
    assert_eq!(session.deadline(), Duration::from_secs(5));
    session.tick(Duration::from_secs(4)).unwrap();
    assert_eq!(sent(&mut session), []);
    session.tick(Duration::from_secs(5)).unwrap();
    let asked = sent(&mut session);
    assert_eq!(asked, [(2, Message::EchoRequest(Vec::new()))]);
    session.receive(&octets(&Message::EchoReply(Vec::new()), 2), Duration::from_secs(6)).unwrap();
    assert_eq!(session.deadline(), Duration::from_secs(11));

    session.receive(&octets(&Message::EchoRequest(vec![7]), 77), Duration::from_secs(7)).unwrap();
    assert_eq!(sent(&mut session), [(77, Message::EchoReply(vec![7]))]);

    session.tick(Duration::from_secs(12)).unwrap();
    assert_eq!(session.tick(Duration::from_secs(22)), Err(SessionError::Silent { silence: Duration::from_secs(15) }));
}

fn tables(numbers: std::ops::Range<u8>) -> MultipartReply {
    let table = |table| TableCounters { table, active: 1, lookups: 2, matched: 3 };
    MultipartReply::Tables(numbers.map(table).collect())
}

/// Shows that parts become one answer, and that an endless answer ends the session.
#[test]
fn puts_parts_together() {
    let mut session = ready(Limits { answer_octets_max: 1000, ..Limits::default() });
    let xid = session.ask(&Message::MultipartRequest(MultipartRequest::Tables)).unwrap();
    let part = |reply, more| octets(&Message::MultipartReply { reply, more }, xid);
    assert_eq!(session.receive(&part(tables(0..2), true), T0), Ok(vec![]));
    let message = Message::MultipartReply { reply: tables(0..5), more: false };
    assert_eq!(session.receive(&part(tables(2..5), false), T0), Ok(vec![Event::Answer { xid, message }]));
    assert_eq!(session.receive(&part(tables(0..2), false), T0), Ok(vec![]), "nobody asked any more");

    let xid = session.ask(&Message::MultipartRequest(MultipartRequest::Tables)).unwrap();
    let part = octets(&Message::MultipartReply { reply: tables(0..21), more: true }, xid);
    session.receive(&part, T0).unwrap();
    let error = session.receive(&part, T0).unwrap_err();
    assert_eq!(error, SessionError::AnswerTooLarge { xid, octets_max: 1000 });
}

/// Shows that refusals and unreadable answers end the question, and that open questions are bounded.
#[test]
fn ends_questions() {
    let mut session = ready(Limits { requests_max: 1, ..Limits::default() });
    let xid = session.ask(&Message::BarrierRequest).unwrap();
    assert_eq!(session.ask(&Message::BarrierRequest), Err(AskError::TooMany { requests_max: 1 }));
    let error = SwitchError { kind: 1, code: 5, experimenter: None, data: Vec::new() };
    let events = session.receive(&octets(&Message::Error(error.clone()), xid), T0).unwrap();
    assert_eq!(events, [Event::Refused { xid, error }]);

    let xid = session.ask(&Message::GetConfigRequest).unwrap();
    let mut broken = octets(&Message::BarrierReply, xid);
    broken[1] = 8;
    let events = session.receive(&broken, T0).unwrap();
    assert!(matches!(events[..], [Event::Unreadable { xid: of, .. }] if of == xid));
    session.ask(&Message::BarrierRequest).unwrap();
}

fn adds(count: u16) -> Vec<Change> {
    let flow = |priority| -> Flow { format!("priority={priority} actions=drop").parse().unwrap() };
    (0..count).map(|priority| FlowMod::add(flow(priority)).into()).collect()
}

fn control(step: BundleStep) -> Message {
    Message::BundleControl(BundleControl { id: 5, step, flags: BundleFlags::ATOMIC | BundleFlags::ORDERED })
}

fn xid_of(messages: &[(Xid, Message)], step: BundleStep) -> Xid {
    messages.iter().find(|(_, message)| *message == control(step)).unwrap().0
}

/// Shows that commit waits until the switch has taken all changes, and that changes go out in bounded pieces.
#[test]
fn bundle_commits() {
    let mut session = ready(Limits::default());
    let mut bundle = Bundle::new(5, adds(100));
    let mut messages = Vec::new();
    while bundle.has_more() {
        bundle.feed(&mut session, 1000).unwrap();
        assert!(session.output_len() < 1200);
        messages.extend(sent(&mut session));
    }
    assert_eq!(messages.len(), 102, "open, 100 changes, close");
    for step in [BundleStep::Opened, BundleStep::Closed] {
        let asked = if step == BundleStep::Opened { BundleStep::Open } else { BundleStep::Close };
        for event in session.receive(&octets(&control(step), xid_of(&messages, asked)), T0).unwrap() {
            assert_eq!(bundle.take(&event, &mut session), None);
        }
    }
    let messages = sent(&mut session);
    let xid = xid_of(&messages, BundleStep::Commit);
    let events = session.receive(&octets(&control(BundleStep::Committed), xid), T0).unwrap();
    assert_eq!(bundle.take(&events[0], &mut session), Some(Ok(())));
}

/// Shows that a change refused before commit is named, and that the bundle is forgotten instead of committed.
#[test]
fn bundle_with_refused_change_is_discarded() {
    let mut session = ready(Limits::default());
    let mut bundle = Bundle::new(5, adds(3));
    bundle.feed(&mut session, usize::MAX).unwrap();
    let messages = sent(&mut session);
    let source = SwitchError { kind: 5, code: 1, experimenter: None, data: Vec::new() };
    let mut end = None;
    let refusal = octets(&Message::Error(source.clone()), messages[2].0);
    let closed = octets(&control(BundleStep::Closed), xid_of(&messages, BundleStep::Close));
    for event in session.receive(&[refusal, closed].concat(), T0).unwrap() {
        end = bundle.take(&event, &mut session);
    }
    let change = "add flow cookie=0x0, table=0, priority=1 actions=drop".to_owned();
    assert_eq!(end, Some(Err(BundleError::Refused { index: 1, change, source })));
    assert_eq!(sent(&mut session)[0].1, control(BundleStep::Discard));
}

/// Shows that a change without wire form is found before anything is applied.
#[test]
fn bundle_with_unwritable_change_is_discarded() {
    let mut session = ready(Limits::default());
    let mut changes = adds(2);
    let bad = Flow::new(1, 1, crate::flow::Match::new(), vec![crate::flow::Action::Output(PortNo::CONTROLLER)]);
    changes.push(FlowMod::add(bad).into());
    let error = Bundle::new(5, changes).feed(&mut session, usize::MAX).unwrap_err();
    assert!(matches!(error, BundleError::Encode { index: 2, .. }), "{error:?}");
    assert_eq!(sent(&mut session).last().unwrap().1, control(BundleStep::Discard));
}
