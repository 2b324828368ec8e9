//! Image import, judged by qemu-img in both directions: what it made is read right, what is made is right to it.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use basalt_tests::ceph::shared::{Lease, Use, lease};
use basalt_tests::ceph::{POOL, USER};
use basalt_tests::require;
use basalt_tests::skip::Need;
use storage::digest::Sha256;
use storage::file::{self, FileError};
use storage::format::{Format, FormatError, Qcow2Error};
use storage::image::{BASE_SNAPSHOT, ImageError, Import, Progress};
use storage::rbd::{Pool, Timeouts};
use storage::source::{self, FileSource, OpenOptions, Source};
use storage::volume::{Fault, TransferError};

const MIB: u64 = 1024 * 1024;
const QEMU_IMG: Need = Need::Program("qemu-img");

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn qemu_img(words: &[&str]) {
    let output = Command::new("qemu-img").args(words).output().unwrap();
    assert!(output.status.success(), "qemu-img {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A sparse raw disk of 40 MiB and a half, with data in odd places and of every kind: random, repeating, zero.
fn raw_disk(directory: &Path) -> PathBuf {
    let path = directory.join("disk.raw");
    let disk = File::create(&path).unwrap();
    disk.set_len(40 * MIB + 512).unwrap();
    let mut state = 1_u64;
    let mut noise = vec![0; 300_000];
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = u8::try_from(state >> 56).unwrap();
    }
    for (at, bytes) in [
        (0, &noise[..]),
        (5 * MIB - 100, b"across a cluster's end, many times; ".repeat(5000).as_slice()),
        (20 * MIB, &[0; 200_000]),
        (33 * MIB + 512, &noise[1000..70_000]),
        (40 * MIB, &noise[..512]),
    ] {
        disk.write_all_at(bytes, at).unwrap();
    }
    path
}

fn import(path: &Path, format: Format) -> Import {
    Import { path: path.to_owned(), format, sha256: None, size_bytes_max: 1 << 40 }
}

fn quiet(_progress: Progress) {}

/// Every kind of qcow2 that qemu-img makes is read as qemu-img reads it, into a file that is as sparse as it may be.
#[test]
fn qcow2_of_every_kind_becomes_the_same_disk() {
    require!(QEMU_IMG);
    let home = directory();
    let raw = raw_disk(home.path());
    let kinds: [(&str, &[&str]); 6] = [
        ("plain", &[]),
        ("v2", &["-o", "compat=0.10"]),
        ("packed", &["-c"]),
        ("small-clusters", &["-o", "cluster_size=512"]),
        ("large-clusters-packed", &["-c", "-o", "cluster_size=2M"]),
        ("preallocated", &["-o", "preallocation=metadata"]),
    ];
    for (kind, options) in kinds {
        let qcow2 = home.path().join(format!("{kind}.qcow2"));
        let words = [&["convert", "-f", "raw", "-O", "qcow2"], options, &[text(&raw), text(&qcow2)]].concat();
        qemu_img(&words);
        let target = home.path().join(format!("{kind}.volume"));
        let mut last = None;
        let imported = import(&qcow2, Format::Qcow2).into_file(&target, &mut |progress| last = Some(progress)).unwrap();
        assert_eq!(imported.size_bytes, 40 * MIB + 512, "{kind}");
        let whole = Progress::Writing { done_bytes: imported.size_bytes, total_bytes: imported.size_bytes };
        assert_eq!(last, Some(whole), "{kind}");
        qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&raw), text(&target)]);
        let usage = file::usage(&target).unwrap();
        assert!(usage.allocated_bytes < 2 * MIB, "{kind}: {usage:?}");

        // And back: what was imported is a right disk to qemu-img.
        let back = home.path().join(format!("{kind}.back"));
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&target), text(&back)]);
        qemu_img(&["check", "-f", "qcow2", text(&back)]);
        qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2", text(&qcow2), text(&back)]);
    }
}

/// Raw images keep their holes, and their last sector is filled up.
#[test]
fn raw_becomes_the_same_disk() {
    require!(QEMU_IMG);
    let home = directory();
    let raw = raw_disk(home.path());
    let target = home.path().join("volume");
    let imported = import(&raw, Format::Raw).into_file(&target, &mut quiet).unwrap();
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&raw), text(&target)]);
    assert!(imported.data_bytes < MIB, "{imported:?}");

    let odd = home.path().join("odd");
    fs::write(&odd, b"no whole sector").unwrap();
    let target = home.path().join("odd.volume");
    assert_eq!(import(&odd, Format::Raw).into_file(&target, &mut quiet).unwrap().size_bytes, 512);
    assert!(fs::read(&target).unwrap().starts_with(b"no whole sector\0\0"));
}

/// What is wrong with an image is named, and nothing is left of the import.
#[test]
fn bad_images_are_named_and_leave_nothing() {
    require!(QEMU_IMG);
    let home = directory();
    let raw = raw_disk(home.path());
    let good = home.path().join("good.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&good)]);
    let target = home.path().join("target");
    let refusal = |path: &Path, format| {
        let error = import(path, format).into_file(&target, &mut quiet).unwrap_err();
        assert!(!target.exists(), "{error}");
        error
    };
    let damaged = |name: &str, damage: &dyn Fn(&File)| {
        let path = home.path().join(name);
        fs::copy(&good, &path).unwrap();
        damage(&File::options().write(true).open(&path).unwrap());
        match refusal(&path, Format::Qcow2) {
            ImageError::Format(FormatError::Qcow2 { source, .. }) => source,
            other => panic!("{name}: {other:?}"),
        }
    };
    let write = |at, bytes: &'static [u8]| move |file: &File| file.write_all_at(bytes, at).unwrap();
    let l1_offset = {
        let mut field = [0; 8];
        File::open(&good).unwrap().read_exact_at(&mut field, 40).unwrap();
        u64::from_be_bytes(field)
    };

    assert!(matches!(damaged("magic", &write(0, b"QFX")), Qcow2Error::Magic));
    assert!(matches!(damaged("version", &write(7, b"\x09")), Qcow2Error::Header { field: "version", value: 9, .. }));
    assert!(matches!(damaged("clusters", &write(20, b"\0\0\0\x40")), Qcow2Error::Header { field: "cluster bits", .. }));
    assert!(matches!(damaged("size", &write(24, &[0xff; 8])), Qcow2Error::Header { field: "size", .. }));
    assert!(matches!(damaged("huge", &write(24, &[0x7f; 8])), Qcow2Error::Header { field: "L1 entries", .. }));
    assert!(matches!(damaged("marked", &write(79, b"\x02")), Qcow2Error::MarkedCorrupt));
    assert!(matches!(damaged("crypt", &write(35, b"\x01")), Qcow2Error::Unsupported { .. }));
    assert!(matches!(damaged("future", &write(72, b"\x80")), Qcow2Error::Unsupported { .. }));
    let entry = damaged("entry", &write(l1_offset, &[0xff; 8]));
    assert!(matches!(entry, Qcow2Error::Entry { part: "L1 entry", disk_offset: 0, .. }), "{entry}");
    let outside = damaged("outside", &write(l1_offset, &[0x80, 0x7f, 0, 0, 0, 0, 0, 0]));
    assert!(matches!(outside, Qcow2Error::OutsideFile { part: "L2 table", .. }), "{outside}");
    let cut = damaged("cut", &|file| file.set_len(file.metadata().unwrap().len() / 2).unwrap());
    assert!(matches!(cut, Qcow2Error::OutsideFile { .. }), "{cut}");
    assert!(cut.to_string().contains("cut off or corrupt"), "{cut}");

    let packed = home.path().join("packed.qcow2");
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&packed)]);
    // Past header and tables lie the packed clusters; a stream of ones is no deflate.
    let length = fs::metadata(&packed).unwrap().len();
    File::options().write(true).open(&packed).unwrap().write_all_at(&[0xff; 4096], length - 8192).unwrap();
    let error = refusal(&packed, Format::Qcow2);
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("does not unpack"), "{error}: {cause}");

    let child = home.path().join("child.qcow2");
    qemu_img(&["create", "-f", "qcow2", "-b", text(&good), "-F", "qcow2", text(&child)]);
    let error = refusal(&child, Format::Qcow2);
    assert!(error.source().unwrap().to_string().contains("a backing file"), "{error:?}");
    assert!(matches!(refusal(&good, Format::Raw), ImageError::Format(FormatError::NotRaw { .. })));
    let empty = home.path().join("empty");
    File::create(&empty).unwrap();
    assert!(matches!(refusal(&empty, Format::Raw), ImageError::Format(FormatError::Empty { .. })));

    let wrong = Import { sha256: Some("00".repeat(32).parse().unwrap()), ..import(&good, Format::Qcow2) };
    assert!(matches!(wrong.into_file(&target, &mut quiet), Err(ImageError::Digest { .. })));
    let large = Import { size_bytes_max: MIB, ..import(&good, Format::Qcow2) };
    assert!(matches!(large.into_file(&target, &mut quiet), Err(ImageError::Format(FormatError::TooLarge { .. }))));
    assert!(!target.exists());
}

/// Random damage to a small image never panics, hangs or takes unbounded memory.
#[test]
fn random_damage_is_survived() {
    require!(QEMU_IMG);
    let home = directory();
    let good = home.path().join("good.qcow2");
    qemu_img(&["create", "-f", "qcow2", "-o", "cluster_size=512", text(&good), "1M"]);
    let bytes = fs::read(&good).unwrap();
    let mut state = 7_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let (damaged, target) = (home.path().join("damaged"), home.path().join("target"));
    let mut refused = 0;
    for _ in 0..400 {
        let mut bytes = bytes.clone();
        for _ in 0..=random(4) {
            let at = if random(2) == 0 { random(112) } else { random(bytes.len()) };
            bytes[at] = u8::try_from(random(256)).unwrap();
        }
        fs::write(&damaged, &bytes).unwrap();
        let import = Import { size_bytes_max: 64 * MIB, ..import(&damaged, Format::Qcow2) };
        match import.into_file(&target, &mut quiet) {
            Ok(_) => fs::remove_file(&target).unwrap(),
            Err(_) => refused += 1,
        }
    }
    assert!((50..400).contains(&refused), "{refused} of 400 were refused");
}

/// A small file system of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let home = directory();
        let words = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", text(home.path())];
        assert!(Command::new("mount").args(words).status().unwrap().success());
        Self(home)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A full disk is named; an import leaves nothing, and a volume's writes fail as having no space.
#[test]
fn full_disk_is_named_and_leaves_nothing() {
    require!(Need::Root);
    let disk = SmallDisk::new();
    let home = directory();
    let large = home.path().join("large.raw");
    fs::write(&large, vec![0xAB; 4 << 20]).unwrap();
    let target = disk.0.path().join("volume");
    let error = import(&large, Format::Raw).into_file(&target, &mut quiet).unwrap_err();
    assert!(matches!(error, ImageError::File(FileError::NoSpace { .. })), "{error:?}");
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 0);

    file::create(&target, 8 * MIB).unwrap();
    let source = Source::File(FileSource { path: target.clone(), direct: false });
    let mut volume = source::open(&source, &OpenOptions::default()).unwrap();
    let error = volume.write_at(0, &vec![1; 4 << 20]).unwrap_err();
    assert!(matches!(error, TransferError::Failed { source: Fault::NoSpace, .. }), "{error:?}");
    volume.close().unwrap();
    assert!(file::clone(&large, &disk.0.path().join("clone"), 4 * MIB, &mut |_, _| ()).is_err());
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 1);
}

fn connect(cluster: &Lease) -> Pool {
    Pool::connect(&cluster.conf(), USER, POOL, Timeouts::default()).unwrap()
}

/// Two hosts import one image into a pool at once: one image is there, whole and protected, and nothing else; the
/// `rbd` command reads the same disk; a third import finds it.
#[test]
fn concurrent_imports_into_a_pool_make_one_image() {
    require!(Need::Root, Need::Ceph, QEMU_IMG);
    let cluster = lease(Use::Together).unwrap();
    let home = directory();
    let raw = raw_disk(home.path());
    // Unlike the image of any other run.
    File::options().write(true).open(&raw).unwrap().write_all_at(&std::process::id().to_le_bytes(), 10 * MIB).unwrap();
    let qcow2 = home.path().join("disk.qcow2");
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow2)]);
    let sha256 = Sha256::of_file(&mut File::open(&qcow2).unwrap(), &mut |_| ()).unwrap();
    let import = Import { sha256: Some(sha256), ..import(&qcow2, Format::Qcow2) };
    let imports: Vec<_> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| import.into_pool(&connect(&cluster), &mut quiet).unwrap());
        let threads = [start(), start(), start()];
        threads.map(|thread| thread.join().unwrap()).into()
    });
    assert_eq!(imports.iter().filter(|imported| !imported.was_there).count(), 1, "{imports:?}");
    let pool = connect(&cluster);
    let again = import.into_pool(&pool, &mut quiet).unwrap();
    assert!(again.was_there && again.size_bytes == 40 * MIB + 512, "{again:?}");

    let name = Import::name_in_pool(sha256);
    let text_of_digest = sha256.to_string();
    let related: Vec<String> =
        pool.list().unwrap().into_iter().filter(|found| found.contains(&text_of_digest)).collect();
    assert_eq!(related, [name.as_str()]);
    let mut listing = cluster.client("rados");
    listing.args(["--pool", POOL, "ls"]);
    let objects = basalt_tests::process::run(&mut listing, Duration::from_secs(60)).unwrap();
    assert!(!objects.contains("basalt-import-"), "a lease was left: {objects}");
    let exported = home.path().join("exported.raw");
    cluster.rbd(&["export", "--no-progress", &format!("{POOL}/{name}@{BASE_SNAPSHOT}"), text(&exported)]).unwrap();
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&raw), text(&exported)]);

    let wrong = Import { sha256: Some("11".repeat(32).parse().unwrap()), ..import.clone() };
    assert!(matches!(wrong.into_pool(&pool, &mut quiet), Err(ImageError::Digest { .. })));
    pool.remove_snapshot(&name, BASE_SNAPSHOT).unwrap();
    pool.remove(&name).unwrap();
}

/// An import of a corrupt image fails half way and leaves nothing in the pool.
#[test]
fn failed_import_into_a_pool_leaves_nothing() {
    require!(Need::Root, Need::Ceph, QEMU_IMG);
    let cluster = lease(Use::Together).unwrap();
    let home = directory();
    let raw = raw_disk(home.path());
    let qcow2 = home.path().join("cut.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow2)]);
    let file = File::options().write(true).open(&qcow2).unwrap();
    file.set_len(file.metadata().unwrap().len() - 3 * 65536).unwrap();
    let sha256 = Sha256::of_file(&mut File::open(&qcow2).unwrap(), &mut |_| ()).unwrap();
    let pool = connect(&cluster);
    let error = import(&qcow2, Format::Qcow2).into_pool(&pool, &mut quiet).unwrap_err();
    assert!(matches!(error, ImageError::Format(FormatError::Qcow2 { .. })), "{error:?}");
    let digest = sha256.to_string();
    assert!(!pool.list().unwrap().iter().any(|name| name.contains(&digest)));
}

/// A pool that is full fails an import in bounded time, by name, and nothing of it is left once there is room.
#[test]
fn full_pool_fails_an_import_in_time() {
    require!(Need::Root, Need::Ceph);
    let cluster = lease(Use::Alone).unwrap();
    let quota = |bytes: &str| cluster.ceph(&["osd", "pool", "set-quota", POOL, "max_bytes", bytes]).unwrap();
    let is_full = || cluster.ceph(&["health", "detail"]).unwrap().contains("POOL_FULL");
    let wait_for_full = |wanted: bool| {
        let what = format!("a pool that is full: {wanted}");
        let look = || Ok((is_full() == wanted).then_some(()));
        basalt_tests::process::wait_for(&what, Duration::from_secs(90), look).unwrap();
    };
    let home = directory();
    let raw = raw_disk(home.path());
    File::options().write(true).open(&raw).unwrap().write_all_at(b"for the full pool", 10 * MIB).unwrap();
    let timeouts = Timeouts { operation: Some(Duration::from_secs(5)), ..Timeouts::default() };
    let pool = Pool::connect(&cluster.conf(), USER, POOL, timeouts).unwrap();
    pool.create("filler", MIB).unwrap();
    let source = storage::source::RbdSource {
        conf: cluster.conf(),
        user: USER.to_owned(),
        pool: POOL.to_owned(),
        image: "filler".to_owned(),
    };
    let mut filler = source::open(&Source::Rbd(source), &OpenOptions::default()).unwrap();
    filler.write_at(0, &vec![1; 1 << 20]).unwrap();
    filler.close().unwrap();
    quota("1000");
    wait_for_full(true);
    let start = Instant::now();
    let outcome = import(&raw, Format::Raw).into_pool(&pool, &mut quiet);
    let took = start.elapsed();
    quota("0");
    wait_for_full(false);
    let error = outcome.unwrap_err();
    let text = storage_chain(&error);
    println!("MEASURED a full pool failed an import after {:.1} s: {text}", took.as_secs_f64());
    assert!(matches!(error, ImageError::PoolFull { .. }), "{text}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    let pool = connect(&cluster);
    let imported = import(&raw, Format::Raw).into_pool(&pool, &mut quiet).unwrap();
    let digest = imported.sha256.to_string();
    let name = Import::name_in_pool(imported.sha256);
    let related: Vec<String> = pool.list().unwrap().into_iter().filter(|found| found.contains(&digest)).collect();
    assert_eq!(related, [name.as_str()]);
    pool.remove_snapshot(&name, BASE_SNAPSHOT).unwrap();
    pool.remove(&name).unwrap();
    pool.remove("filler").unwrap();
}

/// An error with its causes, as an operator sees it.
fn storage_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
