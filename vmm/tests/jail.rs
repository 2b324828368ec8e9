//! Shows that the jail holds: each test runs itself again in a process of its own, goes into the jail there, and tries what must not work.
//!
//! The parent judges by how the child ended: SIGSYS (31) for a system call that the filter refuses, 0 for a child whose own checks held.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use basalt_tests::require;
use basalt_tests::skip::Need;
use vmm::jail::privilege::Identity;
use vmm::jail::seccomp::{self, Stage, ThreadKind};
use vmm::jail::{self, Jail};

/// Set in the child's environment: the test is to go into the jail.
const CHILD: &str = "BASALT_JAIL_CHILD";
/// What the kernel sends for a system call that a filter traps.
const SIGSYS: i32 = 31;
/// An identity that owns nothing.
const NOBODY: Identity = Identity { uid: 64_999, gid: 64_999 };

/// Runs `body` in a child process; returns how it ended, or none in the child, where `body` has run.
fn in_child(test: &str, body: impl FnOnce()) -> Option<ExitStatus> {
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let own = std::env::current_exe().expect("a test knows its own program");
    let mut command = Command::new(own);
    // Who is in the jail cannot clean up after itself; and it must get through to its own directory as nobody.
    let scratch = tempfile::tempdir().expect("make a directory");
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o711)).expect("open the directory");
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1").env("TMPDIR", scratch.path());
    Some(command.output().expect("run the test again").status)
}

/// A directory that belongs to nobody, in the one that the parent takes away.
fn own_directory() -> PathBuf {
    let own = std::env::temp_dir().join("own");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
    own
}

#[test]
fn a_vcpu_thread_computes_and_allocates() {
    let ended = in_child("a_vcpu_thread_computes_and_allocates", || {
        seccomp::narrow(ThreadKind::Vcpu).unwrap();
        let numbers: Vec<u64> = (0..1 << 20).collect();
        assert_eq!(numbers.iter().sum::<u64>(), (1 << 19) * ((1 << 20) - 1));
    });
    assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
}

#[test]
fn a_vcpu_thread_that_opens_a_file_ends_the_process() {
    let ended = in_child("a_vcpu_thread_that_opens_a_file_ends_the_process", || {
        seccomp::narrow(ThreadKind::Vcpu).unwrap();
        drop(std::fs::File::open("/dev/null"));
    });
    assert!(ended.is_none_or(|status| status.signal() == Some(SIGSYS)), "{ended:?}");
}

#[test]
fn a_vcpu_thread_has_no_device_control_but_that_of_its_vcpu() {
    let ended = in_child("a_vcpu_thread_has_no_device_control_but_that_of_its_vcpu", || {
        seccomp::narrow(ThreadKind::Vcpu).unwrap();
        let _ = nix::unistd::isatty(std::io::stdin());
    });
    assert!(ended.is_none_or(|status| status.signal() == Some(SIGSYS)), "{ended:?}");
}

#[test]
fn a_device_thread_that_makes_a_socket_ends_the_process() {
    let ended = in_child("a_device_thread_that_makes_a_socket_ends_the_process", || {
        seccomp::narrow(ThreadKind::Devices).unwrap();
        drop(std::fs::File::open("/dev/null").unwrap());
        drop(std::net::UdpSocket::bind("127.0.0.1:0"));
    });
    assert!(ended.is_none_or(|status| status.signal() == Some(SIGSYS)), "{ended:?}");
}

#[test]
fn no_thread_of_a_guarded_process_starts_a_program() {
    let ended = in_child("no_thread_of_a_guarded_process_starts_a_program", || {
        seccomp::guard_process(Stage::Running).unwrap();
        std::thread::spawn(|| nix::unistd::execv(c"/bin/true", &[c"true"]).is_err()).join().unwrap();
    });
    assert!(ended.is_none_or(|status| status.signal() == Some(SIGSYS)), "{ended:?}");
}

#[test]
fn a_jailed_process_is_nobody_and_reaches_its_own_directory_only() {
    require!(Need::Root);
    let ended = in_child("a_jailed_process_is_nobody_and_reaches_its_own_directory_only", || {
        let own = own_directory();
        let jail = Jail { identity: Some(NOBODY), writable: vec![own.clone()] };
        let mut before = std::fs::File::open("/proc/thread-self/status").unwrap();
        let entered = jail::enter(&jail).unwrap();

        let status = std::fs::read_to_string("/proc/thread-self/status");
        if entered.filesystem {
            assert!(status.is_err(), "nothing outside of its directory can be read");
        }
        assert_eq!(nix::unistd::getuid().as_raw(), NOBODY.uid);
        let mut text = String::new();
        before.read_to_string(&mut text).unwrap();
        for line in ["Groups:\t", "CapInh:\t0", "CapPrm:\t0", "CapEff:\t0", "CapBnd:\t0", "CapAmb:\t0", "Seccomp:\t2"] {
            let zeros = if line.ends_with('0') { "000000000000000" } else { "" };
            assert!(text.lines().any(|said| said.trim_end() == format!("{line}{zeros}").trim_end()), "{line}: {text}");
        }
        assert!(nix::sys::prctl::get_no_new_privs().unwrap());
        std::fs::write(own.join("console.log"), "mine").unwrap();
        for path in ["/etc/passwd", "/proc/self/mem", "/dev/kvm"] {
            let opened = std::fs::File::open(path);
            assert!(!entered.filesystem || opened.is_err(), "{path} can be opened");
        }
    });
    assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
}

#[test]
fn a_jailed_process_that_asks_for_its_user_back_ends() {
    require!(Need::Root);
    let ended = in_child("a_jailed_process_that_asks_for_its_user_back_ends", || {
        jail::enter(&Jail { identity: Some(NOBODY), writable: vec![own_directory()] }).unwrap();
        let root = nix::unistd::Uid::from_raw(0);
        let _ = nix::unistd::setresuid(root, root, root);
    });
    assert!(ended.is_none_or(|status| status.signal() == Some(SIGSYS)), "{ended:?}");
}

/// Between the two steps of the jail a thread starts, as librados' threads do; what it may do is asked after the second step.
fn in_between<T: Send + 'static>(act: impl FnOnce(&std::path::Path) -> T + Send + 'static) -> T {
    let own = own_directory();
    let keyring = own.with_extension("keyring");
    std::fs::write(&keyring, "key").unwrap();
    let jail = Jail { identity: Some(NOBODY), writable: vec![own] };
    let _wall = jail::surround(&jail, std::slice::from_ref(&keyring)).unwrap();
    assert_eq!(std::fs::read_to_string(&keyring).unwrap(), "key", "what opening reads is within reach");
    assert!(std::fs::read("/etc/passwd").is_err(), "and nothing else is");
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        gone.recv().unwrap();
        act(&keyring)
    });
    jail::enter(&jail).unwrap();
    go.send(()).unwrap();
    thread.join().unwrap()
}

#[test]
fn a_thread_that_started_between_the_walls_is_nobody_and_sees_no_more_than_it_needs() {
    require!(Need::Root);
    let ended = in_child("a_thread_that_started_between_the_walls_is_nobody_and_sees_no_more_than_it_needs", || {
        in_between(|keyring| {
            assert_eq!(nix::unistd::getuid().as_raw(), NOBODY.uid);
            assert_eq!(std::fs::read_to_string(keyring).unwrap(), "key");
            for path in ["/etc/passwd", "/proc/self/mem", "/dev/kvm"] {
                assert!(std::fs::File::open(path).is_err(), "{path} can be opened");
            }
            assert!(std::fs::write("/tmp/of-a-jailed-thread", "x").is_err());
        });
    });
    assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
}

#[test]
fn a_thread_that_started_between_the_walls_starts_no_program() {
    require!(Need::Root);
    let ended = in_child("a_thread_that_started_between_the_walls_starts_no_program", || {
        in_between(|_| nix::unistd::execv(c"/bin/true", &[c"true"]).is_err());
    });
    assert!(ended.is_none_or(|status| status.signal() == Some(SIGSYS)), "{ended:?}");
}

#[test]
fn an_identity_of_root_and_a_directory_that_is_not_there_are_refused() {
    require!(Need::Root);
    let ended = in_child("an_identity_of_root_and_a_directory_that_is_not_there_are_refused", || {
        let root = Jail { identity: Some(Identity { uid: 0, gid: 5 }), writable: vec![] };
        let missing = Jail { identity: Some(NOBODY), writable: vec![PathBuf::from("/nonexistent/directory")] };
        assert!(jail::enter(&missing).unwrap_err().to_string().contains("confine"));
        assert!(jail::enter(&root).unwrap_err().to_string().contains("give up privileges"));
    });
    assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
}
