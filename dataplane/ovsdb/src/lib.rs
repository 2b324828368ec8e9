//! An OVSDB client (RFC 7047, and the monitor extensions of ovsdb-server(7)) without input or output of its own.
//!
//! ```text
//!  bytes in ─> framing ─> message ─> session ──> events: synchronised, rows changed, transaction done, lock
//! bytes out <─────────────────────── session <── transact, lock, unlock, tick(now)
//!                                       │
//!                                    replica: the monitored rows, always a state the server was in
//! ```
//!
//! [`session::Session`] is the core: bytes and the time go in, bytes and events come out. [`replica::Replica`] holds the
//! monitored rows. [`tables`] has typed rows for the Open vSwitch schema. With feature `io`, `connection` runs a session
//! over a unix or TCP socket on tokio, and connects again with a growing pause when the server goes away.
//!
//! No input makes this crate panic, and no server can make it keep more than a named bound: sizes, depth and the number
//! of transactions under way are limited, and what exceeds a limit is a typed error.

#![forbid(unsafe_code)]
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

pub mod backoff;
#[cfg(feature = "io")]
pub mod connection;
pub mod framing;
pub mod message;
pub mod monitor;
pub mod replica;
pub mod row;
pub mod schema;
pub mod session;
pub mod tables;
pub mod transaction;
pub mod value;

pub use uuid::Uuid;
