//! OpenFlow 1.5 with the Nicira extensions of Open vSwitch: a sans-IO codec and session.

#![forbid(unsafe_code)]
