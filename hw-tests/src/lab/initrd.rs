//! First root file systems: busybox, the modules that reach the real root, and one init script.
//!
//! Two of them: the host's goes on to this machine's root over 9p, the guest's to a virtio disk. Named by the content of
//! all their inputs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::artifact::Cache;
use super::cpio::Archive;
use super::debian;
use super::kernel::Kernel;

/// What a lab host loads, in this order.
const HOST_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "9pnet_virtio",
    "9p",
    "overlay",
    "ext4",
    "tun",
    "vhost_net",
    "openvswitch",
    "vport-vxlan",
    "sch_htb",
];
/// Tried one after the other on a lab host; the one that fits its processor stays.
const HOST_KVM_MODULES: &[&str] = &["kvm-amd", "kvm-intel"];
/// What a guest loads.
const GUEST_MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio-rng", "ext4", "button", "evdev", "8021q"];
/// The busybox commands that init scripts use.
const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "chmod",
    "chown",
    "cttyhack",
    "cut",
    "echo",
    "grep",
    "hostname",
    "insmod",
    "ip",
    "ln",
    "ls",
    "mkdir",
    "mknod",
    "mount",
    "poweroff",
    "sed",
    "setsid",
    "sleep",
    "stty",
    "switch_root",
    "touch",
    "true",
    "umount",
    "uname",
    "rm",
];
const HOST_INIT: &str = include_str!("init/host.sh");
const GUEST_INIT: &str = include_str!("init/guest.sh");

/// The initrd of lab hosts.
///
/// # Errors
/// busybox is missing, a module is unknown, or the cache cannot be written.
pub fn host(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let optional = HOST_KVM_MODULES;
    build(cache, "host-initrd", kernel, HOST_INIT, &[HOST_MODULES, optional])
}

/// The initrd of guests.
///
/// # Errors
/// As [`host`].
pub fn guest(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    build(cache, "guest-initrd", kernel, GUEST_INIT, &[GUEST_MODULES])
}

fn build(cache: &Cache, name: &str, kernel: &Kernel, init: &str, groups: &[&[&str]]) -> Result<PathBuf> {
    let busybox = busybox()?;
    let busybox_sum = debian::sha256_hex(&fs::read(&busybox)?);
    let wanted = groups.concat().join(" ");
    let tree = kernel.modules();
    let inputs = [busybox_sum.as_str(), &wanted, init, &APPLETS.join(" "), &tree.to_string_lossy()];
    let place = cache.get(name, &inputs, |place| {
        let archive = assemble(kernel, &busybox, init, &groups.concat())?;
        Ok(fs::write(place.join("initrd"), archive)?)
    })?;
    Ok(place.join("initrd"))
}

fn assemble(kernel: &Kernel, busybox: &Path, init: &str, modules: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["proc", "sys", "dev", "run", "tmp", "modules"] {
        archive.directory(directory)?;
    }
    archive.copy("bin/busybox", 0o755, busybox)?;
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    let mut order = String::new();
    for file in kernel.module_files(modules)? {
        let Some(name) = file.file_name().and_then(|name| name.to_str()) else { continue };
        if !name.ends_with(".ko") {
            bail!("module {} is compressed: this kernel is not one of Debian 12", file.display());
        }
        archive.copy(&format!("modules/{name}"), 0o644, &file)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.file("init", 0o755, init.as_bytes())?;
    archive.finish()
}

/// The static busybox of this machine.
///
/// # Errors
/// It is not installed, or what is installed needs shared libraries.
pub fn busybox() -> Result<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let path = found.context("busybox is not installed: cargo xtask packages lab")?;
    let bytes = fs::read(&path)?;
    // A dynamically linked program names its loader.
    if bytes.windows(15).take(4096).any(|window| window == b"ld-linux-x86-64") {
        bail!("{} is not static: apt-get install busybox-static", path.display());
    }
    Ok(path)
}
