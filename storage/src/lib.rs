//! Volumes and images of a Basalt host: the narrow volume interface that a VM's block device uses, and the blocking
//! calls that make, copy, import and remove volumes.
//!
//! This crate is mechanism. It never hears of tenants, VMs or schedulers, and it starts no async runtime: a volume
//! signals completions by an eventfd, everything else blocks for a bounded time and is meant for a thread of its own.
//!
//! | module | what it owns |
//! |---|---|
//! | [`source`] | where a volume lives (the wire form), and [`source::open`] |
//! | [`volume`] | [`volume::Volume`]: submit, kick, drain, close |
//! | [`memory`] | guest memory as I/O buffers; the promise made about it |
//! | [`mod@file`] | volumes in sparse raw files: create, clone, open with a lock |
//! | [`rbd`] | volumes in a Ceph cluster, by librbd: create, clone, snapshot, open with the exclusive lock, fence |
//! | [`image`], [`mod@format`], [`digest`] | importing raw and qcow2 images into files and pools |
//!
//! Invariant: a volume is open for writing in at most one process; a second opener gets an error that names the first.

pub mod digest;
pub mod file;
pub mod format;
pub mod image;
pub mod memory;
pub mod rbd;
pub mod source;
pub mod volume;
