//! The Debian packages that the project's commands need, and their installation.
//!
//! Owns the list ([`GROUPS`]) and the one place that runs `apt-get install`. Installing is safe to repeat: what is
//! installed is left alone and an up-to-date machine costs one `dpkg-query`. No service is started: a policy-rc.d
//! guard stands while apt works and whatever stood there before is put back afterwards, also after a failure.
//! Never upgrades a package that is installed already. A foreign build newer than this release's own that is in the
//! way of the set is brought back to the release's; what else cannot stand beside the set (`busybox` beside
//! `busybox-static`) goes only where apt finds no other way, and is named.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::process::{self, Output};
use hw_tests::lab::debian::{self, AptFailure};
use hw_tests::lab::progress::Progress;

/// Packages that one part of the project needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// Name used on the command line and in messages.
    pub(crate) name: &'static str,
    /// What stops working without it.
    pub(crate) purpose: &'static str,
    /// Debian package names.
    pub(crate) packages: &'static [&'static str],
}

/// Every package the project's commands use, by purpose. Adding a package is adding a word here.
pub(crate) const GROUPS: &[Group] = &[
    Group { name: "build", purpose: "compile the workspace", packages: &["gcc", "libc6-dev", "pkg-config", "lld"] },
    Group {
        name: "lab",
        purpose: "emulated hosts and their guests",
        packages: &[
            "qemu-system-x86",
            "qemu-utils",
            "busybox-static",
            "cpio",
            "kmod",
            "xz-utils",
            "zstd",
            "e2fsprogs",
            "iproute2",
            "util-linux",
            "debootstrap",
        ],
    },
    Group {
        name: "network",
        purpose: "real Open vSwitch and looking at packets",
        packages: &[
            "openvswitch-switch",
            "tcpdump",
            "ethtool",
            "iputils-ping",
            "iproute2",
            "nftables",
            "iperf3",
            "curl",
            "bind9-dnsutils",
            "dnsmasq-base",
        ],
    },
    Group { name: "bench", purpose: "the peers of cargo xtask bench", packages: &["ovn-central", "ovn-host"] },
    Group { name: "systemd", purpose: "the packaged units under a systemd of their own", packages: &["systemd"] },
    Group {
        name: "ceph",
        purpose: "a private Ceph cluster and librbd",
        packages: &["ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common", "librbd1", "librados2"],
    },
];

/// Groups that are installed only when they are named.
const ONLY_BY_NAME: &[&str] = &["bench"];

/// Longest time that one `apt-get install` may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
/// Longest time for a question to apt or dpkg.
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// The file that Debian's maintainer scripts ask before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Where an existing policy waits while our guard stands.
const POLICY_SAVED: &str = "/usr/sbin/policy-rc.d.before-basalt";
/// The guard: 101 means "do not start or stop services".
const GUARD: &str = "#!/bin/sh\n# basalt-guard: stands only while cargo xtask installs packages\nexit 101\n";
/// How the guard is told from a policy of the machine's owner.
const GUARD_MARK: &str = "basalt-guard";
/// Packages that some images carry in a foreign, newer build, which this release's other packages refuse.
const FOREIGN_BUILDS: &[&str] = &["qemu-utils"];

/// Installs what is missing of `names` (group names; empty means all groups).
///
/// # Errors
/// An unknown group, no Debian package tools, no right to install, or apt's own words when it cannot.
pub(crate) fn ensure(names: &[&str], progress: &Progress) -> Result<()> {
    let wanted = select(names)?;
    PolicyGuard::heal(Path::new(POLICY), Path::new(POLICY_SAVED))?;
    let step = progress.step("packages");
    let missing = missing(&wanted)?;
    if missing.is_empty() {
        step.done(&format!("{} of {} installed already", wanted.len(), wanted.len()));
        return Ok(());
    }
    let list = missing.iter().copied().collect::<Vec<_>>().join(" ");
    if !nix::unistd::Uid::effective().is_root() {
        bail!("packages are missing and only root can install them: run as root, or: apt-get install {list}");
    }
    step.note(&format!("installing {list}"));
    let guard = PolicyGuard::stand()?;
    let result = install(&missing, &step);
    guard.leave()?;
    result.with_context(|| format!("could not install {list}"))?;
    let still = self::missing(&wanted)?;
    if !still.is_empty() {
        bail!("apt-get ended well but these are still not installed: {still:?}");
    }
    step.done(&format!("{} installed, {} were there", missing.len(), wanted.len() - missing.len()));
    Ok(())
}

/// The set of packages of the named groups.
fn select(names: &[&str]) -> Result<BTreeSet<&'static str>> {
    if let Some(unknown) = names.iter().find(|name| !GROUPS.iter().any(|group| group.name == **name)) {
        let known = GROUPS.iter().map(|group| group.name).collect::<Vec<_>>().join(", ");
        bail!("no package group {unknown:?}; known: {known}");
    }
    let is_general = |group: &Group| names.is_empty() && !ONLY_BY_NAME.contains(&group.name);
    let chosen = GROUPS.iter().filter(|group| is_general(group) || names.contains(&group.name));
    Ok(chosen.flat_map(|group| group.packages.iter().copied()).collect())
}

/// Those of `wanted` that dpkg does not call installed.
fn missing(wanted: &BTreeSet<&'static str>) -> Result<BTreeSet<&'static str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f=${db:Status-Status} ${Package}\n"]).args(wanted);
    let output = process::output(&mut query, ASK_LIMIT).context("this needs Debian: dpkg-query could not be run")?;
    let installed = installed_names(&output.stdout);
    Ok(wanted.iter().copied().filter(|name| !installed.contains(*name)).collect())
}

/// Reads `dpkg-query` lines of the form `installed NAME`.
fn installed_names(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect()
}

/// Finds arguments that apt accepts, then installs for real; each way out of a failure is tried at most once.
fn install(missing: &BTreeSet<&'static str>, step: &hw_tests::lab::progress::Step<'_>) -> Result<()> {
    let mut refreshed = false;
    let mut arguments: Vec<String> = missing.iter().map(|name| (*name).to_owned()).collect();
    let mut downgraded = false;
    let mut keep_all = true;
    loop {
        let output = apt_install(&arguments, keep_all, true)?;
        let output = if output.status.success() { apt_install(&arguments, keep_all, false)? } else { output };
        if output.status.success() {
            return Ok(());
        }
        let failure = AptFailure::read(&output);
        let in_the_way = matches!(failure, AptFailure::UnmetDependencies | AptFailure::WouldRemove);
        let back = if in_the_way && !downgraded { foreign_builds(&debian::release_codename()?)? } else { Vec::new() };
        match failure {
            AptFailure::StaleLists if !refreshed => {
                step.note("package lists are missing or old: apt-get update");
                debian::refresh_lists()?;
                refreshed = true;
            }
            _ if !back.is_empty() => {
                step.note(&format!("apt refuses because of foreign builds: back to {}", back.join(" ")));
                arguments.push("--allow-downgrades".to_owned());
                arguments.extend(back);
                downgraded = true;
            }
            AptFailure::WouldRemove if keep_all => {
                step.note(&format!("in the way and removed by apt: {}", removals(&output.stdout)));
                keep_all = false;
            }
            _ => bail!("{}", debian::last_lines(&output, 12)),
        }
    }
}

/// One run of `apt-get install`, simulated or real; with `keep_all` it fails where another package had to go.
fn apt_install(arguments: &[String], keep_all: bool, simulate: bool) -> Result<Output> {
    let mut command = debian::apt_get();
    command.args(["install", "--yes", "--no-install-recommends"]);
    if keep_all {
        command.arg("--no-remove");
    }
    if simulate {
        command.arg("--simulate");
    }
    command.args(arguments);
    process::output(&mut command, INSTALL_LIMIT).context("running apt-get install")
}

/// The names under apt's headline of what it would remove.
fn removals(text: &str) -> String {
    let lines = text.lines().skip_while(|line| !line.contains("will be REMOVED")).skip(1);
    lines.take_while(|line| line.starts_with("  ")).map(str::trim).collect::<Vec<_>>().join(" ")
}

/// `NAME/RELEASE` for every installed package of [`FOREIGN_BUILDS`] whose version no archive of this release offers.
fn foreign_builds(release: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in FOREIGN_BUILDS {
        let installed = debian::installed_version(name)?;
        let offered = debian::offered_versions(name)?;
        if installed.is_some_and(|version| !offered.contains(&version)) {
            found.push(format!("{name}/{release}"));
        }
    }
    Ok(found)
}

/// Keeps services from starting while it stands; put away by [`PolicyGuard::leave`] or, after a failure, by drop.
#[derive(Debug)]
struct PolicyGuard {
    policy: PathBuf,
    saved: PathBuf,
    standing: bool,
}

impl PolicyGuard {
    /// Puts the guard up on this machine.
    fn stand() -> Result<Self> {
        Self::stand_at(Path::new(POLICY), Path::new(POLICY_SAVED))
    }

    /// Puts the guard at `policy`; what is there waits at `saved`. A guard left by a killed run is taken over.
    fn stand_at(policy: &Path, saved: &Path) -> Result<Self> {
        let ours = fs::read_to_string(policy).is_ok_and(|text| text.contains(GUARD_MARK));
        if policy.exists() && !ours {
            fs::rename(policy, saved).with_context(|| format!("moving {} aside", policy.display()))?;
        }
        fs::write(policy, GUARD).with_context(|| format!("writing {}", policy.display()))?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
        Ok(Self { policy: policy.to_owned(), saved: saved.to_owned(), standing: true })
    }

    /// Takes down a guard that a killed run left standing.
    fn heal(policy: &Path, saved: &Path) -> Result<()> {
        let ours = fs::read_to_string(policy).is_ok_and(|text| text.contains(GUARD_MARK));
        let mut left = Self { policy: policy.to_owned(), saved: saved.to_owned(), standing: ours };
        left.restore()
    }

    /// Takes the guard down and puts back what stood there before.
    fn leave(mut self) -> Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.standing) {
            return Ok(());
        }
        if self.saved.exists() { fs::rename(&self.saved, &self.policy) } else { fs::remove_file(&self.policy) }
            .with_context(|| format!("putting back {}", self.policy.display()))
    }
}

impl Drop for PolicyGuard {
    fn drop(&mut self) {
        // On the way out of a failure there is nobody left to tell.
        self.restore().ok();
    }
}

#[cfg(test)]
mod tests {
    //! Shows that the guard always gives back what it found, and that dpkg's words are read correctly.
    use super::*;

    #[test]
    fn guard_puts_back_what_it_found() {
        let home = tempfile::tempdir().unwrap();
        let (policy, saved) = (home.path().join("policy-rc.d"), home.path().join("saved"));
        fs::write(&policy, "owner's").unwrap();
        PolicyGuard::stand_at(&policy, &saved).unwrap().leave().unwrap();
        assert_eq!(fs::read_to_string(&policy).unwrap(), "owner's");
        assert!(!saved.exists());
    }

    #[test]
    fn guard_of_a_killed_run_is_taken_over() {
        let home = tempfile::tempdir().unwrap();
        let (policy, saved) = (home.path().join("policy-rc.d"), home.path().join("saved"));
        fs::write(&policy, "owner's").unwrap();
        std::mem::forget(PolicyGuard::stand_at(&policy, &saved).unwrap());
        drop(PolicyGuard::stand_at(&policy, &saved).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "owner's");
        PolicyGuard::heal(&policy, &saved).unwrap();
        assert_eq!(fs::read_to_string(&policy).unwrap(), "owner's");
        std::mem::forget(PolicyGuard::stand_at(&policy, &saved).unwrap());
        PolicyGuard::heal(&policy, &saved).unwrap();
        assert_eq!(fs::read_to_string(&policy).unwrap(), "owner's");
    }

    #[test]
    fn guard_leaves_no_file_where_there_was_none() {
        let home = tempfile::tempdir().unwrap();
        let (policy, saved) = (home.path().join("policy-rc.d"), home.path().join("saved"));
        drop(PolicyGuard::stand_at(&policy, &saved).unwrap());
        assert!(!policy.exists());
    }

    #[test]
    fn only_installed_packages_count() {
        let names = installed_names("installed cpio\nconfig-files kmod\nnot-installed xz-utils\n");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["cpio"]);
    }

    #[test]
    fn what_apt_would_remove_is_named() {
        let text = "Reading state information...\nThe following packages will be REMOVED:\n  busybox\n  klibc-utils\n\
                    The following NEW packages will be installed:\n  busybox-static\n";
        assert_eq!(removals(text), "busybox klibc-utils");
        assert_eq!(removals("nothing goes\n"), "");
    }

    #[test]
    fn groups_are_chosen_by_name_and_unknown_names_are_refused() {
        assert!(select(&["ceph"]).unwrap().contains("ceph-mon"));
        assert!(!select(&["ceph"]).unwrap().contains("cpio"));
        assert!(select(&[]).unwrap().contains("cpio"));
        assert!(!select(&[]).unwrap().contains("ovn-central") && select(&["bench"]).unwrap().contains("ovn-central"));
        assert!(select(&["no-such"]).is_err());
    }
}
