//! What flows should exist on a host and why: compile, diff, trace, and the switch driver.

#![forbid(unsafe_code)]

pub mod switch;
