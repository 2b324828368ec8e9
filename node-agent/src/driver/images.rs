//! The real images: a bounded cache of files named by their digest, filled from a directory or over the scheduler link.
//!
//! A file appears under its name only when all its bytes are on disk and their digest is right. What the spec wants is never thrown out.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use model::ImageId;
use model::image::{Image, Sha256};
use sha2::Digest;

use super::{Failure, Images, blocking};
use crate::config::Config;
use crate::link::SchedulerClient;

/// Bytes moved at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// The directory of cached images.
#[must_use]
pub fn directory(cache: &Path) -> PathBuf {
    cache.join("images")
}

/// Where an image is once it is here.
#[must_use]
pub fn path(cache: &Path, image: &Image) -> PathBuf {
    directory(cache).join(image.sha256.to_string())
}

/// Images on this host.
#[derive(Debug, Clone)]
pub struct ImageCache {
    config: Arc<Config>,
    scheduler: Option<SchedulerClient>,
}

impl ImageCache {
    /// A driver; without `scheduler` only `images.directory` is looked into.
    #[must_use]
    pub const fn new(config: Arc<Config>, scheduler: Option<SchedulerClient>) -> Self {
        Self { config, scheduler }
    }

    async fn download(&self, image: &Image, draft: Draft) -> Result<(), Failure> {
        let Some(scheduler) = &self.scheduler else {
            let what = format!("fetch image {} ({}): there is no scheduler to fetch it from", image.id, image.name);
            return Err(Failure::new(what, format!("put it into images.directory as {}", image.id)));
        };
        let mut draft = draft;
        let mut body = scheduler.image(image.id).await?;
        while let Some(chunk) = body.next().await? {
            draft = blocking(move || {
                draft.write(&chunk)?;
                Ok(draft)
            })
            .await?;
        }
        blocking(move || draft.publish()).await
    }
}

/// A file that is being filled.
#[derive(Debug)]
struct Draft {
    image: Image,
    target: PathBuf,
    part: PathBuf,
    file: File,
    digest: sha2::Sha256,
    bytes: u64,
}

impl Draft {
    fn new(cache: &Path, image: &Image) -> Result<Self, Failure> {
        let target = path(cache, image);
        let part = target.with_extension("part");
        let made = std::fs::create_dir_all(directory(cache)).and_then(|()| File::create(&part));
        let file = made.map_err(|error| file_failure("make", &part, error))?;
        Ok(Self { image: image.clone(), target, part, file, digest: sha2::Sha256::new(), bytes: 0 })
    }

    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if self.bytes > self.image.size_bytes {
            return Err(self.wrong(format!("it has more than the {} bytes announced", self.image.size_bytes)));
        }
        self.digest.update(chunk);
        self.file.write_all(chunk).map_err(|error| file_failure("write", &self.part, error))
    }

    fn publish(self) -> Result<(), Failure> {
        let digest = Sha256::new(self.digest.clone().finalize().into());
        if digest != self.image.sha256 {
            let text = format!("its {} bytes have SHA-256 {digest}, not {}", self.bytes, self.image.sha256);
            return Err(self.wrong(text));
        }
        let done = self.file.sync_all().and_then(|()| std::fs::rename(&self.part, &self.target));
        done.map_err(|error| file_failure("finish", &self.target, error))
    }

    fn wrong(&self, why: String) -> Failure {
        let what = format!("fetch image {} ({}): {why}", self.image.id, self.image.name);
        Failure::new(what, "upload the image again: it is damaged where it comes from or on the way")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone after a rename; otherwise what was half written only takes room.
        let _ = std::fs::remove_file(&self.part);
    }
}

fn file_failure(verb: &str, path: &Path, error: std::io::Error) -> Failure {
    let remedy = if error.kind() == std::io::ErrorKind::StorageFull {
        format!("free space on the file system of {}", path.display())
    } else {
        "look at the file system of paths.cache and images.directory".to_owned()
    };
    Failure::caused(format!("{verb} {}", path.display()), remedy, error)
}

fn copy_from(source: &Path, mut draft: Draft) -> Result<(), Failure> {
    let mut file = File::open(source).map_err(|error| file_failure("open", source, error))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut chunk).map_err(|error| file_failure("read", source, error))?;
        if count == 0 {
            return draft.publish();
        }
        draft.write(chunk.get(..count).unwrap_or_default())?;
    }
}

/// Makes room for `image` by throwing out what nobody wants, the longest unused first.
fn make_room(config: &Config, image: &Image, keep: &[Image]) -> Result<(), Failure> {
    let directory = directory(&config.paths.cache);
    let kept: BTreeSet<String> = keep.iter().map(|image| image.sha256.to_string()).collect();
    let mut total = image.size_bytes;
    let mut surplus: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
    for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        total = total.saturating_add(metadata.len());
        if !kept.contains(&entry.file_name().to_string_lossy().into_owned()) {
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            surplus.push((used, entry.path(), metadata.len()));
        }
    }
    surplus.sort();
    for (_, path, bytes) in surplus {
        if total <= config.images.cache_mib << 20 {
            break;
        }
        std::fs::remove_file(&path).map_err(|error| file_failure("remove", &path, error))?;
        total = total.saturating_sub(bytes);
    }
    Ok(())
}

impl Images for ImageCache {
    async fn look(&self, wanted: &[Image]) -> Result<BTreeSet<ImageId>, Failure> {
        let mut here = BTreeSet::new();
        for image in wanted {
            let path = path(&self.config.paths.cache, image);
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.len() == image.size_bytes => {
                    here.insert(image.id);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(file_failure("look at", &path, error)),
            }
        }
        Ok(here)
    }

    async fn fetch(&self, image: &Image, keep: &[Image]) -> Result<(), Failure> {
        let (config, wanted, keep) = (Arc::clone(&self.config), image.clone(), keep.to_vec());
        let draft = blocking(move || {
            make_room(&config, &wanted, &keep)?;
            Draft::new(&config.paths.cache, &wanted)
        })
        .await?;
        let local = self.config.images.directory.as_ref().map(|directory| directory.join(image.id.to_string()));
        match local.filter(|path| path.exists()) {
            Some(path) => blocking(move || copy_from(&path, draft)).await,
            None => self.download(image, draft).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(bytes: &[u8], id: u128) -> Image {
        Image {
            id: ImageId::from_uuid(uuid::Uuid::from_u128(id)),
            name: "test".to_owned(),
            kind: model::image::ImageKind::Raw,
            sha256: Sha256::new(sha2::Sha256::digest(bytes).into()),
            size_bytes: u64::try_from(bytes.len()).unwrap(),
        }
    }

    fn cache(root: &Path, cache_mib: u64) -> ImageCache {
        let mut config = Config::default();
        config.paths.cache = root.join("cache");
        config.images.directory = Some(root.join("source"));
        config.images.cache_mib = cache_mib;
        std::fs::create_dir_all(root.join("source")).unwrap();
        ImageCache::new(Arc::new(config), None)
    }

    #[tokio::test]
    async fn an_image_is_taken_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path(), 1);
        let image = image(b"a kernel", 1);
        let source = root.path().join("source").join(image.id.to_string());
        assert!(cache.fetch(&image, &[]).await.unwrap_err().problem().remedy.contains("images.directory"));
        std::fs::write(&source, b"a kerneL").unwrap();
        let problem = cache.fetch(&image, &[]).await.unwrap_err().problem();
        assert!(problem.message.contains("SHA-256"), "{problem:?}");
        assert!(cache.look(std::slice::from_ref(&image)).await.unwrap().is_empty());
        assert_eq!(std::fs::read_dir(directory(&cache.config.paths.cache)).unwrap().count(), 0);
        std::fs::write(&source, b"a kernel").unwrap();
        cache.fetch(&image, &[]).await.unwrap();
        assert!(cache.look(std::slice::from_ref(&image)).await.unwrap().contains(&image.id));
    }

    #[tokio::test]
    async fn the_cache_throws_out_only_what_is_not_wanted() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path(), 1);
        let images: Vec<Image> = (0..4_u8).map(|n| image(&vec![n; 400 << 10], u128::from(n) + 1)).collect();
        for (n, image) in (0_u8..).zip(&images) {
            std::fs::write(root.path().join("source").join(image.id.to_string()), vec![n; 400 << 10]).unwrap();
        }
        let keep = images.get(..1).unwrap();
        for image in &images {
            cache.fetch(image, keep).await.unwrap();
        }
        let here = cache.look(&images).await.unwrap();
        assert!(here.contains(&images[0].id) && here.contains(&images[3].id), "{here:?}");
        assert_eq!(here.len(), 2);
    }
}
