//! The rate of this machine's time stamp counter, which an emulated processor shows to its kernel unchanged.
//!
//! A kernel under emulation on a busy machine measures this rate against an emulated timer and can be wrong by half;
//! told the right one it keeps time.

use std::time::{Duration, Instant};

use super::acceleration::Acceleration;

const MEASURE: Duration = Duration::from_millis(100);

/// The kernel parameters that give a host its clock; none where the processor is not emulated.
#[must_use]
pub fn kernel_parameters(acceleration: Acceleration) -> String {
    match acceleration {
        Acceleration::Kvm => String::new(),
        // Refined later by the kernel, which takes no value that is off by more than a hundredth.
        Acceleration::Emulation => format!("tsc=reliable tsc_early_khz={}", kilohertz()),
    }
}

fn kilohertz() -> u64 {
    let (start, first) = (Instant::now(), counter());
    basalt_tests::process::wait_for("a tenth of a second", MEASURE * 10, || {
        Ok((start.elapsed() >= MEASURE).then_some(()))
    })
    .ok();
    let (ticks, time) = (counter().wrapping_sub(first), start.elapsed());
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    ticks.saturating_mul(1000) / micros
}

fn counter() -> u64 {
    // SAFETY: RDTSC is there on every x86-64 processor, touches no memory and is not disabled for user programs by Linux
    // unless a process asks for that (prctl PR_SET_TSC), which this one does not.
    unsafe { std::arch::x86_64::_rdtsc() }
}
