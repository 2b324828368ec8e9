//! How a lab host's instructions run: QEMU's emulation, or this machine's own KVM where that really works.
//!
//! Decided by trying, never by a CPU flag: a machine's KVM counts when a stock kernel boots under it and finds a working
//! /dev/kvm inside. The answer is remembered until the machine boots again.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use basalt_tests::process;
use serde::{Deserialize, Serialize};

use super::artifact::Cache;
use super::debian;

/// A stock kernel that is going to reach its init under KVM does so in about two seconds.
const TRIAL_LIMIT: Duration = Duration::from_secs(12);
/// What the host's init prints when KVM works inside.
const PROBE_SUCCESS: &str = "basalt-lab: probe: kvm works inside";

/// Who runs the instructions of a lab host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// QEMU's TCG, emulating an AMD machine with SVM and nested paging.
    Emulation,
    /// This machine's KVM, nested.
    Kvm,
}

impl Acceleration {
    /// QEMU's arguments for it; `cache_mib` bounds translated code.
    #[must_use]
    pub fn arguments(self, cache_mib: u32) -> Vec<String> {
        let text = match self {
            // Five-level paging would cost one more step in each emulated page walk.
            Self::Emulation => format!("-accel tcg,thread=multi,tb-size={cache_mib} -cpu max,+svm,-la57"),
            Self::Kvm => "-accel kvm -cpu host".to_owned(),
        };
        text.split(' ').map(str::to_owned).collect()
    }

    /// How many processors a host has.
    #[must_use]
    pub fn processors(self) -> u8 {
        match self {
            // QEMU 7.2 loses kernels that run SVM guests on two emulated processors (ADR 3), and two hosts of one each use this
            // machine's two as well: `up --check` took 181 s so, and 247 s with two.
            Self::Emulation => 1,
            Self::Kvm => 2,
        }
    }

    /// The best that this machine can do, with the reason.
    ///
    /// # Errors
    /// The answer cannot be remembered.
    pub fn decide(cache: &Cache, kernel: &Path, initrd: &Path) -> Result<(Self, String)> {
        if !Path::new("/dev/kvm").exists() {
            return Ok((Self::Emulation, "this machine has no /dev/kvm".to_owned()));
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let key = debian::sha256_hex(format!("{boot}{}{}", kernel.display(), initrd.display()).as_bytes());
        let name = format!("kvm-verdict-{}.json", &key[..16]);
        if let Some((verdict, reason)) = cache.remembered(&name).and_then(|text| serde_json::from_str(&text).ok()) {
            return Ok((verdict, reason));
        }
        let verdict = Self::attempt(kernel, initrd);
        cache.remember(&name, &serde_json::to_string(&verdict)?)?;
        Ok(verdict)
    }

    fn attempt(kernel: &Path, initrd: &Path) -> (Self, String) {
        let mut command = Command::new("timeout");
        command.arg("--kill-after=1").arg(TRIAL_LIMIT.as_secs().to_string());
        command.arg("qemu-system-x86_64").args(Self::Kvm.arguments(0));
        command.args(["-M", "q35", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        command.args(["-append", "console=ttyS0 panic=-1 loglevel=3 lab.probe=1"]);
        match process::output(&mut command, TRIAL_LIMIT + Duration::from_secs(5)) {
            Ok(output) if output.stdout.contains(PROBE_SUCCESS) => {
                (Self::Kvm, "this machine's KVM booted a stock kernel with KVM inside".to_owned())
            }
            Ok(output) if output.stdout.contains("basalt-lab: probe") => {
                (Self::Emulation, "this machine's KVM boots a stock kernel but gives it no KVM inside".to_owned())
            }
            Ok(output) => {
                let words = output.stderr.lines().last().map(|line| format!(" ({line})")).unwrap_or_default();
                let limit = TRIAL_LIMIT.as_secs();
                (Self::Emulation, format!("this machine's KVM did not boot a stock kernel in {limit} s{words}"))
            }
            Err(error) => (Self::Emulation, format!("this machine's KVM could not be tried: {error:#}")),
        }
    }
}
