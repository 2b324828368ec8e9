//! The start of a lab's hosts: all at once, each once more where the emulator lost it on the way.
//!
//! ```text
//!   QEMU starts ── kernel, first process ── exec server answers ──▶ a host
//!        ▲               │ silent for HANG_LIMIT, QEMU gone, kernel dead
//!        └── once more ──┘ at most ATTEMPTS_MAX times, then an error with the end of the console
//! ```
//! QEMU's emulation loses a kernel now and then (ADR 3), which says nothing about the product.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use basalt_tests::process;

use super::artifact::lab_directory;
use super::emulator::{EMULATOR_LOG, Machine};
use super::kernel::Kernel;
use super::network::UNDERLAY_MTU;
use super::progress::Progress;
use super::{Config, Host, Lab, debian, exec, network, timestamp};

/// Longest time from starting the machines to the last one's exec server answering.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// A host takes 8 s to 20 s on an idle machine of two cores; one that takes this long hangs.
const HANG_LIMIT: Duration = Duration::from_secs(100);
/// How often a host is started before its failure counts.
const ATTEMPTS_MAX: u32 = 3;
/// The host's clock may be off by this much.
const CLOCK_SECONDS_MAX: u64 = 5;

/// A host on its way up.
struct Start {
    place: usize,
    machine: Machine,
    since: Instant,
    attempts: u32,
}

/// What a look at a host shows.
enum Look {
    Waiting,
    /// What the host says about itself.
    Ready(String),
    /// Why it never will be one.
    Lost(String),
}

impl Lab {
    /// Starts all machines at once and waits until each is a host.
    pub(super) fn boot(&mut self, config: &Config, kernel: &Kernel, initrd: &Path, progress: &Progress) -> Result<()> {
        let step = progress.step("hosts");
        let start = Instant::now();
        let target = lab_directory().parent().unwrap_or(Path::new("/")).canonicalize()?;
        let mut waiting = Vec::new();
        for (place, host) in self.hosts.iter().enumerate() {
            let parameters = timestamp::kernel_parameters(self.state.acceleration);
            let machine = Machine {
                index: host.index(),
                name: format!("{}-{}", self.network.name(), host.name()),
                acceleration: self.state.acceleration,
                cpus: self.state.acceleration.processors(),
                memory_mib: config.memory_mib,
                kernel: kernel.image(),
                initrd: initrd.to_owned(),
                command_line: format!("{} {parameters}", command_line(host, kernel, &target, &self.state.hand)),
                target: target.clone(),
                directory: self.directory.join(host.name()),
            };
            self.machines.push(machine.start(&self.network)?);
            waiting.push(Start { place, machine, since: Instant::now(), attempts: 1 });
        }
        while !waiting.is_empty() {
            let left = BOOT_LIMIT.saturating_sub(start.elapsed());
            let seen = process::wait_for("a lab host", left, || self.look_at_all(&waiting));
            match seen.with_context(|| self.show_failure(&waiting))? {
                (index, Look::Ready(evidence)) => {
                    let host = &self.hosts[waiting.remove(index).place];
                    step.note(&format!(
                        "{} ready after {:.1} s: {evidence}",
                        host.name(),
                        start.elapsed().as_secs_f64()
                    ));
                }
                (index, Look::Lost(reason)) if waiting[index].attempts < ATTEMPTS_MAX => {
                    step.note(&format!("{} is started once more: {reason}", self.hosts[waiting[index].place].name()));
                    self.start_again(&mut waiting[index])?;
                }
                (_, Look::Lost(reason)) => return Err(anyhow!(reason)).with_context(|| self.show_failure(&waiting)),
                (_, Look::Waiting) => {}
            }
        }
        step.done(&format!("{} up", self.hosts.len()));
        Ok(())
    }

    /// Starts a machine anew in place of one that is of no use any more; the console's log is kept beside the new one.
    fn start_again(&mut self, start: &mut Start) -> Result<()> {
        let machine = &mut self.machines[start.place];
        // Gone already is as good.
        machine.kill().ok();
        machine.wait().context("wait for QEMU's end")?;
        start.machine.keep_console()?;
        *machine = start.machine.start(&self.network)?;
        (start.since, start.attempts) = (Instant::now(), start.attempts + 1);
        Ok(())
    }

    /// The first host, by its place among those waited for, that came up or that never will.
    fn look_at_all(&mut self, waiting: &[Start]) -> Result<Option<(usize, Look)>> {
        for (index, start) in waiting.iter().enumerate() {
            match self.look_at(start)? {
                Look::Waiting => {}
                seen => return Ok(Some((index, seen))),
            }
        }
        Ok(None)
    }

    /// What one host shows; an error when it came up wrong, which another start would not mend.
    fn look_at(&mut self, start: &Start) -> Result<Look> {
        let host = self.hosts[start.place].clone();
        if let Some(status) = self.machines[start.place].try_wait()? {
            return Ok(Look::Lost(format!("QEMU ended: {status}")));
        }
        if host.console_tail().contains("basalt-lab: FAILED") {
            bail!("{} could not start", host.name());
        }
        if let Some(words) = host.last_words() {
            return Ok(Look::Lost(words));
        }
        let script =
            "date +%s; uname -r; test -c /dev/kvm && test -d /sys/module/openvswitch; cat /sys/module/kvm_*/refcnt";
        let Ok(finished) = host.try_sh(script) else {
            let hangs = start.since.elapsed() > HANG_LIMIT;
            return Ok(if hangs { Look::Lost(format!("no answer in {HANG_LIMIT:?}")) } else { Look::Waiting });
        };
        if !finished.success() {
            bail!("{} has no /dev/kvm or no openvswitch: {}", host.name(), finished.error_text());
        }
        let text = finished.text();
        let mut lines = text.lines();
        let clock: u64 = lines.next().unwrap_or_default().parse().context("the host's clock")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        if clock.abs_diff(now) > CLOCK_SECONDS_MAX {
            bail!("the clock of {} is off by {} s", host.name(), clock.abs_diff(now));
        }
        Ok(Look::Ready(format!("{}, kvm, openvswitch, clock right", lines.next().unwrap_or_default())))
    }

    fn show_failure(&self, waiting: &[Start]) -> String {
        let mut text = String::from("hosts that did not come up:");
        for host in waiting.iter().map(|start| &self.hosts[start.place]) {
            let log = fs::read_to_string(self.directory.join(host.name()).join(EMULATOR_LOG)).unwrap_or_default();
            text.push_str(&format!("\n--- {}: QEMU said: {}\n{}", host.name(), log.trim_end(), host.console_tail()));
        }
        text
    }
}

fn command_line(host: &Host, kernel: &Kernel, target: &Path, hand: &Path) -> String {
    let machine_id = &debian::sha256_hex(format!("{}{:?}", host.name(), SystemTime::now()).as_bytes())[..32];
    [
        "console=ttyS0 panic=-1 loglevel=4 mitigations=off nowatchdog audit=0 apparmor=0 cgroup_no_v1=all".to_owned(),
        "random.trust_cpu=on rcupdate.rcu_expedited=1 ipv6.disable_ipv6=0".to_owned(),
        format!("lab.name={} lab.machine={machine_id}", host.name()),
        format!("lab.management={}/24 lab.underlay={}/24 lab.mtu={UNDERLAY_MTU}", host.management(), host.underlay()),
        format!("lab.outer={} lab.port={} lab.hand={}", network::OUTER, exec::PORT, hand.display()),
        format!("lab.modules={} lab.target={}", kernel.modules().display(), target.display()),
    ]
    .join(" ")
}
