//! The bytes of images: files named by the SHA-256 of what is in them.
//!
//! An upload is written beside them, digested as it comes, made durable, and only then renamed to its digest: a file that has such a name is whole.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use axum::body::Body;
use futures_util::{Stream, StreamExt, stream};
use model::image::{ImageKind, Sha256};
use sha2::Digest;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::intent::image::Content;
use crate::refusal::Refusal;

/// What uploads are called until they are whole.
const UPLOAD_PREFIX: &str = ".upload-";
/// How much of the start of an image is looked at.
const HEAD_BYTES: usize = 1024;
/// How much is read from disk at once when an image is sent.
const CHUNK_BYTES: usize = 256 << 10;
/// Start of a qcow2 header ("QCOW2 image format", docs/interop/qcow2.rst of QEMU).
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// Where a bzImage has its magic number, and which (Linux x86 boot protocol, "The real-mode kernel header").
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// Start of an ELF file: a vmlinux.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// The directory with the bytes of images.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    dir: PathBuf,
    bytes_max: u64,
}

impl Blobs {
    /// Opens or makes the directory and removes uploads that were not finished.
    pub(crate) fn open(dir: &Path, bytes_max: u64) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UPLOAD_PREFIX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir: dir.to_owned(), bytes_max })
    }

    fn path(&self, sha256: Sha256) -> PathBuf {
        self.dir.join(sha256.to_string())
    }

    /// Takes an image's bytes in.
    pub(crate) async fn take(&self, kind: ImageKind, body: Body) -> Result<Content, Refusal> {
        let path = self.dir.join(format!("{UPLOAD_PREFIX}{}", uuid::Uuid::new_v4()));
        let taken = self.receive(&path, kind, body).await;
        let kept = match taken {
            Ok(content) => fs::rename(&path, self.path(content.sha256))
                .await
                .map(|()| content)
                .map_err(|error| unkept(&path, error)),
            Err(refusal) => Err(refusal),
        };
        if kept.is_err() {
            // The refusal is the news; an upload that is left behind goes at the next start.
            let _ = fs::remove_file(&path).await;
        }
        kept
    }

    async fn receive(&self, path: &Path, kind: ImageKind, body: Body) -> Result<Content, Refusal> {
        let failed = |error| unkept(path, error);
        let mut file = File::create_new(path).await.map_err(failed)?;
        let mut digest = sha2::Sha256::new();
        let mut head: Vec<u8> = Vec::with_capacity(HEAD_BYTES);
        let mut size_bytes: u64 = 0;
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| Refusal::Body(format!("the upload broke off: {error}")))?;
            size_bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if size_bytes > self.bytes_max {
                return Err(Refusal::TooLarge { what: "the image", most: self.bytes_max });
            }
            head.extend(chunk.iter().take(HEAD_BYTES - head.len()));
            digest.update(&chunk);
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        let virtual_size_bytes = look(kind, &head, size_bytes)?;
        Ok(Content { sha256: Sha256::new(digest.finalize().into()), size_bytes, virtual_size_bytes })
    }

    /// The bytes of an image as a stream.
    pub(crate) async fn give(
        &self,
        sha256: Sha256,
    ) -> std::io::Result<impl Stream<Item = std::io::Result<Vec<u8>>> + use<>> {
        let file = File::open(self.path(sha256)).await?;
        Ok(stream::try_unfold(file, |mut file| async move {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = file.read(&mut chunk).await?;
            chunk.truncate(length);
            Ok((length > 0).then_some((chunk, file)))
        }))
    }

    /// Removes the bytes of an image that no image names any more.
    pub(crate) async fn drop(&self, sha256: Sha256) {
        if let Err(error) = fs::remove_file(self.path(sha256)).await {
            tracing::warn!(%sha256, %error, "the bytes of a deleted image could not be removed");
        }
    }
}

fn unkept(path: &Path, error: std::io::Error) -> Refusal {
    tracing::error!(%error, "an upload could not be kept");
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return Refusal::Full { path: path.parent().unwrap_or(path).display().to_string() };
    }
    Refusal::Internal(format!("the upload could not be kept: {error}"))
}

/// Looks whether the start of an image is what its kind begins with; says the size of the disk inside.
fn look(kind: ImageKind, head: &[u8], size_bytes: u64) -> Result<u64, Refusal> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let refuse = |problem: &str| Err(Refusal::Body(problem.to_owned()));
    if size_bytes == 0 {
        return refuse("the image is empty");
    }
    match kind {
        ImageKind::Qcow2 if !at(0, QCOW2_MAGIC) => refuse("this is no qcow2 image: it does not start with QFI\\xfb"),
        ImageKind::Qcow2 => match head.get(24..32).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()) {
            Some(bytes) if u64::from_be_bytes(bytes) > 0 => Ok(u64::from_be_bytes(bytes)),
            _ => refuse("this qcow2 image says no size of its disk"),
        },
        ImageKind::Kernel if !at(BZIMAGE_MAGIC.0, BZIMAGE_MAGIC.1) && !at(0, ELF_MAGIC) => {
            refuse("this is no Linux kernel: neither a bzImage nor an ELF file")
        }
        ImageKind::Raw if at(0, QCOW2_MAGIC) => refuse("this is a qcow2 image: say kind qcow2"),
        ImageKind::Raw | ImageKind::Kernel | ImageKind::Initrd => Ok(size_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_not_of_its_kind_is_refused() {
        let mut qcow2 = vec![0; 64];
        qcow2[..4].copy_from_slice(QCOW2_MAGIC);
        qcow2[24..32].copy_from_slice(&(3_u64 << 30).to_be_bytes());
        assert_eq!(look(ImageKind::Qcow2, &qcow2, 64), Ok(3 << 30));
        assert!(look(ImageKind::Qcow2, &[0; 64], 64).is_err());
        assert!(look(ImageKind::Qcow2, &qcow2[..20], 20).is_err());
        assert!(look(ImageKind::Raw, &qcow2, 64).is_err());
        assert!(look(ImageKind::Kernel, &[0; 1024], 1024).is_err());
        assert!(look(ImageKind::Kernel, ELF_MAGIC, 4).is_ok());
        assert!(look(ImageKind::Raw, &[], 0).is_err());
        assert_eq!(look(ImageKind::Raw, &[1, 2], 2), Ok(2));
    }

    #[tokio::test]
    async fn an_upload_is_known_by_its_digest_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 8).unwrap();
        let content = blobs.take(ImageKind::Raw, Body::from("12345678")).await.unwrap();
        assert_eq!(content.size_bytes, 8);
        let text = "ef797c8118f02dfb649607dd5d3f8c7623048c9c063d532cc95c5ed7a898a64f";
        assert_eq!(content.sha256.to_string(), text);
        let bytes: Vec<_> = blobs.give(content.sha256).await.unwrap().collect().await;
        assert_eq!(bytes.into_iter().flat_map(Result::unwrap).collect::<Vec<u8>>(), b"12345678");
        let refused = blobs.take(ImageKind::Raw, Body::from("123456789")).await;
        assert_eq!(refused, Err(Refusal::TooLarge { what: "the image", most: 8 }));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a refused upload leaves nothing");
    }
}
