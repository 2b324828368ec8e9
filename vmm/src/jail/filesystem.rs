//! The file system wall, by landlock: what is open stays open, and of the rest only a VM's own directories can be reached.
//!
//! Source: landlock(7). Holds for the calling thread and every thread that it makes from then on.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
};

/// The landlock version that we know all rights of; an older kernel holds those that it knows.
const VERSION: ABI = ABI::V3;

/// Why the wall could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    /// A path that should stay reachable can not be opened.
    #[error("open {path:?} to keep it reachable")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<PathFdError>,
    },
    /// The kernel refused the rules.
    #[error("restrict the process to {count} paths")]
    Restrict {
        /// How many paths the rules name.
        count: usize,
        /// Why.
        #[source]
        source: Box<RulesetError>,
    },
}

/// A wall that stands. The paths of its rules stay open with it: a file system that keeps no inodes (9p) would not know them again.
#[derive(Debug)]
#[must_use = "the paths that stay within reach may be forgotten when it is dropped"]
pub struct Wall {
    /// Whether the kernel holds it: one without landlock does not.
    pub is_held: bool,
    _paths: Vec<PathFd>,
}

/// Leaves only the `writable` directories and what is `readable` within reach. A second wall narrows what the first one left.
///
/// # Errors
/// [`FilesystemError`] when a path can not be opened or the kernel refuses rules that it knows.
pub fn confine(writable: &[PathBuf], readable: &[PathBuf]) -> Result<Wall, FilesystemError> {
    let count = writable.len() + readable.len();
    let restrict = |source| FilesystemError::Restrict { count, source: Box::new(source) };
    let every = AccessFs::from_all(VERSION);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(every)
        .and_then(Ruleset::create)
        .map_err(restrict)?;
    // Everything but executing: nothing in these directories is a program.
    let all = writable.iter().map(|path| (path, every & !AccessFs::Execute));
    let mut paths = Vec::with_capacity(count);
    for (path, rights) in all.chain(readable.iter().map(|path| (path, AccessFs::ReadFile | AccessFs::ReadDir))) {
        let path = open(path)?;
        ruleset = ruleset.add_rule(PathBeneath::new(&path, rights)).map_err(restrict)?;
        paths.push(path);
    }
    let status = ruleset.restrict_self().map_err(restrict)?;
    Ok(Wall { is_held: status.ruleset != RulesetStatus::NotEnforced, _paths: paths })
}

fn open(path: &Path) -> Result<PathFd, FilesystemError> {
    PathFd::new(path).map_err(|source| FilesystemError::Open { path: path.to_owned(), source: Box::new(source) })
}
