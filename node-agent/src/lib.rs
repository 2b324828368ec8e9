//! The per-host daemon: accept a spec, look, plan, apply, report, and again.
//!
//! The state of the whole has one owner, [`reconcile::Reconciler`]. [`plan`] is pure; [`driver`] says what a host must offer and holds the real
//! drivers; the rest are edges: the local API, the link to the scheduler, the command line. The agent may be killed at any point: machines and
//! flows go on, and the next start goes on from the ledger.

pub mod accept;
pub mod api;
pub mod apply;
pub mod arrival;
pub mod ask;
pub mod cli;
pub mod clock;
pub mod config;
pub mod counter_records;
pub mod daemon;
pub mod doctor;
pub mod driver;
pub mod identity;
pub mod join;
pub mod lane;
pub mod launcher;
pub mod ledger;
pub mod link;
pub mod metrics;
pub mod plan;
pub mod probe;
pub mod process;
pub mod reconcile;
pub mod record;
pub mod renewal;
pub mod report;
pub mod resources;
pub mod seen;
pub mod unixctl;
pub mod upstream;
pub mod why;
pub mod worker;

#[cfg(test)]
mod sim;
