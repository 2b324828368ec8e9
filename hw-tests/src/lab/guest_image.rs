//! The small Debian guest disk: an ext4 file system with busybox, Debian's base files and our init.
//!
//! Made without mounting anything (`mke2fs -d`), once for each content of its inputs. Holds no secret and no key: whoever
//! has the console is root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;

use super::artifact::Cache;
use super::kernel::{self, Kernel};
use super::{debian, initrd};

/// Debian packages whose files are on the disk besides busybox.
const PACKAGES: &[&str] = &["base-files", "netbase"];
/// Size of the file system.
const DISK_MIB: u32 = 64;
const MAKE_LIMIT: Duration = Duration::from_secs(60);

/// Our own files on the disk: path, permission bits, content.
const FILES: &[(&str, u32, &str)] = &[
    ("sbin/init", 0o755, include_str!("init/guest-root/sbin/init")),
    ("etc/udhcpc.script", 0o755, include_str!("init/guest-root/etc/udhcpc.script")),
    ("etc/acpi/PWRF/00000080", 0o755, include_str!("init/guest-root/etc/acpi/PWRF/00000080")),
    ("etc/hostname", 0o644, "guest\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("etc/resolv.conf", 0o644, ""),
];
const DIRECTORIES: &[&str] = &["dev", "proc", "sys", "run", "tmp", "root", "mnt", "var/www"];

/// Everything needed to boot a guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel (bzImage).
    pub kernel: PathBuf,
    /// Its first root file system; mounts the disk named by `root=`, or gives a shell without one.
    pub initrd: PathBuf,
    /// The disk as a raw image.
    pub disk_raw: PathBuf,
    /// The same disk as qcow2.
    pub disk_qcow2: PathBuf,
}

impl Guest {
    /// The kernel command line for a guest whose console is `console` (`ttyS0` or `hvc0`) and whose disk is the first.
    #[must_use]
    pub fn command_line(console: &str) -> String {
        format!("console={console} root=/dev/vda quiet loglevel=4 mitigations=off")
    }

    /// Kernel, initrd and disk from the cache, or made now.
    ///
    /// # Errors
    /// A package cannot be had, or a tool fails.
    pub fn get(cache: &Cache) -> Result<Self> {
        let kernel = Kernel::get(cache, kernel::GUEST_PACKAGE)?;
        let initrd = initrd::guest(cache, &kernel)?;
        let disk = disk(cache)?;
        let (disk_raw, disk_qcow2) = (disk.join("guest.raw"), disk.join("guest.qcow2"));
        Ok(Self { kernel: kernel.image(), initrd, disk_raw, disk_qcow2 })
    }
}

fn disk(cache: &Cache) -> Result<PathBuf> {
    let archive = cache.packages()?;
    let packages = PACKAGES.iter().map(|name| archive.resolve(name)).collect::<Result<Vec<_>>>()?;
    let busybox = initrd::busybox()?;
    let mut inputs = vec![format!("{DISK_MIB}"), debian::sha256_hex(&fs::read(&busybox)?)];
    inputs.extend(packages.iter().map(|package| package.sha256.clone()));
    inputs.extend(FILES.iter().map(|(path, mode, content)| format!("{path} {mode} {content}")));
    inputs.extend(DIRECTORIES.iter().map(|path| (*path).to_owned()));
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    cache.get("guest-disk", &inputs, |place| {
        let root = tempfile::tempdir_in(place)?;
        for package in &packages {
            debian::unpack(&archive.fetch(package)?, root.path())?;
        }
        fill(root.path(), &busybox)?;
        make_images(root.path(), place)
    })
}

/// Puts busybox and our own files over what the packages brought.
fn fill(root: &Path, busybox: &Path) -> Result<()> {
    for directory in DIRECTORIES.iter().chain(&["bin", "sbin"]) {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in process::run(Command::new(busybox).arg("--list"), MAKE_LIMIT)?.lines() {
        let link = root.join("bin").join(applet);
        if applet != "busybox" && link.symlink_metadata().is_err() {
            symlink("busybox", link)?;
        }
    }
    for (path, mode, content) in FILES {
        let file = root.join(path);
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

fn make_images(root: &Path, place: &Path) -> Result<()> {
    let (raw, qcow2) = (place.join("guest.raw"), place.join("guest.qcow2"));
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-L", "basalt-guest", "-E", "root_owner=0:0", "-d"]);
    make.arg(root).arg(&raw).arg(format!("{DISK_MIB}M"));
    process::run(&mut make, MAKE_LIMIT)?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2);
    process::run(&mut convert, MAKE_LIMIT)?;
    Ok(())
}
