//! Commands in a lab host, run by a server of ours there and driven from here over the management network.
//!
//! One TCP connection for each command: standard streams kept apart, exit status, time limit, and no boot or login in
//! between. The connection is the command's life line: when it breaks, the command's process group is killed. What a
//! command leaves in the background on purpose stays. There is no authentication: the network is the lab's own.
//!
//! ```text
//! client                         server
//!   Start(request) ──────────────> spawn in a process group of its own
//!   Stdin* StdinEnd ─────────────> its standard input
//!   <───────────── Stdout* Stderr*
//!   <───────────── Exit            then the connection is closed
//! ```

pub mod client;
pub mod frame;
pub mod server;

pub use client::{Call, Finished, Session};
pub use frame::{Ending, Request};

/// The TCP port of the server in each host.
pub const PORT: u16 = 7070;
