//! Runs the native guest in the program `vmm` and holds what it says on the serial port against what it must say: PCI, entropy, blocks that outlive
//! the machine, nonsense in the rings, packets.
//!
//! The guest starts over after each reset that it asks for, so every command line here leaves the same state however often it is run.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod machine;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use basalt_tests::ceph::shared::{Lease, Use, lease};
use basalt_tests::ceph::{POOL, USER};
use basalt_tests::netns::Namespace;
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use machine::{assert_jailed, config, run_by};
use storage::rbd::{Pool, Timeouts};
use vmm::config::{DiskConfig, DiskSource, FileSource, JailConfig, NetConfig, RbdSource, VmConfig};

const SECTOR: usize = 512;
/// The sectors of the pattern: 1 MiB, several requests.
const SECTORS: usize = 2048;
/// The sectors that are discarded.
const ZEROED: usize = 64;
/// The same in Ceph, where librbd leaves alone what is less than 64 KiB (`rbd_discard_granularity_bytes`), which the device announces.
const ZEROED_IMAGE: usize = 128;
/// The volumes' size, bytes: more than the pattern, so that the rest can be seen untouched.
const VOLUME_BYTES: u64 = 8 << 20;
const JAIL: JailConfig = JailConfig { uid: 64_997, gid: 64_997, chroot: None };

fn with_disk(words: &str, source: DiskSource, jail: Option<JailConfig>) -> VmConfig {
    let disk = DiskConfig { id: "disk".to_owned(), source, read_only: false, queues: 1, serial: None };
    VmConfig { disks: vec![disk], jail, ..config(words) }
}

/// Runs the guest until it is done and has asked for its reset; what it said, without the last line.
fn run(config: VmConfig) -> Vec<String> {
    run_by(Command::new(env!("CARGO_BIN_EXE_vmm")), config, |_| ())
}

/// The bytes that the guest writes from sector 0 on for a seed: words of splitmix64's finaliser, by place and seed.
fn pattern(seed: u64, sectors: usize) -> Vec<u8> {
    let mix = |value: u64| {
        let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    (0..sectors as u64 * 64).flat_map(|place| mix(mix(seed) ^ place).to_le_bytes()).collect()
}

/// A sparse file of zeros in a directory of its own, which anyone may enter: a jailed monitor opens it before it is jailed.
fn sparse_file(directory: &Path) -> DiskSource {
    let path = directory.join("volume.raw");
    File::create(&path).unwrap().set_len(VOLUME_BYTES).unwrap();
    DiskSource::File(FileSource { path, direct: false })
}

fn contents(source: &DiskSource) -> (Vec<u8>, u64) {
    let DiskSource::File(file) = source else { panic!("{source} is no file") };
    let mut bytes = vec![0; SECTORS * SECTOR];
    let mut file = File::open(&file.path).unwrap();
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), VOLUME_BYTES);
    (bytes, file.metadata().unwrap().blocks())
}

/// What is not the pattern of the seed, as (sector, byte) of the first difference.
fn difference(bytes: &[u8], wanted: &[u8]) -> Option<(usize, usize)> {
    let at = bytes.iter().zip(wanted).position(|(left, right)| left != right)?;
    Some((at / SECTOR, at % SECTOR))
}

#[test]
fn the_guest_finds_its_devices_and_gets_random_bytes() {
    require!(Need::Kvm);
    let directory = tempfile::tempdir().unwrap();
    let said = run(with_disk("pci rng", sparse_file(directory.path()), None));
    assert_eq!(said, ["virtio Block 0", "virtio Entropy 0", "ok pci", "ok rng"]);
}

#[test]
fn without_a_device_its_words_fail() {
    require!(Need::Kvm);
    let said = run(VmConfig { rng: false, ..config("pci rng blk=zero:1") });
    assert_eq!(said, ["ok pci", "FAIL rng no such device", "FAIL blk=zero:1 no such device"]);
}

#[test]
fn blocks_written_to_a_file_outlive_the_machine_and_discarded_ones_are_zero() {
    require!(Need::Kvm);
    let directory = tempfile::tempdir().unwrap();
    let source = sparse_file(directory.path());
    let said = run(with_disk("blk=write:7:2048 blk=verify:7:2048", source.clone(), None));
    assert_eq!(said, ["ok blk=write:7:2048", "ok blk=verify:7:2048"]);
    let (bytes, full) = contents(&source);
    assert_eq!(difference(&bytes, &pattern(7, SECTORS)), None);

    let said = run(with_disk("blk=verify:7:2048 blk=verify:8:2048", source.clone(), None));
    let why = "FAIL blk=verify:8:2048 what was read is not what was written";
    assert_eq!(said, ["ok blk=verify:7:2048", "sectors 0 to 64 differ", why]);

    let said = run(with_disk("blk=zero:64", source.clone(), None));
    assert_eq!(said, ["ok blk=zero:64"]);
    let (bytes, left) = contents(&source);
    let mut wanted = pattern(7, SECTORS);
    wanted[..ZEROED * SECTOR].fill(0);
    assert_eq!(difference(&bytes, &wanted), None);
    assert!(left < full, "the file took {full} blocks, now {left}");
}

#[test]
fn zeroes_are_written_where_they_are_asked_for_only() {
    require!(Need::Kvm);
    let directory = tempfile::tempdir().unwrap();
    let source = sparse_file(directory.path());
    assert_eq!(run(with_disk("blk=write:7:2048", source.clone(), None)), ["ok blk=write:7:2048"]);
    assert_eq!(run(with_disk("blk=wipe:3", source.clone(), None)), ["ok blk=wipe:3"]);
    let mut wanted = pattern(7, SECTORS);
    wanted[..3 * SECTOR].fill(0);
    assert_eq!(difference(&contents(&source).0, &wanted), None);
}

#[test]
fn a_read_only_disk_says_so_and_is_not_changed() {
    require!(Need::Kvm);
    let directory = tempfile::tempdir().unwrap();
    let source = sparse_file(directory.path());
    let mut config = with_disk("blk=refused", source.clone(), None);
    config.disks[0].read_only = true;
    assert_eq!(run(config), ["ok blk=refused"]);
    assert!(contents(&source).0.iter().all(|byte| *byte == 0));
    let said = run(with_disk("blk=refused", source, None));
    assert_eq!(said, ["FAIL blk=refused the device does not say that it is read-only"]);
}

/// Each queue writes another pattern than the one before it and reads its own back; the file has any of them once the guest has started over.
#[test]
fn each_queue_of_a_disk_with_four_serves() {
    require!(Need::Kvm);
    let directory = tempfile::tempdir().unwrap();
    let source = sparse_file(directory.path());
    let words = "blk=queue:0:5:256 blk=queue:1:6:256 blk=queue:2:7:256 blk=queue:3:8:256 blk=queue:4:9:256";
    let mut config = with_disk(words, source, None);
    config.disks[0].queues = 4;
    let said = run(config);
    assert_eq!(said.last().unwrap(), "FAIL blk=queue:4:9:256 the device has fewer queues");
    assert!(said[..4].iter().all(|line| line.starts_with("ok blk=queue:")) && said.len() == 5, "{said:?}");
}

#[test]
fn a_disk_serves_on_after_nonsense_in_its_rings() {
    require!(Need::Kvm);
    let directory = tempfile::tempdir().unwrap();
    let source = sparse_file(directory.path());
    let said = run(with_disk("hostile=blk blk=write:9:128 blk=verify:9:128", source.clone(), None));
    let (nonsense, rest): (Vec<_>, Vec<_>) = said.iter().partition(|line| line.starts_with("hostile: "));
    assert_eq!(rest, ["ok hostile=blk", "ok blk=write:9:128", "ok blk=verify:9:128"], "{said:?}");
    assert_eq!(nonsense.len(), 10, "{nonsense:?}");
    let outside = "hostile: rings outside of memory: the device asks for a reset";
    assert!(nonsense.iter().any(|line| *line == outside), "{nonsense:?}");
    for line in nonsense {
        println!("{line}");
    }
    assert_eq!(difference(&contents(&source).0, &pattern(9, 128)), None);
}

#[test]
fn a_jailed_machine_serves_its_disk() {
    require!(Need::Kvm, Need::Root);
    let directory = tempfile::tempdir().unwrap();
    let source = sparse_file(directory.path());
    let words = "rng blk=write:7:2048 blk=verify:7:2048";
    let said = run(with_disk(words, source.clone(), Some(JAIL)));
    assert_eq!(said, ["ok rng", "ok blk=write:7:2048", "ok blk=verify:7:2048"]);
    assert_eq!(difference(&contents(&source).0, &pattern(7, SECTORS)), None);
}

/// Sends three echo requests to a guest behind a tap in a namespace; with and without a jail.
fn echoes(jail: Option<JailConfig>) {
    let namespace = Namespace::new().unwrap();
    namespace.add_tap("tap0").unwrap();
    namespace.add_address("tap0", "10.98.0.1/24").unwrap();
    let net = NetConfig {
        id: "net".to_owned(),
        tap: "tap0".to_owned(),
        mac: "52:54:00:00:98:02".parse().unwrap(),
        mtu: Some(1500),
    };
    let config = VmConfig { nets: vec![net], jail, ..config("net=10.98.0.2:3") };
    let said = run_by(namespace.command(env!("CARGO_BIN_EXE_vmm")), config, |lines| {
        lines.until("net 10.98.0.2 is up");
        let guest = IpAddr::from(Ipv4Addr::new(10, 98, 0, 2));
        assert_eq!(namespace.ping(guest, 3, Duration::from_secs(2)).unwrap(), 3);
        let neighbours = namespace.run(&["ip", "neighbour", "show", "dev", "tap0"]).unwrap();
        assert!(neighbours.contains("10.98.0.2 lladdr 52:54:00:00:98:02"), "{neighbours}");
    });
    assert_eq!(said, ["net 10.98.0.2 is up", "net 3 echoes answered", "ok net=10.98.0.2:3"]);
}

#[test]
fn the_guest_answers_echo_requests_through_a_tap() {
    require!(Need::Kvm, Need::Root, Need::Program("ip"), Need::Program("ping"));
    echoes(None);
}

#[test]
fn the_guest_of_a_jailed_machine_answers_echo_requests() {
    require!(Need::Kvm, Need::Root, Need::Program("ip"), Need::Program("ping"));
    echoes(Some(JAIL));
}

/// What Ceph itself reads from the start of an image, after the machine let it go.
fn exported(cluster: &Lease, image: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exported");
    cluster.rbd(&["export", "--no-progress", &format!("{POOL}/{image}"), path.to_str().unwrap()]).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, VOLUME_BYTES);
    bytes.truncate(SECTORS * SECTOR);
    bytes
}

/// Writes by one machine, reads by the `rbd` command and by a second machine, then discards.
#[expect(clippy::print_stdout, reason = "part of a test")]
fn image_outlives_the_machine(name: &str, jail: Option<&JailConfig>) {
    let cluster = lease(Use::Together).unwrap();
    let pool = Pool::connect(&cluster.conf(), USER, POOL, Timeouts::default()).unwrap();
    let image = format!("{name}-{}", std::process::id());
    pool.create(&image, VOLUME_BYTES).unwrap();
    let place = RbdSource { conf: cluster.conf(), user: USER.to_owned(), pool: POOL.to_owned(), image: image.clone() };
    let source = DiskSource::Rbd(place);

    let words = with_disk("blk=write:7:2048 blk=verify:7:2048", source.clone(), jail.cloned());
    let said = run_by(Command::new(env!("CARGO_BIN_EXE_vmm")), words, |lines| {
        lines.until("ok blk=verify:7:2048");
        assert!(pool.lock_owner(&image).unwrap().is_some_and(|owner| owner.is_watching));
        if let Some(jail) = jail {
            // The guest starts over again and again; between two runs there is no vCPU.
            let threads = wait_for("all kinds of threads", Duration::from_secs(10), || {
                let threads = assert_jailed(lines.pid, jail.uid);
                let kinds = ["vcpu-0 (3 ", "devices (3 ", "msgr-worker-0 (2 ", "io_context_pool (2 "];
                let all = kinds.iter().all(|kind| threads.iter().any(|name| name.starts_with(kind)));
                Ok(all.then_some(threads))
            });
            let threads = threads.unwrap();
            println!("{} jailed threads: {}", threads.len(), threads.join(", "));
        }
    });
    assert_eq!(said, ["ok blk=write:7:2048", "ok blk=verify:7:2048"]);
    assert_eq!(difference(&exported(&cluster, &image), &pattern(7, SECTORS)), None);

    // Half a piece is announced to be none: librbd would leave it alone.
    let said = run(with_disk("blk=verify:7:2048 blk=zero:64 blk=zero:128", source, jail.cloned()));
    let none = ["discards are in pieces of 128 sectors", "FAIL blk=zero:64 the device would not discard all of it"];
    assert_eq!(said, ["ok blk=verify:7:2048", none[0], none[1], "ok blk=zero:128"]);
    let mut wanted = pattern(7, SECTORS);
    wanted[..ZEROED_IMAGE * SECTOR].fill(0);
    assert_eq!(difference(&exported(&cluster, &image), &wanted), None);
    assert_eq!(pool.lock_owner(&image).unwrap(), None, "a machine that ended let its image go");
    pool.remove(&image).unwrap();
}

#[test]
fn blocks_written_to_an_image_in_ceph_outlive_the_machine() {
    require!(Need::Kvm, Need::Root, Need::Ceph);
    image_outlives_the_machine("guest", None);
}

#[test]
fn a_jailed_machine_serves_an_image_in_ceph() {
    require!(Need::Kvm, Need::Root, Need::Ceph);
    image_outlives_the_machine("jailed-guest", Some(&JAIL));
}
