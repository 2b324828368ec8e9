//! PCI as the guest sees it: one bus reached through memory-mapped configuration space, functions with one memory BAR and MSI-X.
//!
//! The old port mechanism (0xcf8, 0xcfc) is left out on purpose: a guest that finds it prefers it and pays two exits for each access.

pub mod bus;
pub mod config;
pub mod msix;
