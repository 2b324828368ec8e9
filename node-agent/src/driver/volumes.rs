//! The real volumes: sparse files below `<state>/volumes`, and RBD images through a worker process.
//!
//! Volumes and bases seen on Ceph are remembered for `REMEMBER`: a settled host asks the cluster nothing. What was not there is asked for at
//! each look. A cluster that did not answer is in doubt until a probe says otherwise: looks do not wait for it meanwhile, so that it holds up
//! nothing but its volumes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::image::{Image, ImageKind};
use model::observed::Problem;
use model::volume::{Volume, VolumeBackend};
use storage::file::{self, FileError};
use storage::format::Format;
use storage::image::{ImageError, Import};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BaseImage, Failure, Volumes, VolumesSeen, blocking, images};
use crate::config::Config;
use crate::record::Holder;
use crate::seen::Look;
use crate::worker::rbd::IMAGE_BYTES_MAX;
use crate::worker::{self, Answer, Task, Work};

/// How long what was seen on Ceph is taken to be there still.
const REMEMBER: Duration = Duration::from_secs(300);
/// How long a look at Ceph may take: less than a look in all.
const LOOK_LIMIT: Duration = Duration::from_secs(15);
/// How long a change on Ceph may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// How long an import into Ceph may take.
const IMPORT_LIMIT: Duration = Duration::from_secs(1800);

/// Whether the cluster answered when it was asked last.
static CLUSTER_ANSWERED: AtomicBool = AtomicBool::new(false);

/// Whether the cluster answered when it was asked last.
#[must_use]
pub fn cluster_answered() -> bool {
    CLUSTER_ANSWERED.load(Ordering::Relaxed)
}

/// The file of a local volume.
#[must_use]
pub fn local_path(state: &Path, volume: &Volume) -> PathBuf {
    state.join("volumes").join(format!("{}.raw", volume.storage_name()))
}

/// The file of a local base.
fn local_base(state: &Path, image: &Image) -> PathBuf {
    state.join("volumes").join(format!("{}.raw", base_name(image)))
}

/// The name of a base, of its RBD image or the stem of its file: by its content, as [`storage::image`] has it.
fn base_name(image: &Image) -> String {
    format!("image-{}", image.sha256)
}

/// What is said when a volume is on Ceph and this host has none.
#[must_use]
pub fn no_ceph() -> Failure {
    Failure::new(
        "use a volume on Ceph: this host has no [ceph] section in its configuration",
        "set ceph.conf, ceph.user and ceph.pool, and install librbd1",
    )
}

/// Volumes on this host and on its cluster.
#[derive(Debug, Clone)]
pub struct VolumeStore {
    config: Arc<Config>,
    program: PathBuf,
    remembered: Arc<Mutex<BTreeMap<String, Remembered>>>,
    /// Why the cluster did not answer last, until it does.
    doubt: Arc<Mutex<Option<Problem>>>,
    /// Notified when doubt begins.
    doubted: Arc<Notify>,
}

/// Something that was on Ceph.
#[derive(Debug, Clone, Copy)]
struct Remembered {
    size_bytes: u64,
    at: Instant,
}

impl VolumeStore {
    /// A driver.
    ///
    /// # Errors
    /// [`Failure`] when this program's own path is unknown.
    pub fn new(config: Arc<Config>) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|source| Failure::caused("find this program's own file", "is /proc mounted?", source))?;
        let (remembered, doubt, doubted) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Self { config, program, remembered, doubt, doubted })
    }

    async fn ask(&self, work: Work, limit: Duration) -> Result<Answer, Failure> {
        let ceph = self.config.ceph.clone().ok_or_else(no_ceph)?;
        let answer = worker::ask(&self.program, &Task { ceph, work }, limit).await;
        if answer.is_ok() {
            CLUSTER_ANSWERED.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Asks the cluster whether it answers, for those who want to know before there is a volume on it.
    ///
    /// # Errors
    /// [`Failure`] when it does not, or when none is configured.
    pub async fn probe(&self) -> Result<(), Failure> {
        let answer = self.ask(Work::Look { images: Vec::new(), bases: Vec::new() }, LOOK_LIMIT).await;
        CLUSTER_ANSWERED.store(answer.is_ok(), Ordering::Relaxed);
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = answer.as_ref().err().map(Failure::problem);
        answer.map(drop)
    }

    /// Returns when a look finds the cluster in doubt: time to [`VolumeStore::probe`].
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Asks the cluster, unless it is in doubt; an answer that fails begins doubt.
    async fn ask_unless_in_doubt(&self, work: Work) -> Result<Answer, Problem> {
        let doubt = self.doubt.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(problem) = doubt {
            return Err(problem);
        }
        let answer = self.ask(work, LOOK_LIMIT).await.map_err(|failure| failure.problem());
        // Without a cluster to ask there is nothing to doubt.
        if let (Err(problem), Some(_)) = (&answer, &self.config.ceph) {
            *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem.clone());
            self.doubted.notify_one();
        }
        answer
    }

    fn recall(&self, key: &str) -> Option<u64> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(key).filter(|seen| seen.at.elapsed() < REMEMBER).map(|seen| seen.size_bytes)
    }

    fn remember(&self, key: String, size_bytes: u64) {
        let seen = Remembered { size_bytes, at: Instant::now() };
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).insert(key, seen);
    }

    fn forget(&self, key: &str) {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    async fn look_ceph(&self, volumes: &[(String, Volume)], bases: &[(String, BaseImage)], seen: &mut VolumesSeen) {
        let mut images = Vec::new();
        for (pool, volume) in volumes {
            match self.recall(&key(pool, &volume.storage_name())) {
                Some(size) => drop(seen.volumes.insert(volume.id, Look::Known(Some(size)))),
                None => images.push((pool.clone(), volume.storage_name())),
            }
        }
        let mut missing = Vec::new();
        for (pool, base) in bases {
            match self.recall(&key(pool, &base_name(&base.image))) {
                Some(_) => drop(seen.bases.insert(base.base(), Look::Known(true))),
                None => missing.push((pool.clone(), base_name(&base.image))),
            }
        }
        if images.is_empty() && missing.is_empty() {
            return;
        }
        let answer = self.ask_unless_in_doubt(Work::Look { images, bases: missing }).await;
        self.take_look(volumes, bases, answer, seen);
    }

    fn take_look(
        &self,
        volumes: &[(String, Volume)],
        bases: &[(String, BaseImage)],
        answer: Result<Answer, Problem>,
        seen: &mut VolumesSeen,
    ) {
        let problem_of =
            |trouble: &worker::Trouble| Problem { message: trouble.message.clone(), remedy: trouble.remedy.clone() };
        let answer = answer.as_ref();
        for (pool, volume) in volumes {
            let key = key(pool, &volume.storage_name());
            let look = match answer.map(|answer| answer.sizes.get(&key)) {
                Err(problem) => Look::Unknown(problem.clone()),
                Ok(Some(Ok(size))) => Look::Known(*size),
                Ok(Some(Err(trouble))) => Look::Unknown(problem_of(trouble)),
                Ok(None) => continue,
            };
            if let Look::Known(Some(size)) = look {
                self.remember(key, size);
            }
            seen.volumes.entry(volume.id).or_insert(look);
        }
        for (pool, base) in bases {
            let key = key(pool, &base_name(&base.image));
            let look = match answer.map(|answer| answer.bases.get(&key)) {
                Err(problem) => Look::Unknown(problem.clone()),
                Ok(Some(Ok(there))) => Look::Known(*there),
                Ok(Some(Err(trouble))) => Look::Unknown(problem_of(trouble)),
                Ok(None) => continue,
            };
            if look == Look::Known(true) {
                self.remember(key, 0);
            }
            seen.bases.entry(base.base()).or_insert(look);
        }
    }

    fn look_local(&self, volumes: &[Volume], bases: &[BaseImage], seen: &mut VolumesSeen) {
        for volume in volumes {
            let size = size_of(&local_path(&self.config.paths.state, volume));
            seen.volumes.insert(volume.id, size.into());
        }
        for base in bases {
            let there = size_of(&local_base(&self.config.paths.state, &base.image)).map(|size| size.is_some());
            seen.bases.insert(base.base(), there.into());
        }
    }

    fn ensure_directory(&self) -> Result<(), Failure> {
        let path = self.config.paths.state.join("volumes");
        std::fs::create_dir_all(&path)
            .map_err(|error| Failure::caused(format!("make {}", path.display()), "look at paths.state", error))
    }
}

fn key(pool: &str, name: &str) -> String {
    format!("{pool}/{name}")
}

fn size_of(path: &Path) -> Result<Option<u64>, Failure> {
    match file::usage(path) {
        Ok(usage) => Ok(Some(usage.size_bytes)),
        Err(FileError::NotFound { .. }) => Ok(None),
        Err(error) => Err(file_failure(error)),
    }
}

fn file_failure(error: FileError) -> Failure {
    let text = super::chain(&error);
    let remedy = if text.contains("No space") || text.contains("space left") {
        "free space on the file system of paths.state"
    } else {
        "look at the file system of paths.state; a volume that is open in a VMM is left as it is"
    };
    Failure::caused("work on a local volume", remedy, error)
}

impl Volumes for VolumeStore {
    async fn look(&self, volumes: Vec<Volume>, bases: Vec<BaseImage>) -> VolumesSeen {
        let mut seen = VolumesSeen::default();
        let (mut local, mut remote) = (Vec::new(), Vec::new());
        for volume in volumes {
            match &volume.backend {
                VolumeBackend::Local => local.push(volume),
                VolumeBackend::Rbd { pool } => remote.push((pool.clone(), volume)),
            }
        }
        let (mut local_bases, mut remote_bases) = (Vec::new(), Vec::new());
        for base in bases {
            match &base.backend {
                VolumeBackend::Local => local_bases.push(base),
                VolumeBackend::Rbd { pool } => remote_bases.push((pool.clone(), base)),
            }
        }
        self.look_local(&local, &local_bases, &mut seen);
        self.look_ceph(&remote, &remote_bases, &mut seen).await;
        seen
    }

    async fn import(&self, base: &BaseImage) -> Result<(), Failure> {
        let source = images::path(&self.config.paths.cache, &base.image);
        let qcow2 = base.image.kind == ImageKind::Qcow2;
        match &base.backend {
            VolumeBackend::Local => {
                self.ensure_directory()?;
                let target = local_base(&self.config.paths.state, &base.image);
                blocking(move || import_file(&source, qcow2, &target)).await
            }
            VolumeBackend::Rbd { pool } => {
                let work = Work::Import { path: source, qcow2, pool: pool.clone() };
                self.ask(work, IMPORT_LIMIT).await.map(drop)
            }
        }
    }

    async fn create(&self, volume: &Volume, image: Option<&Image>) -> Result<(), Failure> {
        let size_bytes = volume.size.bytes();
        match (&volume.backend, image) {
            (VolumeBackend::Local, image) => {
                self.ensure_directory()?;
                let target = local_path(&self.config.paths.state, volume);
                let base = image.map(|image| local_base(&self.config.paths.state, image));
                blocking(move || {
                    match base {
                        None => file::create(&target, size_bytes),
                        Some(base) => file::clone(&base, &target, size_bytes, &mut |_, _| ()).map(drop),
                    }
                    .map_err(file_failure)
                })
                .await
            }
            (VolumeBackend::Rbd { pool }, from) => {
                let (pool, image) = (pool.clone(), volume.storage_name());
                let work = match from {
                    None => Work::Create { pool, image, size_bytes },
                    Some(from) => Work::Clone { pool, base: base_name(from), image, size_bytes },
                };
                self.ask(work, CHANGE_LIMIT).await.map(drop)
            }
        }
    }

    async fn grow(&self, volume: &Volume) -> Result<(), Failure> {
        let size_bytes = volume.size.bytes();
        match &volume.backend {
            VolumeBackend::Local => {
                let path = local_path(&self.config.paths.state, volume);
                blocking(move || file::grow(&path, size_bytes).map_err(file_failure)).await
            }
            VolumeBackend::Rbd { pool } => {
                let image = volume.storage_name();
                self.forget(&key(pool, &image));
                self.ask(Work::Grow { pool: pool.clone(), image, size_bytes }, CHANGE_LIMIT).await.map(drop)
            }
        }
    }

    async fn delete(&self, volume: &Volume) -> Result<(), Failure> {
        match &volume.backend {
            VolumeBackend::Local => {
                let path = local_path(&self.config.paths.state, volume);
                blocking(move || file::remove(&path).map_err(file_failure)).await
            }
            VolumeBackend::Rbd { pool } => {
                let image = volume.storage_name();
                self.forget(&key(pool, &image));
                self.ask(Work::Delete { pool: pool.clone(), image }, CHANGE_LIMIT).await.map(drop)
            }
        }
    }

    async fn holders(&self, volumes: &[Volume]) -> Result<Vec<Holder>, Failure> {
        let remote = volumes.iter().filter_map(|volume| match &volume.backend {
            VolumeBackend::Local => None,
            VolumeBackend::Rbd { pool } => Some((pool.clone(), volume.storage_name())),
        });
        let work = Work::Holders { images: remote.collect() };
        Ok(self.ask(work, LOOK_LIMIT).await?.holders)
    }

    async fn release(&self, holders: &[Holder]) -> Result<(), Failure> {
        self.ask(Work::Release { holders: holders.to_vec() }, CHANGE_LIMIT).await.map(drop)
    }
}

fn import_file(source: &Path, qcow2: bool, target: &Path) -> Result<(), Failure> {
    let format = if qcow2 { Format::Qcow2 } else { Format::Raw };
    let import = Import { path: source.to_owned(), format, sha256: None, size_bytes_max: IMAGE_BYTES_MAX };
    match import.into_file(target, &mut |_| ()) {
        Ok(_) | Err(ImageError::File(FileError::Exists { .. })) => Ok(()),
        Err(error) => {
            // The error holds a request's memory and so cannot travel between threads: its words can.
            let what = format!("make a base of {}: {}", source.display(), super::chain(&error));
            Err(Failure::new(what, "is the image what its kind says, and is there room in paths.state?"))
        }
    }
}
