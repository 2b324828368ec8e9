//! The configuration file of a private cluster.
//!
//! Pure: settings in, text out. The options are those of Ceph 16 (docs.ceph.com, "Configuration"); each that is not a
//! plain place or address has its reason beside it.

use std::net::IpAddr;
use std::path::Path;

use super::Settings;

/// The monitor's address vector: protocol 2 only, which every client of ours speaks.
pub(super) fn monitor(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("[v2:{address}:{port}]"),
        IpAddr::V6(address) => format!("[v2:[{address}]:{port}]"),
    }
}

/// The whole file.
pub(super) fn text(directory: &Path, settings: &Settings, port: u16, fsid: &str) -> String {
    let home = directory.display();
    let monitor = monitor(settings.address, port);
    let Settings { address, store, osd_bytes, .. } = settings;
    let store = match store {
        super::Store::Bluestore => "bluestore",
        super::Store::Memstore => "memstore",
    };
    let replicas = settings.replicas();
    // With three copies writes go on while two are there; with fewer, while one is.
    let replicas_min = if replicas > 2 { 2 } else { 1 };
    let family = if address.is_ipv6() { "ms bind ipv4 = false\nms bind ipv6 = true\n" } else { "" };
    format!(
        "\
# Made by basalt-tests; changes are lost when the cluster is made anew.
[global]
fsid = {fsid}
mon host = {monitor}
public addr = {address}
ms bind msgr1 = false
{family}keyring = {home}/keyring
run dir = {home}/run
crash dir = {home}/crash
log file = {home}/log/$name.log
admin socket = {home}/run/$name.asok
# Only patched clients speak to it; without this the cluster is in HEALTH_WARN.
auth allow insecure global id reclaim = false
# One machine is the only failure domain.
osd crush chooseleaf type = 0
osd pool default size = {replicas}
osd pool default min size = {replicas_min}
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
# The disk is shared with builds: a fairly full one is no reason to stop.
mon data avail warn = 2
mon data avail crit = 1
# One witness is enough to call an OSD dead, and a dead one stays in the map: tests bring it back.
mon osd min down reporters = 1
mon osd down out interval = 86400
osd recovery sleep hdd = 0
osd recovery max active = 10
mgr initial modules =

[mon]
mon data = {home}/mon.a

[mgr]
mgr data = {home}/mgr.x
keyring = {home}/mgr.x/keyring

[osd]
osd data = {home}/osd.$id
keyring = {home}/osd.$id/keyring
osd objectstore = {store}
bluestore block create = true
bluestore block size = {osd_bytes}
memstore device bytes = {osd_bytes}
# Small, for machines that run builds and virtual machines beside it.
bluestore cache autotune = false
bluestore cache size = 134217728
osd memory target = 939524096
osd op num shards = 2
osd op num threads per shard = 1
# Tests kill OSDs. A write that waits in the log to be made later is made again after a kill, also over an object that took
# the place since: seen with Ceph 16.2.15 on a busy disk, as maps of the OSD that held an image's old bytes.
bluestore prefer deferred size = 0
bluestore prefer deferred size hdd = 0
bluestore prefer deferred size ssd = 0
bluestore deferred batch ops = 1
# The lock of a killed OSD can outlive it while the kernel puts its last I/O away: 10 s of looks, 0.1 s apart.
bdev flock retry = 100

[client]
log file =
admin socket =
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_replicas_follow_the_settings() {
        let settings = Settings { osds: 3, address: "10.77.0.1".parse().unwrap(), ..Settings::default() };
        let text = text(Path::new("/d"), &settings, 3300, "f");
        for line in ["mon host = [v2:10.77.0.1:3300]", "osd pool default size = 3", "osd pool default min size = 2"] {
            assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
        }
        assert_eq!(monitor("::1".parse().unwrap(), 1), "[v2:[::1]:1]");
    }
}
