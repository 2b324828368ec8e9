//! OpenFlow 1.5 with the Nicira extensions of Open vSwitch: a sans-IO codec and session.
//!
//! - [`flow`]: flows and groups as values, with their ovs-ofctl text.
//! - [`wire`]: messages and their octets.
//! - [`session`]: one conversation with a switch, without a socket.
//! - `connection` (feature `io`): a client for one switch, on tokio.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(all(doctest, feature = "io"), doc = include_str!("../README.md"))]

#[cfg(feature = "io")]
pub mod connection;
pub mod flow;
pub mod session;
pub mod wire;
