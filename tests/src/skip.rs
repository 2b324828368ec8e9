//! Says what a test needs from the machine, and skips visibly where it is missing.
//!
//! A test opens with [`crate::require!`]. When all needs are met nothing happens; otherwise one line
//! `SKIP <test>: <what is missing>` goes to standard output and the test returns. With `BASALT_SKIP_LOG=FILE` the line
//! is also appended to that file, because test runners hide the output of tests that pass.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Names the file that collects skip lines of a whole test run.
const SKIP_LOG_VARIABLE: &str = "BASALT_SKIP_LOG";

/// Where programs are looked for besides `PATH`: daemons live in `sbin`, which is absent from many users' `PATH`.
const SYSTEM_PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// One thing that a test may need from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Effective user 0 with the right to make network namespaces.
    Root,
    /// `ovsdb-server`, `ovs-vswitchd` and their command-line tools.
    OpenVswitch,
    /// `/dev/kvm`, opened for reading and writing.
    Kvm,
    /// `ceph-mon`, `ceph-mgr`, `ceph-osd`, `ceph` and librbd.
    Ceph,
    /// Any other program, by name.
    Program(&'static str),
    /// Any file, by absolute path.
    File(&'static str),
}

impl Need {
    /// What is missing, in words with the way out, or `None` when the need is met.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "root (run the test as user 0)".to_owned()),
            Self::OpenVswitch => missing_programs(
                &["ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"],
                "apt-get install openvswitch-switch",
            ),
            Self::Kvm => {
                let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
                opened.err().map(|error| format!("KVM (open /dev/kvm: {error})"))
            }
            Self::Ceph => missing_programs(
                &["ceph-mon", "ceph-mgr", "ceph-osd", "ceph"],
                "apt-get install ceph-mon ceph-mgr ceph-osd ceph-common",
            )
            .or_else(missing_librbd),
            Self::Program(name) => missing_programs(&[name], "install the package that has it"),
            Self::File(path) => (!Path::new(path).exists()).then(|| format!("file {path}")),
        }
    }
}

fn missing_programs(names: &[&str], way_out: &str) -> Option<String> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| find_program(name).is_none()).collect();
    (!missing.is_empty()).then(|| format!("{} ({way_out})", missing.join(", ")))
}

fn missing_librbd() -> Option<String> {
    let directories = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    let found = directories.iter().any(|directory| Path::new(directory).join("librbd.so.1").exists());
    (!found).then(|| "librbd.so.1 (apt-get install librbd1)".to_owned())
}

/// The path of program `name`, looked up in `PATH` and then in the system's own directories.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_PROGRAM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// What [`crate::require!`] returns from a test that is skipped.
pub trait Skipped {
    /// The value of a test that had nothing to show.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

impl Skipped for ExitCode {
    fn skipped() -> Self {
        Self::SUCCESS
    }
}

/// Prints the skip line of `test` when one of `needs` is missing, and says whether it did.
#[must_use]
pub fn check(test: &str, needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return false;
    }
    announce(test, &missing.join("; "));
    true
}

/// Prints the skip line for a reason that no [`Need`] covers, for example a refusal found out on the way.
#[expect(clippy::print_stdout, reason = "the skip line is what a skipped test has to say to whoever runs it")]
pub fn announce(test: &str, missing: &str) {
    let line = format!("SKIP {test}: {missing}");
    println!("{line}");
    // This crate's own unit tests skip on purpose, to see that it works: no test run has lost anything by it.
    let Some(path) = std::env::var_os(SKIP_LOG_VARIABLE).filter(|_| !cfg!(test)) else { return };
    let written =
        OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| writeln!(file, "{line}"));
    if let Err(error) = written {
        println!("SKIP {test}: cannot append to {}: {error}", path.display());
    }
}

/// The name of the function in which `marker` was defined; the mechanism behind [`crate::require!`].
#[doc(hidden)]
#[must_use]
pub fn function_name<T>(_marker: &T) -> &'static str {
    let name = std::any::type_name::<T>();
    let name = name.strip_suffix("::marker").unwrap_or(name);
    name.trim_end_matches("::{{closure}}")
}

/// Returns from the calling test, with a visible line, unless the machine has all that is listed.
///
/// ```
/// use basalt_tests::{require, skip::Need};
///
/// fn switches_packets() {
///     require!(Need::Root, Need::OpenVswitch);
///     // from here on both are there
/// }
/// switches_packets();
/// ```
#[macro_export]
macro_rules! require {
    ($($need:expr),+ $(,)?) => {{
        fn marker() {}
        if $crate::skip::check($crate::skip::function_name(&marker), &[$($need),+]) {
            return $crate::skip::Skipped::skipped();
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_way_out() {
        let missing = Need::Program("no-such-program-anywhere").missing().unwrap();
        assert!(missing.contains("no-such-program-anywhere"), "{missing}");
        assert_eq!(Need::Program("sh").missing(), None);
        assert_eq!(Need::File("/nonexistent/file").missing().unwrap(), "file /nonexistent/file");
    }

    #[test]
    fn require_returns_before_the_rest_of_the_test() {
        fn body() -> Result<(), String> {
            require!(Need::File("/nonexistent/file"));
            Err("went on without what it needs".to_owned())
        }
        assert_eq!(body(), Ok(()));
    }

    #[test]
    fn the_skip_line_names_the_test() {
        fn marker() {}
        assert!(function_name(&marker).ends_with("skip::tests::the_skip_line_names_the_test"));
    }
}
