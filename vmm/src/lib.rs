//! A virtual machine monitor on KVM: one jailed process per VM.
//!
//! Other crates use four modules: [`config`] says what a machine is made of, [`control`] is the language spoken on the control socket,
//! [`client`] speaks it, and [`state`] is the life of a machine. The rest is the machine itself. The crate knows devices, queues and
//! descriptors; it never hears of tenants, security groups or schedulers.

pub mod client;
pub mod config;
pub mod control;
pub mod jail;
pub mod state;
