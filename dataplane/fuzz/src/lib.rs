//! Fuzz targets: what must hold for whatever octets a switch, a database server or a user hands us.
//!
//! Owns [`TARGETS`], a table that the replay test and the libFuzzer program read. Never keeps a corpus: those are files beside it.
//! Invariant: a target returns for every input, or panics because a promise was broken; it has no state from one to the next.

mod openflow_targets;
mod ovsdb_targets;

/// One target: takes any octets.
pub type Target = fn(&[u8]);

/// Every target with the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("openflow_decode", openflow_targets::decode),
    ("openflow_session", openflow_targets::session),
    ("openflow_text", openflow_targets::text),
    ("ovsdb_framing", ovsdb_targets::framing),
    ("ovsdb_message", ovsdb_targets::message),
    ("ovsdb_session", ovsdb_targets::session),
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// Cuts an input into pieces, as a stream may: the first octet of each piece says how long it is (1 to 64).
fn pieces(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first()?;
        let length = (usize::from(*length) % 64 + 1).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        input = rest;
        Some(piece)
    })
}
