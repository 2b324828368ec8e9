//! Real Open vSwitch, real Ceph and network namespaces for tests, and the tests that cross crates.
//!
//! Each module owns one kind of real thing that a test wants for itself, and takes it away again: on drop, after a
//! panic, and when the test process is killed. Nothing here has a fake behind it: what is missing on a machine is
//! named by [`skip`], never replaced. All waits are bounded, and every error carries what the program said.
//!
//! The library is blocking and knows no async runtime, so that plain tests, `hw-tests` and `xtask` can all use it.

pub mod ceph;
pub mod ipfix;
pub mod loopback;
pub mod netns;
pub mod ovs;
pub mod process;
pub mod program;
pub mod skip;
pub mod snmp;
pub mod systemd;
pub mod tcp;
