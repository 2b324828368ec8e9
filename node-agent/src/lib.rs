//! The per-host daemon: spec, plan, apply, observe, report.
