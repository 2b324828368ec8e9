//! The lab: hosts with hardware virtualisation and a kernel data path, without the hardware.

pub mod lab;
