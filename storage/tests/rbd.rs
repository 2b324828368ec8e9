//! Volumes in a real Ceph cluster, through the same interface that a VM uses, and judged by the `rbd` command.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod model;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use basalt_tests::ceph::shared::{Lease, Use, lease};
use basalt_tests::ceph::{Name, POOL, USER};
use basalt_tests::require;
use basalt_tests::skip::Need;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use storage::rbd::{Pool, RbdError, Timeouts};
use storage::source::{self, OpenError, OpenOptions, RbdSource, Source, Takeover};
use storage::volume::{Completion, Fault, Operation, TransferError, Volume};

const MIB: u64 = 1024 * 1024;

/// A name of its own for each test process, so that tests can share the cluster.
fn name(of: &str) -> String {
    format!("{of}-{}", std::process::id())
}

fn connect(cluster: &Lease) -> Pool {
    Pool::connect(&cluster.conf(), USER, POOL, Timeouts::default()).unwrap()
}

fn source_of(cluster: &Lease, image: &str) -> RbdSource {
    RbdSource { conf: cluster.conf(), user: USER.to_owned(), pool: POOL.to_owned(), image: image.to_owned() }
}

fn open(cluster: &Lease, image: &str, options: &OpenOptions) -> Result<Volume, OpenError> {
    source::open(&Source::Rbd(source_of(cluster, image)), options)
}

/// The same random steps as on files.
#[test]
fn volume_behaves_like_an_array() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let pool = connect(&cluster);
    let image = name("array");
    let mut runner = TestRunner::deterministic();
    for _ in 0..6 {
        pool.create(&image, model::SECTORS * 512).unwrap();
        let mut volume = open(&cluster, &image, &OpenOptions::default()).unwrap();
        let steps = model::steps().new_tree(&mut runner).unwrap().current();
        model::check(&mut volume, &steps);
        volume.close().unwrap();
        pool.remove(&image).unwrap();
    }
}

/// Images are made, cloned, grown, renamed and removed; the `rbd` command sees the same; what others need is kept.
#[test]
fn images_live_as_rbd_sees_them() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let pool = connect(&cluster);
    let (base, child, moved) = (name("base"), name("child"), name("moved"));
    pool.create(&base, 8 * MIB).unwrap();
    assert!(matches!(pool.create(&base, 8 * MIB), Err(RbdError::Exists { .. })));
    assert!(matches!(pool.create(&name("odd"), 100), Err(RbdError::Size { .. })));
    let mut volume = open(&cluster, &base, &OpenOptions::default()).unwrap();
    volume.write_at(MIB, &[0x5A; 4096]).unwrap();
    volume.close().unwrap();

    pool.create_snapshot(&base, "base").unwrap();
    pool.protect(&base, "base").unwrap();
    pool.protect(&base, "base").unwrap();
    assert!(matches!(pool.clone_image(&base, "base", &child, MIB), Err(RbdError::Shrink { .. })));
    assert!(matches!(pool.clone_image(&base, "none", &child, MIB), Err(RbdError::NotFound { .. })));
    pool.clone_image(&base, "base", &child, 16 * MIB).unwrap();
    let seen = cluster.rbd(&["info", &format!("{POOL}/{child}")]).unwrap();
    assert!(seen.contains("size 16 MiB") && seen.contains(&format!("parent: {POOL}/{base}@base")), "{seen}");
    assert!(seen.contains("exclusive-lock"), "{seen}");

    let mut clone = open(&cluster, &child, &OpenOptions::default()).unwrap();
    let mut bytes = [0; 4096];
    clone.read_at(MIB, &mut bytes).unwrap();
    assert_eq!(bytes, [0x5A; 4096]);
    clone.read_at(12 * MIB, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
    let error = pool.remove(&child).unwrap_err();
    assert!(matches!(error, RbdError::InUse { .. }), "{error:?}");
    clone.close().unwrap();

    let error = pool.remove_snapshot(&base, "base").unwrap_err();
    assert!(error.to_string().contains(&format!("clones {POOL}/{child}")), "{error}");
    assert!(matches!(pool.remove(&base), Err(RbdError::HasSnapshots { .. })));
    pool.rename(&child, &moved).unwrap();
    assert!(matches!(pool.rename(&moved, &base), Err(RbdError::Exists { .. })));
    assert!(matches!(pool.rename(&child, &base), Err(RbdError::NotFound { .. })));
    pool.grow(&moved, 20 * MIB).unwrap();
    assert!(matches!(pool.grow(&moved, MIB), Err(RbdError::Shrink { .. })));
    assert_eq!(pool.stat(&moved).unwrap().size_bytes, 20 * MIB);
    assert!(pool.list().unwrap().contains(&moved));

    pool.remove(&moved).unwrap();
    pool.remove_snapshot(&base, "base").unwrap();
    pool.remove(&base).unwrap();
    let left = cluster.rbd(&["ls", POOL]).unwrap();
    assert!(![&base, &child, &moved].iter().any(|gone| left.lines().any(|line| line == *gone)), "{left}");
}

/// Many requests in flight, larger than one call takes, end once each.
#[test]
fn requests_in_flight_end_once() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let pool = connect(&cluster);
    let image = name("flight");
    pool.create(&image, 4096 * MIB).unwrap();
    let options = OpenOptions { in_flight_max: 8, ..OpenOptions::default() };
    let mut volume = open(&cluster, &image, &options).unwrap();
    for tag in 0..8 {
        let operation = if tag % 2 == 0 { Operation::Discard } else { Operation::WriteZeroes };
        let request = storage::volume::Request {
            operation,
            offset_bytes: 0,
            length_bytes: 4096 * MIB,
            buffers: storage::memory::Buffers::default(),
            tag,
        };
        volume.submit(request).unwrap();
    }
    assert_eq!(volume.in_flight(), 8);
    let mut ended: Vec<Completion> = Vec::new();
    let start = Instant::now();
    while ended.len() < 8 {
        assert!(start.elapsed() < Duration::from_secs(60), "{ended:?}");
        volume.drain(&mut ended);
        std::thread::yield_now();
    }
    let mut tags: Vec<u64> = ended.iter().map(|completion| completion.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(ended.iter().all(|completion| completion.result.is_ok()), "{ended:?}");
    volume.close().unwrap();
    pool.remove(&image).unwrap();
}

/// A second opener is told who has the image; a reader is let in; after close the lock is free.
#[test]
fn second_opener_is_refused_by_name() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let pool = connect(&cluster);
    let image = name("two");
    pool.create(&image, MIB).unwrap();
    let options = OpenOptions { holder: "vm web-1 on host a".to_owned(), ..OpenOptions::default() };
    let first = open(&cluster, &image, &options).unwrap();
    let error = open(&cluster, &image, &OpenOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Rbd(RbdError::Held { .. })), "{error:?}");
    assert!(error.to_string().contains("vm web-1 on host a"), "{error}");
    let reading = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut reader = open(&cluster, &image, &reading).unwrap();
    reader.read_at(0, &mut [0; 512]).unwrap();
    assert!(matches!(reader.write_at(0, &[0; 512]), Err(TransferError::Submit(_))));
    first.close().unwrap();
    let second = open(&cluster, &image, &OpenOptions::default()).unwrap();
    second.close().unwrap();
    drop(reader);
    pool.remove(&image).unwrap();
}

/// What cannot be opened is said in words that name the cause.
#[test]
fn open_names_what_is_wrong() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let missing = open(&cluster, "no-such-image", &OpenOptions::default()).unwrap_err();
    assert!(matches!(missing, OpenError::Rbd(RbdError::NotFound { .. })), "{missing:?}");
    let connect = |user: &str, pool: &str| Pool::connect(&cluster.conf(), user, pool, Timeouts::default()).unwrap_err();
    assert!(matches!(connect(USER, "no-such-pool"), RbdError::NoPool { .. }));
    let refused = connect("nobody", POOL);
    assert!(matches!(refused, RbdError::Refused { .. }), "{refused:?}");
    let conf = PathBuf::from("/no/such/ceph.conf");
    let error = Pool::connect(&conf, USER, POOL, Timeouts::default()).unwrap_err();
    assert!(matches!(error, RbdError::Configuration { .. }), "{error:?}");
}

/// An address that nobody answers on is an error in bounded time.
#[test]
fn unreachable_cluster_is_an_error_in_time() {
    require!(Need::Ceph);
    let home = tempfile::tempdir().unwrap();
    let conf = home.path().join("ceph.conf");
    let keyring = home.path().join("keyring");
    std::fs::write(&keyring, "[client.admin]\nkey = AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAA==\n").unwrap();
    std::fs::write(&conf, format!("[global]\nmon host = [v2:127.0.0.1:1]\nkeyring = {}\n", keyring.display())).unwrap();
    let timeouts = Timeouts { connect: Duration::from_secs(3), ..Timeouts::default() };
    let start = Instant::now();
    let error = Pool::connect(&conf, USER, POOL, timeouts).unwrap_err();
    assert!(matches!(error, RbdError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("within 3 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

/// The cluster goes away under an open volume: its I/O fails as timed out, and it works again afterwards.
#[test]
fn volume_of_a_dead_cluster_fails_and_recovers() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Alone).unwrap();
    let pool = connect(&cluster);
    let image = name("dead");
    pool.create(&image, MIB).unwrap();
    let options = OpenOptions { io_timeout: Some(Duration::from_secs(3)), ..OpenOptions::default() };
    let mut volume = open(&cluster, &image, &options).unwrap();
    volume.write_at(0, &[1; 4096]).unwrap();
    cluster.kill(Name::Osd(0)).unwrap();
    let start = Instant::now();
    let error = volume.write_at(4096, &[2; 4096]).unwrap_err();
    assert!(matches!(error, TransferError::Failed { source: Fault::TimedOut, .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    println!("MEASURED write to a dead cluster failed after {:.1} s", start.elapsed().as_secs_f64());
    cluster.start(Name::Osd(0)).unwrap();
    let start = Instant::now();
    while let Err(error) = volume.write_at(4096, &[2; 4096]) {
        assert!(start.elapsed() < Duration::from_secs(60), "{error:?}");
    }
    let mut bytes = [0; 8192];
    volume.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..4096] == [1; 4096] && bytes[4096..] == [2; 4096]);
    volume.close().unwrap();
    drop(pool);
    let pool = connect(&cluster);
    // A watch whose renewal timed out lives on at the OSD, for 30 s: whoever it was cannot be told from the living.
    let start = Instant::now();
    while let Err(error) = pool.remove(&image) {
        assert!(matches!(error, RbdError::InUse { .. }), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(60), "{error:?}");
    }
}

/// Names the image that [`holder_process`] must hold.
const HOLD: &str = "BASALT_TEST_HOLD";

/// Not a test of its own: the process that [`killed_or_frozen_holder_is_fenced`] kills or freezes. Run as a test it
/// has nothing to hold and ends at once.
#[test]
fn holder_process() {
    let Ok(text) = std::env::var(HOLD) else { return };
    let source: RbdSource = serde_json::from_str(&text).unwrap();
    let options = OpenOptions { holder: "the one to be fenced".to_owned(), ..OpenOptions::default() };
    let mut volume = source::open(&Source::Rbd(source), &options).unwrap();
    let mut line = String::new();
    loop {
        let result = volume.write_at(0, &[7; 512]);
        println!("HOLDER {result:?}");
        std::io::stdout().flush().unwrap();
        line.clear();
        if std::io::stdin().read_line(&mut line).unwrap() == 0 {
            return;
        }
    }
}

/// A holder that was killed, or one that is frozen, loses the image to a fence at once; the frozen one wakes up to find
/// that the cluster refuses its writes.
#[test]
fn killed_or_frozen_holder_is_fenced() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let pool = connect(&cluster);
    for (what, signal) in [("killed", "KILL"), ("frozen", "STOP")] {
        let image = name(what);
        pool.create(&image, MIB).unwrap();
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder_process", "--nocapture"])
            .env(HOLD, serde_json::to_string(&source_of(&cluster, &image)).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        let mut next = || lines.by_ref().map(Result::unwrap).find(|line| line.contains("HOLDER ")).unwrap();
        assert!(next().ends_with("HOLDER Ok(())"));
        let pid = holder.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());

        let held = open(&cluster, &image, &OpenOptions::default()).unwrap_err();
        assert!(held.to_string().contains("the one to be fenced"), "{held}");
        let start = Instant::now();
        let options = OpenOptions { takeover: Takeover::Fence, ..OpenOptions::default() };
        let mut volume = open(&cluster, &image, &options).unwrap();
        volume.write_at(0, &[9; 512]).unwrap();
        println!("MEASURED takeover from a {what} holder in {:.2} s", start.elapsed().as_secs_f64());

        if signal == "STOP" {
            assert!(Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());
            holder.stdin.as_mut().unwrap().write_all(b"again\n").unwrap();
            let after = next();
            assert!(after.contains("Fenced"), "{after}");
        }
        let mut bytes = [0; 512];
        volume.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, [9; 512]);
        holder.kill().unwrap();
        holder.wait().unwrap();
        volume.close().unwrap();
        // A killed client watches on for 30 s, which keeps the image from being removed; a fenced one does not.
        pool.remove(&image).unwrap();
    }
}

/// Names the images that [`many_volumes_process`] opens.
const MANY: &str = "BASALT_TEST_MANY";

/// Memory of this process that is its own, in KiB.
fn private_kib() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let field = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    field("Private_Clean:") + field("Private_Dirty:")
}

/// Not a test of its own: the process whose memory [`memory_per_volume`] looks at.
#[test]
fn many_volumes_process() {
    let Ok(text) = std::env::var(MANY) else { return };
    let sources: Vec<RbdSource> = serde_json::from_str(&text).unwrap();
    println!("MEMORY {}", private_kib());
    let mut volumes = Vec::new();
    for source in sources {
        let mut volume = source::open(&Source::Rbd(source), &OpenOptions::default()).unwrap();
        for at in 0..16 {
            volume.write_at(at * MIB, &vec![1; 1 << 20]).unwrap();
        }
        volumes.push(volume);
        println!("MEMORY {}", private_kib());
    }
}

/// What librbd costs: nothing without a volume, so much for the first, less for each further one.
#[test]
fn memory_per_volume() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Together).unwrap();
    let pool = connect(&cluster);
    let images: Vec<String> = (0..4).map(|index| name(&format!("memory-{index}"))).collect();
    for image in &images {
        pool.create(image, 16 * MIB).unwrap();
    }
    let sources: Vec<RbdSource> = images.iter().map(|image| source_of(&cluster, image)).collect();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "many_volumes_process", "--nocapture"])
        .env(MANY, serde_json::to_string(&sources).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kib: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("MEMORY ")?.parse().ok()).collect();
    assert_eq!(kib.len(), 5, "{text}{}", String::from_utf8_lossy(&output.stderr));
    let mib = |kib: u64| kib.div_ceil(1024);
    println!(
        "MEASURED private memory: {} MiB without a volume, {} MiB more for the first, {} MiB more for each further one",
        mib(kib[0]),
        mib(kib[1] - kib[0]),
        mib(kib[4].saturating_sub(kib[1]) / 3)
    );
    assert!(kib[0] < 8 * 1024, "{kib:?}: librbd costs something without a volume");
    assert!(kib[1] - kib[0] < 64 * 1024 && kib[4] - kib[1] < 3 * 48 * 1024, "{kib:?}");
    for image in &images {
        pool.remove(image).unwrap();
    }
}
