//! The thin centre: intent, placement, and one specification per host.

#![forbid(unsafe_code)]
