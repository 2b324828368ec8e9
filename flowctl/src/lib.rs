//! The operator's command line: why a packet or a VM does what it does.

#![forbid(unsafe_code)]
