//! Volumes in files, through the same interface that a VM uses: patterns, two openers, clones, a full disk.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod model;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use basalt_tests::require;
use basalt_tests::skip::Need;
use proptest::prelude::*;
use storage::file::{self, FileError};
use storage::source::{self, Engine, FileSource, OpenError, OpenOptions, Source};
use storage::volume::{Operation, SubmitError, TransferError};

const MIB: u64 = 1024 * 1024;

fn directory() -> tempfile::TempDir {
    // Beside the build, not in /tmp: that may be a tmpfs, which does no direct I/O.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn source_of(path: &Path, direct: bool) -> Source {
    Source::File(FileSource { path: path.to_owned(), direct })
}

fn new_volume(directory: &Path, size_bytes: u64) -> PathBuf {
    let path = directory.join("volume");
    file::create(&path, size_bytes).unwrap();
    path
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn volume_behaves_like_an_array(steps in model::steps(), direct: bool, threads: bool) {
        let directory = directory();
        let path = new_volume(directory.path(), model::SECTORS * 512);
        let engine = if threads { Engine::Threads } else { Engine::Automatic };
        let options = OpenOptions { engine, ..OpenOptions::default() };
        let mut volume = source::open(&source_of(&path, direct), &options).unwrap();
        model::check(&mut volume, &steps);
    }
}

/// A second writer is told who has the volume; readers share it with each other, not with a writer.
#[test]
fn second_opener_is_refused_by_name() {
    let directory = directory();
    let path = new_volume(directory.path(), MIB);
    let source = source_of(&path, false);
    let writing = OpenOptions::default();
    let reading = OpenOptions { read_only: true, ..OpenOptions::default() };

    let writer = source::open(&source, &writing).unwrap();
    for options in [&writing, &reading] {
        let error = source::open(&source, options).unwrap_err();
        assert!(matches!(error, OpenError::File(FileError::Locked { .. })), "{error:?}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    }
    assert!(matches!(file::remove(&path), Err(FileError::Locked { .. })));
    assert!(matches!(file::grow(&path, 2 * MIB), Err(FileError::Locked { .. })));
    writer.close().unwrap();

    let mut first = source::open(&source, &reading).unwrap();
    let _second = source::open(&source, &reading).unwrap();
    assert!(source::open(&source, &writing).is_err());
    let refused = first.write_at(0, &[0; 512]).unwrap_err();
    assert!(matches!(refused, TransferError::Submit(SubmitError::ReadOnly { .. })), "{refused:?}");
}

/// Requests outside the volume or off its blocks never reach the disk.
#[test]
fn bad_requests_are_refused() {
    let directory = directory();
    let path = new_volume(directory.path(), MIB);
    let mut volume = source::open(&source_of(&path, false), &OpenOptions::default()).unwrap();
    let refusal = |result: Result<(), TransferError>| match result {
        Err(TransferError::Submit(error)) => error,
        other => panic!("not refused: {other:?}"),
    };
    assert!(matches!(refusal(volume.read_at(MIB, &mut [0; 512])), SubmitError::OutOfRange { .. }));
    assert!(matches!(refusal(volume.write_at(100, &[0; 512])), SubmitError::Misaligned { .. }));
    assert!(matches!(refusal(volume.write_at(0, &[0; 100])), SubmitError::Misaligned { .. }));
    assert!(matches!(
        refusal(volume.perform(Operation::Discard, u64::MAX - 511, 1024)),
        SubmitError::OutOfRange { .. }
    ));
}

/// A clone starts as its source, keeps the holes, and goes its own way afterwards.
#[test]
fn clone_is_sparse_and_independent() {
    let directory = directory();
    let path = new_volume(directory.path(), 64 * MIB);
    let mut volume = source::open(&source_of(&path, false), &OpenOptions::default()).unwrap();
    volume.write_at(33 * MIB, &[7; 4096]).unwrap();
    volume.close().unwrap();

    let target = directory.path().join("clone");
    let mut heard = 0;
    file::clone(&path, &target, 128 * MIB, &mut |done, _| heard = done).unwrap();
    assert_eq!(heard, 64 * MIB);
    let usage = file::usage(&target).unwrap();
    assert_eq!(usage.size_bytes, 128 * MIB);
    assert!(usage.allocated_bytes <= MIB, "{usage:?}");

    let mut clone = source::open(&source_of(&target, true), &OpenOptions::default()).unwrap();
    let mut bytes = [0; 4096];
    clone.read_at(33 * MIB, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
    clone.write_at(33 * MIB, &[9; 4096]).unwrap();
    let mut volume = source::open(&source_of(&path, false), &OpenOptions::default()).unwrap();
    volume.read_at(33 * MIB, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);

    assert!(matches!(file::create(&target, MIB), Err(FileError::Exists { .. })));
    drop(volume);
    assert!(matches!(
        file::clone(&path, &directory.path().join("small"), MIB, &mut |_, _| ()),
        Err(FileError::Shrink { .. })
    ));
}

/// What is not a volume is said to be none, and why.
#[test]
fn open_names_what_is_wrong() {
    let directory = directory();
    let open = |path: &Path| source::open(&source_of(path, false), &OpenOptions::default()).unwrap_err();
    assert!(matches!(open(&directory.path().join("none")), OpenError::File(FileError::NotFound { .. })));
    assert!(matches!(open(directory.path()), OpenError::File(FileError::NotAFile { .. })));
    let odd = directory.path().join("odd");
    std::fs::write(&odd, [0; 700]).unwrap();
    assert!(matches!(open(&odd), OpenError::File(FileError::Size { size_bytes: 700, .. })));
}

/// The wire form is what configurations carry, and it refuses what it does not know.
#[test]
fn source_has_the_agreed_wire_form() {
    let text = r#"{"rbd":{"conf":"/etc/ceph/ceph.conf","user":"admin","pool":"volumes","image":"v1"}}"#;
    let source: Source = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&source).unwrap(), text);
    assert!(serde_json::from_str::<Source>(r#"{"file":{"path":"/x","direct":true,"more":1}}"#).is_err());
}

/// Names the volume that [`holder_process`] must hold.
const HOLD: &str = "BASALT_TEST_HOLD";

/// Not a test of its own: the process that [`killed_holder_leaves_no_lock`] kills.
#[test]
fn holder_process() {
    let Some(path) = std::env::var_os(HOLD) else { return };
    let mut volume = source::open(&source_of(Path::new(&path), false), &OpenOptions::default()).unwrap();
    volume.write_at(0, &[7; 512]).unwrap();
    println!("HOLDER ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// A holder in another process is named; once killed it is in nobody's way, and what it wrote is there.
#[test]
fn killed_holder_leaves_no_lock() {
    let directory = directory();
    let path = new_volume(directory.path(), MIB);
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_process", "--nocapture"])
        .env(HOLD, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("HOLDER ready")));
    let error = source::open(&source_of(&path, false), &OpenOptions::default()).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", holder.id())), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut volume = source::open(&source_of(&path, false), &OpenOptions::default()).unwrap();
    let mut bytes = [0; 512];
    volume.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 512]);
}

/// QEMU's locks and ours keep each other out.
#[test]
fn qemu_cannot_write_a_volume_in_use() {
    require!(Need::Program("qemu-io"));
    let directory = directory();
    let path = new_volume(directory.path(), MIB);
    let write = || {
        let words = ["-f", "raw", "-c", "write 0 512", path.to_str().unwrap()];
        Command::new("qemu-io").args(words).output().unwrap().status.success()
    };
    assert!(write());
    let volume = source::open(&source_of(&path, false), &OpenOptions::default()).unwrap();
    assert!(!write());
    volume.close().unwrap();
    assert!(write());
}
