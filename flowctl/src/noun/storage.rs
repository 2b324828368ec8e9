//! Volumes and images.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Common, Kind, Session, body};
use crate::failure::Failure;
use crate::output;

/// Block volumes.
pub const VOLUMES: Kind = Kind {
    path: "/v1/volumes",
    columns: &[
        ("NAME", "/name"),
        ("STATE", "/state"),
        ("SIZE MIB", "/size_mib"),
        ("BACKEND", "/backend"),
        ("VM", "/vm/name"),
        ("ID", "/id"),
        ("PROBLEM", "/problem/message"),
    ],
};
/// Disk, kernel and initrd images.
pub const IMAGES: Kind = Kind {
    path: "/v1/images",
    columns: &[("NAME", "/name"), ("KIND", "/kind"), ("STATE", "/state"), ("BYTES", "/size_bytes"), ("ID", "/id")],
};

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make a volume: empty, or from an image.
    Create {
        /// Its name.
        name: String,
        /// Its size in MiB; the image's size unless said.
        #[arg(long, value_name = "MIB", required_unless_present = "image")]
        size: Option<u64>,
        /// The disk image that it is made from.
        #[arg(long)]
        image: Option<String>,
        /// Where its data is: local or rbd.
        #[arg(long, value_parser = ["local", "rbd"])]
        backend: Option<String>,
        /// The RBD pool.
        #[arg(long)]
        pool: Option<String>,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Make an image from a file.
    Create {
        /// Its name.
        name: String,
        /// What the file is.
        #[arg(long, value_parser = ["raw", "qcow2", "kernel", "initrd"])]
        kind: String,
        /// The file.
        #[arg(long)]
        file: PathBuf,
        /// For a disk: the kernel image that machines on it boot.
        #[arg(long)]
        kernel: Option<String>,
        /// For a disk: the initrd image.
        #[arg(long)]
        initrd: Option<String>,
        /// For a disk: the kernel command line.
        #[arg(long)]
        cmdline: Option<String>,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

impl Session<'_> {
    /// Does something with volumes.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn volume(&self, verb: &VolumeVerb) -> Result<(), Failure> {
        match verb {
            VolumeVerb::Create { name, size, image, backend, pool } => {
                let fields = [
                    ("name", json!(name)),
                    ("size_mib", json!(size)),
                    ("image", json!(image)),
                    ("backend", json!(backend)),
                    ("pool", json!(pool)),
                ];
                self.create(VOLUMES, body(fields)).await
            }
            VolumeVerb::Common(verb) => self.common(VOLUMES, verb).await,
        }
    }

    /// Does something with images.
    ///
    /// # Errors
    /// [`Failure`]. When the upload fails, the image that was made for it is deleted again.
    pub async fn image(&self, verb: &ImageVerb) -> Result<(), Failure> {
        match verb {
            ImageVerb::Create { name, kind, file, kernel, initrd, cmdline } => {
                let fields = [
                    ("name", json!(name)),
                    ("kind", json!(kind)),
                    ("kernel", json!(kernel)),
                    ("initrd", json!(initrd)),
                    ("cmdline", json!(cmdline)),
                ];
                let made = self.scheduler.post(IMAGES.path, &body(fields)).await?;
                let path = IMAGES.of(made.pointer("/id").and_then(Value::as_str).unwrap_or(name));
                match self.scheduler.upload(&format!("{path}/data"), file).await {
                    Ok(image) => self.show(&image),
                    Err(failure) => {
                        if let Err(second) = self.scheduler.delete(&path).await {
                            output::note(&format!("flowctl: the empty image {name} is left behind: {second}"));
                        }
                        Err(failure)
                    }
                }
            }
            ImageVerb::Common(verb) => self.common(IMAGES, verb).await,
        }
    }
}
