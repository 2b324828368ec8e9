//! A bare-metal guest that runs at user privilege on any KVM and drives virtio by polling.

fn main() {}
