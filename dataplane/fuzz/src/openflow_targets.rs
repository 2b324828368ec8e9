//! What must hold for octets and text that the `openflow` crate reads.
//!
//! Source: STYLE.md 15; the promises in the headers of `openflow::wire`, `openflow::session` and `openflow::flow`.

use std::{fmt::Display, str::FromStr, time::Duration};

use openflow::{
    flow::{Flow, Group, Match, Meter, parse_actions, print_actions},
    session::{Limits, Session},
    wire::{self, Hello, Message},
};

/// Octets of a message body give a message or an error; and what was read and can be written is read again as the same value.
///
/// The first octet is the message type, so that the fuzzer need not learn version and length first.
pub(crate) fn decode(input: &[u8]) {
    let _ = wire::message_length(input);
    let _ = wire::decode(input);
    let Some((kind, body)) = input.split_first() else { return };
    let Ok(length) = u16::try_from(body.len() + wire::HEADER_OCTETS) else { return };
    let mut octets = vec![wire::VERSION, *kind];
    octets.extend(length.to_be_bytes());
    octets.extend([0, 0, 0, 1]);
    octets.extend(body);
    let Ok((xid, message)) = wire::decode(&octets) else { return };
    // What a switch may say is wider than what we would send it: then there is nothing to compare.
    let Ok(again) = wire::encode(&message, xid) else { return };
    match wire::decode(&again) {
        Ok(read) => assert_eq!(read, (xid, message), "read from {again:02x?}"),
        Err(error) => panic!("{message:?} was written as {again:02x?}, which cannot be read: {error}"),
    }
}

/// A stream of octets in pieces of any length never makes a session keep more than one message, and ends in events or an error.
pub(crate) fn session(input: &[u8]) {
    let limits = Limits { requests_max: 4, answer_octets_max: 4096, ..Limits::default() };
    let mut session = Session::new(limits, Duration::ZERO);
    let mut now = Duration::ZERO;
    let Some((mode, input)) = input.split_first() else { return };
    if mode & 1 == 0 {
        // Past the greeting, where most of a session's life is.
        let Ok(hello) = wire::encode(&Message::Hello(Hello::new()), 1) else { return };
        if session.receive(&hello, now).is_err() {
            return;
        }
        for _ in 0..3 {
            let _ = session.ask(&Message::BarrierRequest);
        }
    }
    for piece in crate::pieces(input) {
        now += Duration::from_secs(u64::from(*mode) / 32);
        if session.tick(now).is_err() || session.receive(piece, now).is_err() {
            return;
        }
        // Answers to echo requests are the only octets that the other side can make us hold.
        assert!(session.take_output().len() <= 2 * (64 + usize::from(u16::MAX)));
    }
}

fn survives<T: FromStr + Display + PartialEq + std::fmt::Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let printed = value.to_string();
        match printed.parse::<T>() {
            Ok(again) => assert_eq!(again, value, "printed as {printed:?}"),
            Err(_) => panic!("{text:?} was printed as {printed:?}, which cannot be parsed"),
        }
    }
}

/// Text gives a value or an error; and what was parsed and printed is parsed again as the same value.
pub(crate) fn text(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match kind % 5 {
        0 => survives::<Flow>(text),
        1 => survives::<Match>(text),
        2 => survives::<Group>(text),
        3 => survives::<Meter>(text),
        _ => {
            if let Ok(actions) = parse_actions(text) {
                let printed = print_actions(&actions);
                assert_eq!(parse_actions(&printed).as_ref(), Ok(&actions), "printed as {printed:?}");
            }
        }
    }
}
