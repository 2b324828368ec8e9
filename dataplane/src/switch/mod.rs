//! The thin shell between what should be and Open vSwitch.
//!
//! [`bridge`] sees to the bridge, its tunnel port and the machines' ports through the database; [`driver`] keeps the
//! flows as [`crate::compile()`] wants them, over a [`channel`]; `dhcp` answers what the flows hand over, `services` what takes longer, `names` among it
//! what is asked of DNS and [`resolver`] what others have to be asked; `health` asks the members of load balancers; [`host`] has all of it in one hand; [`counters`] reads what was counted; [`handlers`] knows the one way in which a running switch
//! forwards nothing. Nothing here decides
//! what traffic may do.

mod answers;
pub mod arrivals;
pub mod bridge;
pub mod channel;
pub mod counters;
pub mod driver;
pub mod handlers;
mod health;
pub mod host;
mod names;
pub mod openflow;
pub mod resolver;
mod services;
mod stations;
