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
    /// A directory that should stay reachable can not be opened.
    #[error("open {path:?} to keep it reachable")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<PathFdError>,
    },
    /// The kernel refused the rules.
    #[error("restrict the process to {count} directories")]
    Restrict {
        /// How many directories the rules name.
        count: usize,
        /// Why.
        #[source]
        source: Box<RulesetError>,
    },
}

/// Leaves only the `writable` directories within reach. Says whether the kernel holds it: one without landlock does not.
///
/// # Errors
/// [`FilesystemError`] when a directory can not be opened or the kernel refuses rules that it knows.
pub fn confine(writable: &[PathBuf]) -> Result<bool, FilesystemError> {
    let restrict = |source| FilesystemError::Restrict { count: writable.len(), source: Box::new(source) };
    let every = AccessFs::from_all(VERSION);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(every)
        .and_then(Ruleset::create)
        .map_err(restrict)?;
    // Everything but executing: nothing in these directories is a program.
    let rights = every & !AccessFs::Execute;
    for path in writable {
        ruleset = ruleset.add_rule(PathBeneath::new(open(path)?, rights)).map_err(restrict)?;
    }
    let status = ruleset.restrict_self().map_err(restrict)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn open(path: &Path) -> Result<PathFd, FilesystemError> {
    PathFd::new(path).map_err(|source| FilesystemError::Open { path: path.to_owned(), source: Box::new(source) })
}
