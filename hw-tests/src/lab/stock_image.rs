//! A whole Debian with systemd as a guest disk, as an operator would bring one: made by debootstrap, not by us.
//!
//! Only three things are set: DHCP on every Ethernet device (systemd-networkd), a root shell on the serial console, and
//! no root password. It takes minutes in a nested guest, so one test boots it; the rest use [`super::guest_image`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;

use super::artifact::Cache;
use super::debian;

/// What is there besides Debian's essential packages; logind needs dbus to obey the power button.
const INCLUDED: &str = "systemd-sysv,udev,iproute2,iputils-ping,netbase,kmod,dbus";
const DISK_MIB: u32 = 1024;
/// Fetching and installing 100 packages on a slow machine.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(900);
const MAKE_LIMIT: Duration = Duration::from_secs(180);
const FILES: &[(&str, &str)] = &[
    ("etc/systemd/network/20-ethernet.network", "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n"),
    (
        "etc/systemd/system/serial-getty@.service.d/root.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear %I 115200 linux\n",
    ),
    ("etc/hostname", "debian\n"),
    ("etc/fstab", ""),
    ("etc/machine-id", ""),
];

/// The disk as qcow2, from the cache or made now.
///
/// # Errors
/// debootstrap or a tool fails; the end of its log is in the message.
pub fn disk(cache: &Cache) -> Result<PathBuf> {
    let release = debian::release_codename()?;
    let files: String = FILES.iter().map(|(path, content)| format!("{path} {content}")).collect();
    let place = cache.get("stock-disk", &[&release, INCLUDED, &files, &DISK_MIB.to_string()], |place| {
        let root = tempfile::tempdir_in(place)?;
        let mut bootstrap = Command::new("debootstrap");
        bootstrap.args(["--variant=minbase", &format!("--include={INCLUDED}"), &release]).arg(root.path());
        bootstrap.arg(mirror());
        process::run(&mut bootstrap, BOOTSTRAP_LIMIT).with_context(|| bootstrap_log(root.path()))?;
        configure(root.path())?;
        pack(root.path(), place)
    })?;
    Ok(place.join("stock.qcow2"))
}

fn configure(root: &Path) -> Result<()> {
    for (path, content) in FILES {
        let file = root.join(path);
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
    }
    let mut enable = Command::new("systemctl");
    enable.arg("--root").arg(root).args(["enable", "systemd-networkd.service"]);
    if process::run(&mut enable, MAKE_LIMIT).is_err() {
        // This machine may have no systemctl of its own; the guest's does as well.
        let mut inside = Command::new("chroot");
        inside.arg(root).args(["systemctl", "enable", "systemd-networkd.service"]);
        process::run(&mut inside, MAKE_LIMIT)?;
    }
    let mut password = Command::new("chroot");
    process::run(password.arg(root).args(["passwd", "--delete", "root"]), MAKE_LIMIT)?;
    for waste in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        fs::remove_dir_all(root.join(waste)).ok();
        fs::create_dir_all(root.join(waste))?;
    }
    Ok(())
}

fn pack(root: &Path, place: &Path) -> Result<()> {
    let raw = place.join("stock.raw");
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-L", "debian", "-d"]).arg(root).arg(&raw).arg(format!("{DISK_MIB}M"));
    process::run(&mut make, MAKE_LIMIT)?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(place.join("stock.qcow2"));
    process::run(&mut convert, MAKE_LIMIT)?;
    Ok(fs::remove_file(raw)?)
}

/// The first Debian mirror that this machine's apt uses.
fn mirror() -> String {
    let files = ["/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources"];
    let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let words = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    let found = words.flat_map(str::split_whitespace).find(|word| word.starts_with("http") && word.contains("debian"));
    found.unwrap_or("http://deb.debian.org/debian").to_owned()
}

fn bootstrap_log(root: &Path) -> String {
    let text = fs::read_to_string(root.join("debootstrap/debootstrap.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("debootstrap's log ends: {}", lines[lines.len().saturating_sub(8)..].join("\n"))
}
