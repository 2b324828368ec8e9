//! An OVSDB (RFC 7047) client: a sans-IO session, and the Open vSwitch tables typed.

#![forbid(unsafe_code)]
