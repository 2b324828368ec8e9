//! The lab: hosts with hardware virtualisation and a kernel data path, without the hardware.

pub mod guest;
pub mod lab;
