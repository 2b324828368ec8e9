//! A virtual machine monitor on KVM: one jailed process per VM.
//!
//! Other crates use four modules: [`config`] says what a machine is made of, [`control`] is the language spoken on the control socket,
//! [`client`] speaks it, and [`state`] is the life of a machine. The rest is the machine itself. The crate knows devices, queues and
//! descriptors; it never hears of tenants, security groups or schedulers.
//!
//! ```text
//!  control thread: supervisor (control socket, console clients) ── builds, pauses, ends ──> machine
//!  vCPU threads:   guest code ── exits ──> bus ──> serial, power, pci ──> virtio registers
//!  device thread:  eventfds of queues, volumes, taps ──> virtio devices ── irqfd ──> guest
//! ```

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod client;
pub mod clients;
pub mod config;
pub mod console;
pub mod control;
pub mod cpu;
pub mod gate;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod log;
pub mod machine;
pub mod memory;
pub mod overhead;
pub mod pci;
pub mod poll;
pub mod power;
pub mod report;
pub mod resources;
pub mod serial;
pub mod state;
pub mod supervisor;
pub mod thread;
pub mod triple_fault;
pub mod vcpu;
pub mod virtio;
