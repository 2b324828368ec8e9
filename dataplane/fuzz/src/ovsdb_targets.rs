//! What must hold for octets that the `ovsdb` crate reads.
//!
//! Source: STYLE.md 15; the promises in the headers of `ovsdb::framing`, `ovsdb::message` and `ovsdb::session`.

use std::time::Instant;

use ovsdb::{
    framing::Framer,
    message::Message,
    monitor::Watch,
    session::{Config, Session},
    tables::{Bridge, DATABASE, Interface, OpenVswitch, Table},
    transaction::Transaction,
};

/// The most octets that one message of the server may have here.
const MESSAGE_MAX: usize = 4096;

/// A stream cut anywhere gives the same messages as the whole of it.
pub(crate) fn framing(input: &[u8]) {
    let Some((step, stream)) = input.split_first() else { return };
    let cut = |step: usize| {
        let mut framer = Framer::new(MESSAGE_MAX);
        let mut messages = Vec::new();
        for piece in stream.chunks(step) {
            framer.push(piece);
            loop {
                match framer.pop() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(_) => return messages,
                }
            }
        }
        messages
    };
    assert_eq!(cut(usize::from(*step) + 1), cut(stream.len().max(1)));
}

/// JSON gives a message or an error; and what was read and written is read again as the same message.
pub(crate) fn message(input: &[u8]) {
    let Ok(message) = Message::decode(input) else { return };
    let written = message.encode();
    match Message::decode(&written) {
        Ok(again) => assert_eq!(again, message),
        Err(error) => panic!("{message:?} was written in a form that cannot be read: {error}"),
    }
}

/// The part of the real schema that the session's watch names.
const SCHEMA: &str = r#"{"id":1,"error":null,"result":{"name":"Open_vSwitch","version":"8.3.0","tables":{
"Open_vSwitch":{"columns":{"bridges":{"type":{"key":{"type":"uuid","refTable":"Bridge"},"min":0,"max":"unlimited"}},
"cur_cfg":{"type":"integer"},"external_ids":{"type":{"key":"string","value":"string","min":0,"max":"unlimited"}}}},
"Bridge":{"columns":{"name":{"type":"string"},"fail_mode":{"type":{"key":"string","min":0,"max":1}}}},
"Interface":{"columns":{"name":{"type":"string"},"ofport":{"type":{"key":"integer","min":0,"max":1}}}}}}}"#;

/// A server's octets, in pieces of any length, give events or an error, from the schema on or after it.
pub(crate) fn session(input: &[u8]) {
    let Some((mode, input)) = input.split_first() else { return };
    let watch = Interface::watched_by(Bridge::watched_by(OpenVswitch::watched_by(Watch::new())));
    let config = Config { message_bytes_max: MESSAGE_MAX, ..Config::new(DATABASE, watch) };
    let mut session = Session::new(config);
    let now = Instant::now();
    session.connected(now);
    if mode & 1 == 0 {
        // The real schema first: what follows is about rows.
        if session.received(SCHEMA.as_bytes(), now).is_err() {
            return;
        }
        if mode & 2 == 0 {
            let rows = br#"{"id":2,"error":null,"result":[false,"a",{}]}"#;
            if session.received(rows, now).is_err() {
                return;
            }
            let mut transaction = Transaction::new();
            transaction.comment("fuzz");
            let _ = session.transact(&transaction);
        }
    }
    for piece in crate::pieces(input) {
        if session.received(piece, now).is_err() {
            session.disconnected();
            break;
        }
        let _ = session.take_output();
    }
    while session.next_event().is_some() {}
}
