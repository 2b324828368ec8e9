//! The thin centre: intent, placement, and one specification per host.
//!
//! ```text
//! operators ──REST /v1──> intent ──reconcile(reports)──> placement, keepers, one NodeSpec per host ──long poll──> agents
//!                           └── store (one transaction per change)          agents ──reports──> cluster (memory only)
//! ```
//! `intent`, `place`, `assign` and `reconcile` are pure; `centre` owns the state; `server` and `api` are the shell around it.

#![forbid(unsafe_code)]

mod api;
mod assign;
mod authority;
mod bandwidth;
mod blob;
mod caller;
mod centre;
pub mod cli;
mod cluster;
pub mod config;
mod evacuate;
mod gateway;
mod intent;
mod metrics;
mod place;
mod reconcile;
mod refusal;
mod seat;
mod server;
mod standing;
mod store;
mod token;
