//! Stock Debian kernels, unpacked: the image, and the modules with their dependencies.
//!
//! Owns which package is the host's and which the guest's. Never changes a kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use basalt_tests::process;

use super::artifact::Cache;
use super::debian;

/// The package of the kernel that lab hosts run: the release's own, with kvm-amd and openvswitch.
pub const HOST_PACKAGE: &str = "linux-image-amd64";
/// The package of the kernel that guests run.
pub const GUEST_PACKAGE: &str = "linux-image-cloud-amd64";

const DEPMOD_LIMIT: Duration = Duration::from_secs(120);

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    tree: PathBuf,
    release: String,
}

impl Kernel {
    /// The kernel of `package`, from the cache or made now.
    ///
    /// # Errors
    /// The package cannot be had or unpacked.
    pub fn get(cache: &Cache, package: &str) -> Result<Self> {
        let packages = cache.packages()?;
        let package = packages.resolve(package)?;
        let tree = cache.get(&package.name, &[&package.sha256], |place| {
            debian::unpack(&packages.fetch(&package)?, place)?;
            let release = release_in(place)?;
            process::run(Command::new("depmod").arg("-b").arg(place).arg(&release), DEPMOD_LIMIT)?;
            Ok(())
        })?;
        let release = release_in(&tree)?;
        Ok(Self { tree, release })
    }

    /// The bootable image (bzImage).
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.tree.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The release as `uname -r` says it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The directory with all modules, for `/lib/modules/RELEASE`.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.tree.join("lib/modules").join(&self.release)
    }

    /// The files of the named modules and all they need, in the order to load them.
    ///
    /// # Errors
    /// A module is unknown to this kernel.
    pub fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in names {
            let mut ask = Command::new("modprobe");
            ask.arg("-d").arg(&self.tree).args(["-S", &self.release, "--show-depends", name]);
            let text = process::run(&mut ask, DEPMOD_LIMIT).with_context(|| format!("kernel module {name}"))?;
            for file in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let file = PathBuf::from(file.trim());
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The one kernel release under `tree`.
fn release_in(tree: &Path) -> Result<String> {
    let modules = tree.join("lib/modules");
    let mut entries = std::fs::read_dir(&modules).with_context(|| format!("reading {}", modules.display()))?;
    let entry = entries.next().ok_or_else(|| anyhow!("no kernel modules in {}", modules.display()))??;
    entry.file_name().into_string().map_err(|name| anyhow!("kernel release {} is not text", name.display()))
}
