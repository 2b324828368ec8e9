//! What the host can give: counted anew at each look, the host's own share taken off.

use std::path::Path;

use model::observed::Resources;

use crate::config::{Config, Datapath};
use crate::seen::{Bridge, Look, Seen};

/// Counts.
#[must_use]
pub fn sample(config: &Config, seen: Option<&Seen>) -> Resources {
    let bridge = match seen.map(|seen| &seen.switch) {
        Some(Look::Known(bridge)) => bridge.clone(),
        _ => Bridge::default(),
    };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Resources {
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_mib: memory_mib().saturating_sub(config.reserve.memory_mib),
        storage_mib: storage_mib(&config.paths.state).saturating_sub(config.reserve.storage_mib),
        kvm: std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok(),
        rbd: config.ceph.is_some() && crate::driver::volumes::cluster_answered(),
        switch: seen.is_some_and(|seen| matches!(seen.switch, Look::Known(_))),
        physical_networks: bridge.physical,
        bandwidth_kbps: bridge.bandwidth,
        no_snat: config.switch.datapath == Datapath::Netdev,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// All memory of the host, MiB (proc(5), meminfo).
fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Space for volumes below `path`, used and free, MiB.
fn storage_mib(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |fs| fs.blocks() * fs.fragment_size() / (1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scheduler must not make a host a gateway whose switch is in user space, whatever else it can.
    #[test]
    fn a_switch_in_user_space_says_that_it_is_no_gateway() {
        let mut config = Config::default();
        assert!(!sample(&config, None).no_snat);
        config.switch.datapath = Datapath::Netdev;
        let resources = sample(&config, None);
        assert!(resources.no_snat);
        let said = serde_json::to_value(Resources { no_snat: false, ..resources.clone() }).unwrap();
        assert_eq!(said.get("no_snat"), None, "schedulers from before refuse the key");
        assert!(serde_json::from_value::<Resources>(said).is_ok_and(|read| !read.no_snat));
    }
}
