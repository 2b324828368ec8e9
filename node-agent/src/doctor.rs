//! Checks what a host needs, each with what was found and the way out.

use std::path::Path;
use std::time::Duration;

use dataplane::switch::handlers;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use utoipa::ToSchema;
use x509_parser::extensions::ParsedExtension;

use crate::api::Api;
use crate::config::{Datapath, Physical, SpecSource};
use crate::driver::chain;
use crate::{identity, renewal};

/// How long before its end a certificate is worth a word.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// The way out of a certificate that is of no use.
const JOIN_AGAIN: &str = "`node-agent join` with a new token";
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
    checks.push(physical_networks(api));
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

fn physical_networks(api: &Api) -> Check {
    const NAME: &str = "physical networks";
    let wanted = &api.config.physical;
    if wanted.is_empty() {
        return Check::fine(NAME, "none configured");
    }
    let ports = match api.network.switch().bridge().ports() {
        Ok(ports) => ports,
        Err(error) => return Check::bad(NAME, chain(&error), "is ovs-vswitchd running, and does the bridge exist?"),
    };
    let fault = |it: &Physical| match ports.get(&it.interface) {
        Some(state) if state.number.is_some() => None,
        Some(state) => {
            Some(format!("{} of {}: {}", it.interface, it.name, state.error.as_deref().unwrap_or("not used yet")))
        }
        None => Some(format!("{} of {} is no port of bridge {}", it.interface, it.name, api.config.switch.bridge)),
    };
    let faults: Vec<String> = wanted.iter().filter_map(fault).collect();
    if faults.is_empty() {
        let is_shaped = |it: &Physical| ports.get(&it.interface).is_some_and(|state| state.is_shaped);
        let datapath = api.config.switch.datapath;
        let name = |it: &Physical| format!("{} by {}{}", it.name, it.interface, minimums(it, datapath, is_shaped(it)));
        let names: Vec<_> = wanted.iter().map(name).collect();
        return Check::fine(NAME, wired(names.join(", "), api.config.switch.datapath));
    }
    let remedy = "is the interface there (`ip link show`), and on no other bridge? set physical.interface";
    Check::bad(NAME, faults.join("; "), remedy)
}

/// What is said of minimum bandwidth on a physical network, where the configuration wants it to be kept.
fn minimums(physical: &Physical, datapath: Datapath, is_shaped: bool) -> String {
    match (physical.bandwidth_kbps, datapath) {
        (None, _) => String::new(),
        (Some(_), Datapath::Netdev) => " (no minimum bandwidth, for the switch is in user space)".to_owned(),
        (Some(_), Datapath::System) if is_shaped => {
            " (no minimum bandwidth, for somebody else has shaped it)".to_owned()
        }
        (Some(kbps), Datapath::System) => format!(" (minimums of {kbps} kbit/s in all)"),
    }
}

/// What is said of a host that is wired to physical networks: whether it may lead routers out to them.
fn wired(names: String, datapath: Datapath) -> String {
    match datapath {
        Datapath::System => names,
        Datapath::Netdev => format!("{names}; no gateway of routers (SNAT), for its switch is in user space"),
    }
}

fn clock() -> Check {
    // The file is there while systemd-timesyncd has the time (systemd-timesyncd.service(8)).
    judge_clock(Path::new("/run/systemd/timesync/synchronized").exists(), crate::clock::status_bits())
}

/// What a clock is worth by what systemd-timesyncd and the kernel (adjtimex(2)) say of it.
fn judge_clock(is_timesyncd_sure: bool, status: Option<i32>) -> Check {
    const NAME: &str = "clock";
    if is_timesyncd_sure {
        return Check::fine(NAME, "systemd-timesyncd has the time");
    }
    match status {
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

fn certificate(api: &Api) -> Check {
    const NAME: &str = "certificate";
    if api.config.spec.source != SpecSource::Scheduler {
        return Check::fine(NAME, "none needed: specs do not come from a scheduler");
    }
    let state = &api.config.paths.state;
    match identity::certificate(state).and_then(|certificate| Ok((certificate, identity::authority(state)?))) {
        Ok((certificate, authority)) => judge_certificate(&certificate, &authority, renewal::now()),
        Err(error) => Check::bad(NAME, chain(&error), JOIN_AGAIN),
    }
}

/// What a certificate is worth: whose it is, and for how long it is good.
fn judge_certificate(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>, now: u64) -> Check {
    const NAME: &str = "certificate";
    if !is_issued_by(certificate, authority) {
        let evidence = "it was not issued by the CA that this host joined: the scheduler refuses it";
        return Check::bad(NAME, evidence, JOIN_AGAIN);
    }
    let Some(validity) = renewal::Validity::of(certificate) else {
        return Check::bad(NAME, "its end cannot be read", JOIN_AGAIN);
    };
    let left = validity.end.saturating_sub(now);
    let good_for =
        if left >= 2 * 86_400 { format!("{} days", left / 86_400) } else { format!("{} minutes", left / 60) };
    // Renewed when a third is left: half of that later, something is wrong.
    let lifetime = validity.end.saturating_sub(validity.begin);
    if now < validity.begin {
        Check::bad(NAME, "it is not good yet: this host's clock is behind the scheduler's", "set the clock")
    } else if left == 0 {
        Check::bad(NAME, "it has ended: the scheduler refuses it", JOIN_AGAIN)
    } else if left < CERTIFICATE_WARNING.as_secs().min(lifetime / 6) {
        let remedy = "the agent should have renewed it: look at the scheduler link and the agent's log, or join again";
        Check::bad(NAME, format!("it ends in {good_for}"), remedy)
    } else {
        Check::fine(NAME, format!("good for {good_for}"))
    }
}

/// Whether the key that signed a certificate is that of a CA, by the names and identifiers of both (RFC 5280 §4.2.1.1).
fn is_issued_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let (Ok((_, leaf)), Ok((_, ca))) = (
        x509_parser::parse_x509_certificate(certificate.as_ref()),
        x509_parser::parse_x509_certificate(authority.as_ref()),
    ) else {
        return false;
    };
    let signer = leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(identifier) => {
            identifier.key_identifier.as_ref().map(|id| id.0.to_vec())
        }
        _ => None,
    });
    let own = ca.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    leaf.issuer().as_raw() == ca.subject().as_raw() && signer.is_some() && signer == own
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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    #[test]
    fn a_wired_host_is_told_when_it_may_be_no_gateway() {
        let said = |datapath| wired("dc by eth1".to_owned(), datapath);
        assert_eq!(said(Datapath::System), "dc by eth1");
        assert!(said(Datapath::Netdev).starts_with("dc by eth1; no gateway of routers"));
    }

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate: CertificateDer<'static>,
    }

    /// An authority; all of them bear one name, as those of two clouds do.
    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    impl Authority {
        fn issue(&self, begin: u64, end: u64) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            let at = |second| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
            (params.not_before, params.not_after) = (at(begin), at(end));
            params.use_authority_key_identifier_extension = true;
            params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
        }
    }

    #[test]
    fn each_fault_of_a_certificate_has_its_own_words_and_way_out() {
        const DAY: u64 = 86_400;
        let (ours, foreign) = (authority(), authority());
        let now = 20_000 * DAY;
        let judge = |certificate: &CertificateDer<'_>| judge_certificate(certificate, &ours.certificate, now);
        let fine = judge(&ours.issue(now - DAY, now + 300 * DAY));
        assert!(fine.ok && fine.evidence.contains("300 days"), "{fine:?}");
        let short = judge(&ours.issue(now - 600, now + 3000));
        assert!(short.ok && short.evidence.contains("50 minutes"), "{short:?}");
        for (certificate, evidence, remedy) in [
            (ours.issue(now - 300 * DAY, now - 1), "it has ended", "join"),
            (ours.issue(now - 300 * DAY, now + 20 * DAY), "ends in 20 days", "should have renewed"),
            (ours.issue(now + DAY, now + 300 * DAY), "not good yet", "clock"),
            (foreign.issue(now - DAY, now + 300 * DAY), "not issued by the CA that this host joined", "join"),
            (CertificateDer::from(vec![1, 2, 3]), "not issued by", "join"),
        ] {
            let check = judge(&certificate);
            assert!(!check.ok && check.evidence.contains(evidence) && check.remedy.contains(remedy), "{check:?}");
        }
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_named() {
        assert!(judge_clock(true, None).ok);
        assert!(judge_clock(false, Some(0)).ok);
        let off = judge_clock(false, Some(CLOCK_UNSYNCHRONISED));
        assert!(!off.ok && off.evidence.contains("not synchronised") && off.remedy.contains("chrony"), "{off:?}");
        assert!(!judge_clock(false, None).ok);
    }
}
