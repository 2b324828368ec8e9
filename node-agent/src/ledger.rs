//! What the agent must not forget: the accepted spec, the ports that came from other hosts and a record of each machine, as files under `<state>/ledger`.
//!
//! A file is replaced whole: written beside, synced, renamed, directory synced. A crash or a full disk leaves the old one. A file that cannot
//! be read is never deleted and never taken for absent: the caller gets an error that names the file and the way out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use model::MachineId;
use model::arrival::Arrived;
use model::spec::NodeSpec;
use model::spec::wire::{self, DecodeError};

use serde::{Deserialize, Serialize};

use crate::record::{MachineRecord, RecordEnvelope};

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or directory could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written; the old contents are kept.
    #[error("write {path} (the old contents are kept)")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The stored spec is damaged.
    #[error("read the accepted spec from {path}: the file is damaged")]
    SpecDamaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<DecodeError>,
    },
    /// A machine's record is damaged.
    #[error("read the record of a machine from {path}: the file is damaged")]
    RecordDamaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The note of ports that came is damaged.
    #[error("read the ports that came from {path}: the file is damaged")]
    ArrivalsDamaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A value could not be turned into text.
    #[error("encode {path}")]
    Encode {
        /// The file that it was for.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl LedgerError {
    /// What an operator can do.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::SpecDamaged { path, .. } => format!(
                "machines and flows go on as they are; move {} away and start the agent again: it then takes the spec anew from its source",
                path.display()
            ),
            Self::RecordDamaged { path, .. } => format!(
                "the machine, if it runs, goes on; compare {} with `node-agent status`, mend it or move it away once the machine has no process",
                path.display()
            ),
            Self::ArrivalsDamaged { path, .. } => format!(
                "move {} away and start the agent again: ports that it named are switched by the next frame of their machines",
                path.display()
            ),
            Self::Write { source, path } if is_full(source) => {
                format!("free space on the file system of {}: nothing new is taken in before", path.display())
            }
            Self::Read { path, .. } | Self::Write { path, .. } | Self::Encode { path, .. } => {
                format!("look at the file system and the permissions of {}", path.display())
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The ports that came, as they are stored, under their version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "version")]
enum Arrivals {
    /// The first version.
    #[serde(rename = "1")]
    V1(Noted),
}

/// Ports that came, and the boot of the host that they came in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    boot_id: String,
    arrived: Vec<Arrived>,
}

/// The ledger's directory.
#[derive(Debug, Clone)]
pub struct Ledger {
    directory: PathBuf,
}

/// The records of machines; a record that cannot be read stands beside the rest with its error.
pub type Records = BTreeMap<MachineId, Result<MachineRecord, LedgerError>>;

impl Ledger {
    /// Opens the ledger below `state`, making its directories.
    ///
    /// # Errors
    /// [`LedgerError::Write`] when they cannot be made.
    pub fn open(state: &Path) -> Result<Self, LedgerError> {
        let directory = state.join("ledger");
        let machines = directory.join("machines");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&machines)
            .map_err(|source| LedgerError::Write { path: machines, source })?;
        Ok(Self { directory })
    }

    fn spec_path(&self) -> PathBuf {
        self.directory.join("spec.json")
    }

    fn arrivals_path(&self) -> PathBuf {
        self.directory.join("arrivals.json")
    }

    fn record_path(&self, id: MachineId) -> PathBuf {
        self.directory.join("machines").join(format!("{id}.json"))
    }

    /// The accepted spec, if there is one.
    ///
    /// # Errors
    /// [`LedgerError::SpecDamaged`] when the file is no spec, [`LedgerError::Read`] when it cannot be read.
    pub fn spec(&self) -> Result<Option<NodeSpec>, LedgerError> {
        let path = self.spec_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LedgerError::Read { path, source }),
        };
        wire::decode(&bytes).map(Some).map_err(|source| LedgerError::SpecDamaged { path, source: Box::new(source) })
    }

    /// Keeps `spec` in place of the one before.
    ///
    /// # Errors
    /// [`LedgerError::Write`]; the one before is kept then.
    pub fn keep_spec(&self, spec: &NodeSpec) -> Result<(), LedgerError> {
        let path = self.spec_path();
        let bytes = wire::encode(spec).map_err(|source| LedgerError::Encode { path: path.clone(), source })?;
        replace(&path, &bytes, 0o600)
    }

    /// The ports that were awaited here and came, in this boot of the host: after another none has a machine here any more.
    ///
    /// # Errors
    /// [`LedgerError::ArrivalsDamaged`] when the file is something else, [`LedgerError::Read`] when it cannot be read.
    pub fn arrivals(&self, boot_id: &str) -> Result<Vec<Arrived>, LedgerError> {
        let path = self.arrivals_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(LedgerError::Read { path, source }),
        };
        let Arrivals::V1(noted) =
            serde_json::from_slice(&bytes).map_err(|source| LedgerError::ArrivalsDamaged { path, source })?;
        Ok(if noted.boot_id == boot_id { noted.arrived } else { Vec::new() })
    }

    /// Keeps them in place of those before; nothing is written when they are the same.
    ///
    /// # Errors
    /// [`LedgerError::Write`]; those before are kept then.
    pub fn keep_arrivals(&self, boot_id: &str, arrived: &[Arrived]) -> Result<(), LedgerError> {
        let path = self.arrivals_path();
        if self.arrivals(boot_id).is_ok_and(|before| before == arrived) {
            return Ok(());
        }
        if arrived.is_empty() {
            return fs::remove_file(&path).map_err(|source| LedgerError::Write { path, source });
        }
        let noted = Arrivals::V1(Noted { boot_id: boot_id.to_owned(), arrived: arrived.to_vec() });
        let bytes =
            serde_json::to_vec_pretty(&noted).map_err(|source| LedgerError::Encode { path: path.clone(), source })?;
        replace(&path, &bytes, 0o600)
    }

    /// The records of all machines.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the directory cannot be listed.
    pub fn records(&self) -> Result<Records, LedgerError> {
        let directory = self.directory.join("machines");
        let failed = |source| LedgerError::Read { path: directory.clone(), source };
        let mut records = Records::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let is_record = path.extension().is_some_and(|extension| extension == "json");
            if let (true, Some(id)) = (is_record, stem.and_then(|stem| stem.parse().ok())) {
                records.insert(id, read_record(&path));
            }
        }
        Ok(records)
    }

    /// The record of one machine.
    ///
    /// # Errors
    /// [`LedgerError`] when it is not there or cannot be read.
    pub fn record(&self, id: MachineId) -> Result<MachineRecord, LedgerError> {
        read_record(&self.record_path(id))
    }

    /// Keeps a machine's record in place of the one before.
    ///
    /// # Errors
    /// [`LedgerError::Write`]; the one before is kept then.
    pub fn keep_record(&self, record: &MachineRecord) -> Result<(), LedgerError> {
        let path = self.record_path(record.id);
        let envelope = RecordEnvelope::from(record.clone());
        let bytes = serde_json::to_vec_pretty(&envelope)
            .map_err(|source| LedgerError::Encode { path: path.clone(), source })?;
        replace(&path, &bytes, 0o600)
    }

    /// Forgets a machine that is gone.
    ///
    /// # Errors
    /// [`LedgerError::Write`] when the file cannot be removed.
    pub fn forget(&self, id: MachineId) -> Result<(), LedgerError> {
        let path = self.record_path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LedgerError::Write { path, source }),
            _ => Ok(()),
        }
    }
}

fn read_record(path: &Path) -> Result<MachineRecord, LedgerError> {
    let bytes = fs::read(path).map_err(|source| LedgerError::Read { path: path.to_owned(), source })?;
    let envelope: RecordEnvelope = serde_json::from_slice(&bytes)
        .map_err(|source| LedgerError::RecordDamaged { path: path.to_owned(), source })?;
    Ok(envelope.into())
}

/// Replaces a file whole: after a crash at any point it has either the old or the new contents.
///
/// # Errors
/// [`LedgerError::Write`]; the old contents are kept then.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), LedgerError> {
    let beside = path.with_extension("new");
    let written = (|| {
        let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    })();
    written.map_err(|source| {
        // What was half written only takes room; that it could not be removed changes nothing.
        let _ = fs::remove_file(&beside);
        LedgerError::Write { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_tests::require;
    use basalt_tests::skip::Need;
    use model::HostId;
    use model::spec::{Generation, SpecParts};
    use std::net::Ipv4Addr;
    use std::process::Command;

    fn spec(generation: u64) -> NodeSpec {
        NodeSpec::check(SpecParts {
            generation: Generation(generation),
            host: HostId::from_uuid(uuid::Uuid::from_u128(1)),
            tunnel: Ipv4Addr::LOCALHOST,
            networks: vec![],
            subnets: vec![],
            routers: vec![],
            address_groups: vec![],
            balancers: vec![],
            firewall_policies: vec![],
            mirrors: vec![],
            groups: vec![],
            ports: vec![],
            images: vec![],
            volumes: vec![],
            retired_volumes: vec![],
            machines: vec![],
        })
        .unwrap()
    }

    #[test]
    fn what_was_kept_is_read_back_and_the_rest_is_ignored() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path()).unwrap();
        assert_eq!(ledger.spec().unwrap(), None);
        ledger.keep_spec(&spec(3)).unwrap();
        assert_eq!(ledger.spec().unwrap(), Some(spec(3)));
        let record = MachineRecord { id: MachineId::from_uuid(uuid::Uuid::from_u128(2)), uid: 7, launch: None };
        ledger.keep_record(&record).unwrap();
        std::fs::write(state.path().join("ledger/machines/readme.txt"), "not ours").unwrap();
        let records = ledger.records().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[&record.id].as_ref().unwrap(), &record);
        ledger.forget(record.id).unwrap();
        ledger.forget(record.id).unwrap();
        assert!(ledger.records().unwrap().is_empty());
    }

    /// What came is known after a restart of the agent, and not after one of the host.
    #[test]
    fn ports_that_came_are_noted_until_the_host_is_restarted() {
        let state = tempfile::tempdir().unwrap();
        let open = || Ledger::open(state.path()).unwrap();
        let port = |number| model::PortId::from_uuid(uuid::Uuid::from_u128(number));
        let came = [Arrived { port: port(1), serial: 3 }, Arrived { port: port(2), serial: 1 }];
        assert_eq!(open().arrivals("boot 1").unwrap(), []);
        open().keep_arrivals("boot 1", &[]).unwrap();
        open().keep_arrivals("boot 1", &came).unwrap();
        assert_eq!(open().arrivals("boot 1").unwrap(), came);
        assert_eq!(open().arrivals("boot 2").unwrap(), [], "the host was restarted");
        open().keep_arrivals("boot 2", &came[1..]).unwrap();
        assert_eq!(open().arrivals("boot 2").unwrap(), came[1..]);
        open().keep_arrivals("boot 2", &[]).unwrap();
        assert!(!state.path().join("ledger/arrivals.json").exists(), "nothing is left of them");
        for text in ["", "{}", r#"{"version":"2"}"#, r#"{"version":"1","boot_id":"b","arrived":[{"port":"x"}]}"#] {
            std::fs::write(state.path().join("ledger/arrivals.json"), text).unwrap();
            let error = open().arrivals("boot 1").unwrap_err();
            assert!(
                matches!(error, LedgerError::ArrivalsDamaged { .. }) && error.remedy().contains("move"),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_file_of_another_version_is_damaged_not_absent() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path()).unwrap();
        for text in ["", "{}", r#"{"version":"2"}"#, "\u{0}\u{0}"] {
            std::fs::write(state.path().join("ledger/spec.json"), text).unwrap();
            let error = ledger.spec().unwrap_err();
            assert!(matches!(error, LedgerError::SpecDamaged { .. }), "{text:?}");
            assert!(error.remedy().contains("move"), "{}", error.remedy());
        }
    }

    /// A file system of 256 KiB that is full: the error names the way out, and the spec before is in force.
    #[test]
    fn a_full_disk_keeps_the_old_contents() {
        require!(Need::Root);
        let state = tempfile::tempdir().unwrap();
        let mount = |words: &[&str]| Command::new("mount").args(words).arg(state.path()).status().unwrap().success();
        assert!(mount(&["-t", "tmpfs", "-o", "size=256k", "tmpfs"]));
        let outcome = std::panic::catch_unwind(|| {
            let ledger = Ledger::open(state.path()).unwrap();
            ledger.keep_spec(&spec(1)).unwrap();
            let mut fill = File::create(state.path().join("fill")).unwrap();
            while fill.write_all(&[0; 4096]).is_ok() {}
            let error = ledger.keep_spec(&spec(2)).unwrap_err();
            assert!(error.remedy().contains("free space"), "{}", error.remedy());
            assert_eq!(ledger.spec().unwrap().unwrap().generation(), Generation(1));
        });
        assert!(Command::new("umount").arg(state.path()).status().unwrap().success());
        outcome.unwrap();
    }
}
