//! One libFuzzer program for all targets: `BASALT_FUZZ_TARGET` names the one that runs.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use wire_fuzz::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("BASALT_FUZZ_TARGET").unwrap_or_default();
        wire_fuzz::target(&name).unwrap_or_else(|| panic!("BASALT_FUZZ_TARGET={name:?} names no target"))
    });
    target(input);
});
