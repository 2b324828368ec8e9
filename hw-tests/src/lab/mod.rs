//! The lab: one to three emulated hosts with real KVM and a real kernel data path, on any machine.

pub mod artifact;
pub mod debian;
pub mod progress;
