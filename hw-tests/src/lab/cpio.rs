//! Archives in the form the kernel unpacks as its first root: cpio "newc", uncompressed.
//!
//! Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Invariant: equal input gives equal bytes
//! (times and owners are zero), so an archive can be named by its content. Uncompressed, because unpacking under
//! emulation costs more than loading.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds a directory and those above it.
    ///
    /// # Errors
    /// The archive is larger than the format can say.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.directories.insert(path.to_owned());
        self.entry(path, TYPE_DIRECTORY | 0o755, &[])
    }

    /// Adds a file with `mode` (permission bits) and `content`.
    ///
    /// # Errors
    /// The content is larger than the format can say (4 GiB).
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, TYPE_FILE | mode, content)
    }

    /// Adds a copy of a file of this machine.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn copy(&mut self, path: &str, mode: u32, source: &Path) -> Result<()> {
        let content = std::fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        self.file(path, mode, &content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// The target is longer than the format can say.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, TYPE_LINK | 0o777, target.as_bytes())
    }

    /// The finished archive.
    ///
    /// # Errors
    /// As for the other entries.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.directory(parent))
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large for cpio"))?;
        let name_size = u32::try_from(path.len() + 1).with_context(|| format!("the name {path} is too long"))?;
        let links = if mode & TYPE_DIRECTORY == TYPE_DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device major and minor, their copies for nodes, name, check
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    //! Shows that cpio(1), where it is installed, reads back what was written.
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_it_back() {
        let mut archive = Archive::default();
        archive.file("bin/tool", 0o755, b"odd").unwrap();
        archive.link("bin/sh", "tool").unwrap();
        archive.directory("proc").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let list = Command::new("cpio").args(["-t", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut list) = list else {
            basalt_tests::skip::announce("cpio_reads_it_back", "cpio(1)");
            return;
        };
        list.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = list.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "bin\nbin/tool\nbin/sh\nproc\n");
    }
}
