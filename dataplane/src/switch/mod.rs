//! The thin shell between what should be and Open vSwitch.
//!
//! [`bridge`] sees to the bridge, its tunnel port and the machines' ports through the database; [`handlers`] knows the
//! one way in which a running switch forwards nothing. Nothing here decides what traffic may do.

pub mod bridge;
pub mod handlers;
