//! The console's log: a file of at most [`LOG_MAX_BYTES`], and the one before it beside it as `NAME.1`.
//!
//! Both files are opened once, before the process is jailed, so rotation copies rather than renames.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The size at which the log is rotated.
pub const LOG_MAX_BYTES: u64 = 1 << 20;

/// An open log with its predecessor.
#[derive(Debug)]
pub struct Log {
    current: File,
    previous: File,
    bytes: u64,
}

impl Log {
    /// Opens or makes the log at `path`; output goes after what is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path);
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        let mut current = open(path)?;
        let bytes = current.seek(SeekFrom::End(0))?;
        Ok(Self { current, previous: open(&PathBuf::from(older))?, bytes })
    }

    /// Appends `bytes`, rotating first when the log is full.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= LOG_MAX_BYTES {
            self.rotate()?;
        }
        self.current.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.previous.set_len(0)?;
        self.previous.seek(SeekFrom::Start(0))?;
        self.current.seek(SeekFrom::Start(0))?;
        io::copy(&mut self.current, &mut self.previous)?;
        self.current.set_len(0)?;
        self.current.seek(SeekFrom::Start(0))?;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_grows_rotates_once_and_goes_on_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = Log::open(&path).unwrap();
        log.write(b"first").unwrap();
        drop(log);
        let mut log = Log::open(&path).unwrap();
        log.write(&vec![b'x'; 1 << 20]).unwrap();
        log.write(b"after").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");
        let older = std::fs::read(directory.path().join("console.log.1")).unwrap();
        assert_eq!((older.len(), &older[..5]), ((1 << 20) + 5, &b"first"[..]));
    }
}
