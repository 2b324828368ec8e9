//! Checks what a host needs, each with what was found and the way out.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane::switch::handlers;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::config::{Datapath, SpecSource};
use crate::driver::chain;
use crate::identity;

/// How long before its end a certificate is worth a word.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// The least free space for state and cache, MiB.
const SPACE_MIN_MIB: u64 = 1024;
/// The clock status bit that says that the clock is not synchronised (linux/timex.h, `STA_UNSYNC`).
const CLOCK_UNSYNCHRONISED: i32 = 0x0040;

/// What was found.
#[derive(Debug, Serialize, ToSchema)]
pub struct Diagnosis {
    /// Whether every check is fine.
    pub ok: bool,
    /// The checks in order.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Serialize, ToSchema)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// Whether it is fine.
    pub ok: bool,
    /// What was found.
    pub evidence: String,
    /// What to do; empty when it is fine.
    pub remedy: String,
}

impl Check {
    fn fine(name: &'static str, evidence: impl Into<String>) -> Self {
        Self { name, ok: true, evidence: evidence.into(), remedy: String::new() }
    }

    fn bad(name: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, ok: false, evidence: evidence.into(), remedy: remedy.into() }
    }
}

/// Checks this host.
pub async fn examine(api: &Api) -> Diagnosis {
    let mut checks = vec![kvm(), vmm(&api.config.machines.vmm), tun(), switch(api), flows(api), handler_threads(api)];
    checks.push(ceph(api).await);
    checks.push(underlay(api));
    checks.push(clock());
    checks.push(certificate(api));
    checks.push(link(api));
    checks.push(space("space for state", &api.config.paths.state));
    checks.push(space("space for images", &api.config.paths.cache));
    Diagnosis { ok: checks.iter().all(|check| check.ok), checks }
}

fn kvm() -> Check {
    const NAME: &str = "kvm";
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Check::fine(NAME, "/dev/kvm opens"),
        Err(error) => Check::bad(
            NAME,
            format!("open /dev/kvm: {error}"),
            "turn virtualisation on in the firmware, `modprobe kvm_intel` or `kvm_amd`, run the agent as root",
        ),
    }
}

fn vmm(path: &Path) -> Check {
    const NAME: &str = "vmm program";
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Check::fine(NAME, path.display().to_string()),
        Ok(_) => Check::bad(NAME, format!("{} is no file", path.display()), "set machines.vmm"),
        Err(error) => Check::bad(NAME, format!("{}: {error}", path.display()), "install it, or set machines.vmm"),
    }
}

fn tun() -> Check {
    const NAME: &str = "tap devices";
    match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::fine(NAME, "/dev/net/tun opens"),
        Err(error) => Check::bad(NAME, format!("open /dev/net/tun: {error}"), "`modprobe tun`, run the agent as root"),
    }
}

fn switch(api: &Api) -> Check {
    const NAME: &str = "open vswitch";
    let bridge = api.network.switch().bridge();
    if !bridge.is_connected() {
        let evidence = format!("its database at {} does not answer", api.config.switch.database.display());
        return Check::bad(NAME, evidence, "`systemctl start openvswitch-switch`, or set switch.database");
    }
    match bridge.version() {
        Ok(Some(version)) => Check::fine(NAME, format!("version {version}, bridge {}", api.config.switch.bridge)),
        // Only ovs-ctl writes the version: a daemon started without it works as well.
        Ok(None) if api.network.switch().status().borrow().connected => {
            Check::fine(NAME, format!("it answers, bridge {}; its version was not recorded", api.config.switch.bridge))
        }
        Ok(None) => Check::bad(NAME, "the database answers, ovs-vswitchd does not", "start ovs-vswitchd"),
        Err(error) => Check::bad(NAME, chain(&error), "`ovs-vsctl init`"),
    }
}

fn flows(api: &Api) -> Check {
    const NAME: &str = "flows";
    let status = api.network.switch().status().borrow().clone();
    let evidence = format!("{} installed, {} repairs, {} foreign", status.flows, status.repairs, status.foreign_count);
    match status.problem {
        _ if !status.connected => {
            let problem = status.problem.unwrap_or_else(|| "no connection yet".to_owned());
            Check::bad(NAME, problem, "is ovs-vswitchd running, and does the bridge exist?")
        }
        Some(problem) => Check::bad(NAME, problem, "look into ovs-vswitchd's log"),
        None => Check::fine(NAME, evidence),
    }
}

fn handler_threads(api: &Api) -> Check {
    const NAME: &str = "handler threads";
    if api.config.switch.datapath == Datapath::Netdev {
        return Check::fine(NAME, "the userspace datapath needs none");
    }
    match handlers::count(&api.config.switch.run_dir.join("ovs-vswitchd.pid")) {
        Ok(0) => Check::bad(
            NAME,
            "ovs-vswitchd has 0 handler threads: it was started within 10 s of the host's boot and forwards no new connection",
            "`ovs-vsctl set open_vswitch . other_config:n-handler-threads=1`, or restart ovs-vswitchd now",
        ),
        Ok(count) => Check::fine(NAME, format!("ovs-vswitchd has {count}")),
        Err(error) => Check::bad(NAME, chain(&error), "start ovs-vswitchd, or set switch.run_dir"),
    }
}

async fn ceph(api: &Api) -> Check {
    const NAME: &str = "ceph";
    let Some(ceph) = &api.config.ceph else {
        return Check::fine(NAME, "not configured: only local volumes");
    };
    match api.volumes.probe().await {
        Ok(()) => Check::fine(NAME, format!("the cluster of {} answers, pool {}", ceph.conf.display(), ceph.pool)),
        Err(failure) => {
            let problem = failure.problem();
            Check::bad(NAME, problem.message, problem.remedy)
        }
    }
}

fn underlay(api: &Api) -> Check {
    const NAME: &str = "underlay mtu";
    let underlay = &api.config.underlay;
    let Some(interface) = &underlay.interface else {
        return match underlay.ip {
            None => Check::fine(NAME, "no underlay: a single host"),
            Some(ip) => {
                Check::fine(NAME, format!("tunnels from {ip}; set underlay.interface to have its MTU looked at"))
            }
        };
    };
    let path = format!("/sys/class/net/{interface}/mtu");
    let mtu = std::fs::read_to_string(&path).map(|text| text.trim().parse::<u32>().unwrap_or(0));
    match mtu {
        Ok(mtu) if mtu >= underlay.mtu_min => Check::fine(NAME, format!("{interface} has {mtu}")),
        Ok(mtu) => Check::bad(
            NAME,
            format!("{interface} has {mtu}, want {} or more: large packets between hosts are lost", underlay.mtu_min),
            format!("`ip link set {interface} mtu {}` here and on the switches between", underlay.mtu_min),
        ),
        Err(error) => Check::bad(NAME, format!("{path}: {error}"), "set underlay.interface"),
    }
}

fn clock() -> Check {
    const NAME: &str = "clock";
    // The file is there while systemd-timesyncd has the time (systemd-timesyncd.service(8)).
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Check::fine(NAME, "systemd-timesyncd has the time");
    }
    match clock_status() {
        Some(status) if status & CLOCK_UNSYNCHRONISED == 0 => {
            Check::fine(NAME, "the kernel says that it is synchronised")
        }
        Some(_) => Check::bad(
            NAME,
            "the kernel says that it is not synchronised: certificates and Ceph need the time",
            "install chrony or systemd-timesyncd; on a machine with a trusted clock of its host this may be ignored",
        ),
        None => Check::bad(NAME, "adjtimex does not answer", "is the agent allowed the call?"),
    }
}

/// The status bits of the kernel's clock (adjtimex(2)).
fn clock_status() -> Option<i32> {
    crate::clock::status_bits()
}

fn certificate(api: &Api) -> Check {
    const NAME: &str = "certificate";
    if api.config.spec.source != SpecSource::Scheduler {
        return Check::fine(NAME, "none needed: specs do not come from a scheduler");
    }
    let remedy = "`node-agent join` with a new token";
    let certificate = match identity::certificate(&api.config.paths.state) {
        Ok(certificate) => certificate,
        Err(error) => return Check::bad(NAME, chain(&error), remedy),
    };
    let Some(end) = not_after(&certificate) else {
        return Check::bad(NAME, "its end cannot be read", remedy);
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = end.saturating_sub(now) / 86_400;
    if end <= now {
        Check::bad(NAME, "it has ended: the scheduler refuses it", remedy)
    } else if end - now < CERTIFICATE_WARNING.as_secs() {
        Check::bad(NAME, format!("it ends in {days} days"), remedy)
    } else {
        Check::fine(NAME, format!("good for {days} days"))
    }
}

/// When a certificate ends, seconds since 1970.
fn not_after(certificate: &rustls::pki_types::CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate.as_ref()).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}

fn link(api: &Api) -> Check {
    const NAME: &str = "scheduler link";
    match &*api.link.borrow() {
        None if api.config.spec.source == SpecSource::Scheduler => {
            Check::bad(NAME, "no exchange yet", "wait a few seconds, then look at the management network")
        }
        None => Check::fine(NAME, "none needed: specs do not come from a scheduler"),
        Some(link) => match &link.problem {
            None => Check::fine(NAME, format!("{} answers", link.scheduler)),
            Some(problem) => Check::bad(NAME, problem.message.clone(), problem.remedy.clone()),
        },
    }
}

fn space(name: &'static str, path: &Path) -> Check {
    match nix::sys::statvfs::statvfs(path) {
        Ok(fs) => {
            let free = fs.blocks_available() * fs.fragment_size() / (1 << 20);
            let evidence = format!("{free} MiB free at {}", path.display());
            if free >= SPACE_MIN_MIB {
                Check::fine(name, evidence)
            } else {
                Check::bad(name, evidence, "free space, or move it to a larger file system")
            }
        }
        Err(error) => Check::bad(name, format!("{}: {error}", path.display()), "make the directory"),
    }
}
