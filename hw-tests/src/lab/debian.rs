//! Debian packages as a source of kernels, modules and guest files: ask apt, download, unpack.
//!
//! Owns every call of apt and dpkg that does not install. Package files are kept by name and SHA-256 in the artifact
//! cache and never downloaded twice; what apt resolved is remembered until its lists change, since asking costs a second.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use basalt_tests::process::{self, Output};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const ASK_LIMIT: Duration = Duration::from_secs(60);
const UPDATE_LIMIT: Duration = Duration::from_secs(180);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);
const UNPACK_LIMIT: Duration = Duration::from_secs(120);
const LISTS: &str = "/var/lib/apt/lists";

/// Why apt refused, as far as there is something to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AptFailure {
    /// A package or a file is not known: the lists are missing or older than the archive.
    StaleLists,
    /// The packages do not fit together.
    UnmetDependencies,
    /// The packages fit only if others go, which apt was told not to do.
    WouldRemove,
    /// Anything else.
    Other,
}

impl AptFailure {
    /// Reads apt's own words.
    #[must_use]
    pub fn read(output: &Output) -> Self {
        let text = format!("{}{}", output.stdout, output.stderr);
        Self::from_text(&text)
    }

    fn from_text(text: &str) -> Self {
        const STALE: &[&str] = &[
            "Unable to locate package",
            "has no installation candidate",
            "404  Not Found",
            "Couldn't find any package",
        ];
        const UNMET: &[&str] = &["unmet dependencies", "broken packages"];
        if STALE.iter().any(|words| text.contains(words)) {
            Self::StaleLists
        } else if UNMET.iter().any(|words| text.contains(words)) {
            Self::UnmetDependencies
        } else if text.contains("Packages need to be removed but remove is disabled") {
            Self::WouldRemove
        } else {
            Self::Other
        }
    }
}

/// An `apt-get` that asks no questions and waits for another apt to finish.
#[must_use]
pub fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").args([
        "-q",
        "-o",
        "Dpkg::Use-Pty=0",
        "-o",
        "DPkg::Lock::Timeout=120",
        "-o",
        "Acquire::Retries=3",
    ]);
    command
}

/// Runs `apt-get update`.
///
/// # Errors
/// apt could not be run or failed; its last lines are in the message.
pub fn refresh_lists() -> Result<()> {
    let output = process::output(apt_get().arg("update"), UPDATE_LIMIT)?;
    if !output.status.success() {
        bail!("apt-get update failed: {}", last_lines(&output, 6));
    }
    Ok(())
}

/// The last `count` lines that apt printed, errors last.
#[must_use]
pub fn last_lines(output: &Output, count: usize) -> String {
    let text = format!("{}{}", output.stdout, output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The code name of this machine's Debian release, for example `bookworm`.
///
/// # Errors
/// `/etc/os-release` does not say.
pub fn release_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned()).ok_or_else(|| anyhow!("/etc/os-release names no release"))
}

/// The installed version of `package`.
///
/// # Errors
/// dpkg could not be asked.
pub fn installed_version(package: &str) -> Result<Option<String>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f=${db:Status-Status} ${Version}", package]);
    let output = process::output(&mut query, ASK_LIMIT)?;
    Ok(output.stdout.strip_prefix("installed ").map(str::to_owned))
}

/// Every version of `package` that an archive offers.
///
/// # Errors
/// apt could not be asked.
pub fn offered_versions(package: &str) -> Result<Vec<String>> {
    let text = process::run(Command::new("apt-cache").args(["madison", package]), ASK_LIMIT)?;
    Ok(text.lines().filter_map(|line| line.split('|').nth(1)).map(|version| version.trim().to_owned()).collect())
}

/// One package as the archive describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the package file, hexadecimal.
    pub sha256: String,
}

/// The packages that the lab has asked for, remembered until apt's lists change.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Resolved {
    lists_stamp: u64,
    packages: BTreeMap<String, Package>,
}

/// Downloaded package files under one directory.
#[derive(Debug, Clone)]
pub struct Packages {
    directory: PathBuf,
}

impl Packages {
    /// Uses `directory`, which is made when it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn at(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// What the archive offers for `name`; for a meta package of a kernel, the real one behind it.
    ///
    /// # Errors
    /// No archive knows the package, also after the lists were refreshed once.
    pub fn resolve(&self, name: &str) -> Result<Package> {
        let file = self.directory.join("resolved.json");
        let mut resolved: Resolved =
            fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let stamp = lists_stamp();
        if resolved.lists_stamp != stamp {
            resolved = Resolved { lists_stamp: stamp, packages: BTreeMap::new() };
        }
        if let Some(package) = resolved.packages.get(name) {
            return Ok(package.clone());
        }
        let package = match ask(name) {
            Ok(package) => package,
            Err(_) => {
                refresh_lists()?;
                resolved.lists_stamp = lists_stamp();
                ask(name)?
            }
        };
        resolved.packages.insert(name.to_owned(), package.clone());
        super::artifact::write_atomically(&file, &serde_json::to_vec_pretty(&resolved)?)?;
        Ok(package)
    }

    /// The package file of `package`, downloaded when it is not there and always checked against its SHA-256.
    ///
    /// # Errors
    /// The download failed or its content is not what the archive promised.
    pub fn fetch(&self, package: &Package) -> Result<PathBuf> {
        let file = self.directory.join(format!("{}-{}.deb", package.name, &package.sha256[..16]));
        if file.exists() {
            return Ok(file);
        }
        let work = tempfile::tempdir_in(&self.directory)?;
        let mut download = apt_get();
        download.arg("download").arg(format!("{}={}", package.name, package.version));
        // Root's apt would otherwise complain that its unprivileged user cannot write here.
        download.args(["-o", "APT::Sandbox::User=root"]).current_dir(work.path());
        process::run(&mut download, DOWNLOAD_LIMIT).with_context(|| format!("downloading {}", package.name))?;
        let got = fs::read_dir(work.path())?.next().ok_or_else(|| anyhow!("apt-get download left no file"))??.path();
        let sum = sha256_hex(&fs::read(&got)?);
        if sum != package.sha256 {
            bail!("{} has SHA-256 {sum}, the archive promised {}", got.display(), package.sha256);
        }
        fs::rename(&got, &file)?;
        Ok(file)
    }
}

/// Unpacks the files of a package into `target`.
///
/// # Errors
/// dpkg-deb failed.
pub fn unpack(deb: &Path, target: &Path) -> Result<()> {
    process::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(target), UNPACK_LIMIT).map(drop)
}

/// SHA-256 of `bytes` in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks apt about `name`, following a kernel meta package to the image it stands for.
fn ask(name: &str) -> Result<Package> {
    let text = process::run(Command::new("apt-cache").args(["show", "--no-all-versions", name]), ASK_LIMIT)?;
    let (package, depends) = read_show(&text).ok_or_else(|| anyhow!("apt-cache show {name} told no SHA-256"))?;
    let real = depends.split(',').map(|word| word.split_whitespace().next().unwrap_or_default());
    match real.into_iter().find(|word| word.starts_with("linux-image-")) {
        Some(image) if name.starts_with("linux-image-") => ask(image),
        _ => Ok(package),
    }
}

/// Reads the first stanza of `apt-cache show`: the package and its dependencies.
fn read_show(text: &str) -> Option<(Package, String)> {
    let stanza: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    let field = |key: &str| stanza.iter().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned());
    let package = Package { name: field("Package:")?, version: field("Version:")?, sha256: field("SHA256:")? };
    (package.sha256.len() == 64).then(|| (package, field("Depends:").unwrap_or_default()))
}

/// Changes whenever apt's lists do: the newest modification time among them, in seconds.
fn lists_stamp() -> u64 {
    let entries = fs::read_dir(LISTS).into_iter().flatten().flatten();
    let times = entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    times.map(|time| time.as_secs()).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    //! Shows that apt's and dpkg's words are read correctly.
    use super::*;

    #[test]
    fn first_stanza_is_read() {
        let sum = "a".repeat(64);
        let text = format!("Package: x\nVersion: 1:2-3\nDepends: b (= 1), c\nSHA256: {sum}\n\nPackage: y\n");
        let (package, depends) = read_show(&text).unwrap();
        assert_eq!(package, Package { name: "x".into(), version: "1:2-3".into(), sha256: sum });
        assert_eq!(depends, "b (= 1), c");
        assert!(read_show("Package: x\n").is_none());
    }

    #[test]
    fn apt_failures_are_told_apart() {
        assert_eq!(AptFailure::from_text("E: Unable to locate package nope"), AptFailure::StaleLists);
        let unmet = "The following packages have unmet dependencies:\n qemu-block-extra : Depends: qemu-utils";
        assert_eq!(AptFailure::from_text(unmet), AptFailure::UnmetDependencies);
        let gone = "The following packages will be REMOVED:\n  qemu-utils\nE: Packages need to be removed but remove is disabled.";
        assert_eq!(AptFailure::from_text(gone), AptFailure::WouldRemove);
        assert_eq!(AptFailure::from_text("E: disk full"), AptFailure::Other);
    }

    #[test]
    fn sha256_of_nothing_is_the_known_one() {
        assert!(sha256_hex(b"").starts_with("e3b0c44298fc1c14"));
    }
}
