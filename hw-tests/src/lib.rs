//! What needs hardware virtualisation or several hosts, on any machine: the lab, guests in it, and the whole cloud.

pub mod cloud;
pub mod guest;
pub mod lab;
