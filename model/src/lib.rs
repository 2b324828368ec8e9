//! The shared nouns of Basalt in checked form, and the wire forms that carry them between scheduler, agent and tools.
//!
//! A value of one of these types is valid by construction: fields that have a shape (an address, a VNI, a size) are types with private
//! contents and one door in (`TryFrom`, `FromStr`). [`spec::NodeSpec`] adds what holds between objects: each reference names an object that
//! is there. This crate does no I/O and reads no clock.

#![forbid(unsafe_code)]

pub mod address;
pub mod address_group;
pub mod agent;
pub mod arrival;
pub mod balancer;
pub mod domain;
pub mod firewall;
pub mod id;
pub mod image;
pub mod machine;
pub mod metadata;
pub mod mirror;
pub mod network;
pub mod observed;
pub mod provider;
pub mod qos;
pub mod security;
pub mod spec;
pub mod units;
pub mod volume;

pub use address::{Mac, Vni};
pub use id::{
    AddressGroupId, BalancerId, FirewallPolicyId, FirewallRuleId, FlavorId, HostId, ImageId, MachineId, NetworkId,
    PortId, RouterId, RuleId, SecurityGroupId, SubnetId, VolumeId,
};
pub use units::{Mib, Vcpus};
