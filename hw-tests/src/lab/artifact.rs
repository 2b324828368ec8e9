//! The artifact cache: things made from packages and sources, each under a name that its inputs decide.
//!
//! Invariant: a directory in the cache is complete and never changes. It is made under a temporary name and renamed in
//! one step, so a killed run leaves nothing half made under a final name. A lock keeps two runs from making the same.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use super::debian::{Packages, sha256_hex};

/// Names a different directory for the cache, so that several working copies can share one.
pub const CACHE_VARIABLE: &str = "BASALT_LAB_CACHE";

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The workspace's cache, `target/lab/cache`, or what `BASALT_LAB_CACHE` names.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open() -> Result<Self> {
        let named = std::env::var_os(CACHE_VARIABLE).map(PathBuf::from);
        Self::at(&named.unwrap_or_else(|| lab_directory().join("cache")))
    }

    /// A cache at `directory`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn at(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Self { directory: directory.canonicalize()? })
    }

    /// The downloaded packages.
    ///
    /// # Errors
    /// Their directory cannot be made.
    pub fn packages(&self) -> Result<Packages> {
        Packages::at(&self.directory.join("packages"))
    }

    /// The directory `NAME-HASH` for `inputs`, made by `make` in an empty directory when it is not there yet.
    ///
    /// # Errors
    /// What `make` fails with, or the cache cannot be written.
    pub fn get(&self, name: &str, inputs: &[&str], make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let hash = sha256_hex(inputs.join("\0").as_bytes());
        let place = self.directory.join(format!("{name}-{}", &hash[..16]));
        if place.is_dir() {
            return Ok(place);
        }
        let lock = File::create(self.directory.join(format!("{name}.lock")))?;
        let _held =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking the cache")?;
        if place.is_dir() {
            return Ok(place);
        }
        let work = tempfile::Builder::new().prefix(&format!(".{name}-")).tempdir_in(&self.directory)?;
        let inside = work.path().join("made");
        fs::create_dir(&inside)?;
        make(&inside).with_context(|| format!("making the artifact {name}"))?;
        fs::rename(&inside, &place).with_context(|| format!("placing {}", place.display()))?;
        Ok(place)
    }

    /// A small remembered answer, such as whether this machine's KVM boots a stock kernel.
    #[must_use]
    pub fn remembered(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.directory.join(name)).ok()
    }

    /// Remembers an answer.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn remember(&self, name: &str, answer: &str) -> Result<()> {
        write_atomically(&self.directory.join(name), answer.as_bytes())
    }
}

/// The workspace's root directory.
#[must_use]
pub fn workspace() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory.parent().unwrap_or(crate_directory).to_owned()
}

/// Where the lab keeps everything: `target/lab` of the workspace.
#[must_use]
pub fn lab_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    target.join("lab")
}

/// Writes a file so that a reader sees the old content or the new, never a part.
///
/// # Errors
/// The file cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Shows that an artifact is made once per input and that a failed making leaves nothing.
    use super::*;

    #[test]
    fn made_once_for_the_same_inputs() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::at(home.path()).unwrap();
        let place = cache.get("x", &["1"], |dir| Ok(fs::write(dir.join("f"), "1")?)).unwrap();
        let again = cache.get("x", &["1"], |_| panic!("made twice")).unwrap();
        assert_eq!(place, again);
        assert_ne!(place, cache.get("x", &["2"], |_| Ok(())).unwrap());
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::at(home.path()).unwrap();
        assert!(cache.get("x", &["1"], |_| anyhow::bail!("no")).is_err());
        let left: Vec<_> = fs::read_dir(home.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["x.lock"]);
    }
}
