//! What the kernel says of its clock.

/// The status bits of the kernel's clock (adjtimex(2)); reading changes nothing.
#[must_use]
pub fn status_bits() -> Option<i32> {
    // SAFETY: timex is a C struct of integers, for which all zeros is a value; `modes` zero asks to change nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole timex, which outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then_some(timex.status)
}
