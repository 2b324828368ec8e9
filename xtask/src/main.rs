//! The project's own commands: up, test, check, lab, ceph.

fn main() {}
