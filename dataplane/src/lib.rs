//! What flows should exist on a host and why: compile, diff, trace, and the switch driver.
//!
//! [`compile`](compile::compile) makes a [`FlowSet`] from a host's networks, [`diff`](diff::diff) holds it against what is installed,
//! [`trace::trace`] says what flows do with a packet and why, [`respond::answer`] answers what the switch hands over. All of that is pure. The tables stand in [`table::TABLES`], what registers mean in
//! [`register::REGISTERS`], features one module each in [`feature`].

#![forbid(unsafe_code)]

mod balanced;
pub mod compile;
pub mod cookie;
pub mod dhcp;
pub mod dhcp6;
pub mod diff;
pub mod dns;
pub mod exit;
mod family;
pub mod feature;
pub mod flow_set;
pub mod graph;
pub mod health;
pub mod identity;
mod line;
pub mod metadata;
pub mod neighbour_advert;
pub mod peer;
pub mod punt;
pub mod quoted;
pub mod register;
pub mod respond;
pub mod router_advert;
pub mod station;
pub mod switch;
pub mod table;
pub mod too_large;
pub mod trace;
pub mod zone;

pub use compile::{Compiler, Edit, PortNumbers, compile};
pub use diff::{Changes, Foreign, Installed, Step, diff};
pub use flow_set::{FlowSet, Touched};
pub use trace::trace;
