//! The operator's command line: what the cloud holds, and why a packet or a VM does what it does.
//!
//! Nouns and verbs of the cloud go to the scheduler ([`scheduler`]); questions about one host go to its agent over a unix socket ([`agent`]).
//! Results are on standard output ([`output`]), diagnostics on standard error, and how it ended is the exit code ([`failure`]). This program
//! decides nothing by itself: it asks, and shows what it was told.

#![forbid(unsafe_code)]

pub mod agent;
pub mod cli;
pub mod failure;
pub mod manual;
pub mod noun;
pub mod output;
pub mod picture;
pub mod question;
pub mod scheduler;
pub mod top;
