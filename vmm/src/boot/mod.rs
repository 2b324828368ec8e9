//! What runs first: the kernel or program, what it is told, and the registers of the first vCPU.
//!
//! [`Image::open`] opens files once, before privileges are given up; [`Image::load`] fills fresh guest memory at each start and says how to enter.
//! One module for each way of entering; each gives an [`Entry`] and nothing else.

pub mod bzimage;
pub mod entry;
pub mod linux64;
pub mod native;
pub mod pvh;
pub mod reset_vector;

use crate::config::{BootConfig, BootProtocol};
use crate::layout;
use crate::memory::Ram;
use entry::Entry;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Where an ELF file names its ABI, and the value for "a standalone application": it runs without a kernel (System V gABI, `e_ident`).
const ELF_ABI: usize = 7;
const ELF_ABI_STANDALONE: u8 = 255;
const PAGE: u64 = 4096;

/// The machine cannot be booted from what it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A file could not be opened or read.
    #[error("read {what} {path}")]
    Open {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A bzImage could not be unpacked.
    #[error("unpack the kernel {path}")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: bzimage::UnpackError,
    },
    /// Not an ELF file for this machine, or one that does not fit its memory.
    #[error("load the kernel {path} into {memory_mib} MiB of memory: {reason}")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The machine's memory.
        memory_mib: u64,
        /// Why.
        reason: String,
    },
    /// `boot.protocol` is `pvh`, but the kernel has no PVH entry point.
    #[error("the kernel {path} has no PVH entry point; use boot.protocol \"auto\" or \"linux64\"")]
    NoPvh {
        /// The file.
        path: PathBuf,
    },
    /// The initrd does not fit above the kernel.
    #[error("the initrd {path} of {bytes} bytes does not fit into {memory_mib} MiB of memory above the kernel")]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The machine's memory.
        memory_mib: u64,
    },
    /// Guest memory refused boot data.
    #[error("write boot data to guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// The initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// What every way of entering tells the kernel.
#[derive(Debug)]
pub struct Told<'a> {
    /// The command line, without its closing zero.
    pub cmdline: &'a str,
    /// The initrd, where there is one.
    pub initrd: Option<Loaded>,
    /// The machine's memory.
    pub memory_mib: u64,
    /// Where the ACPI root pointer is.
    pub rsdp: u64,
}

/// Opened files to boot from. The kernel is an ELF file by now.
#[derive(Debug)]
pub struct Image {
    config: BootConfig,
    protocol: BootProtocol,
    kernel: Mutex<File>,
    initrd: Option<Mutex<File>>,
}

impl Image {
    /// Opens what `config` names; a bzImage is unpacked, or found unpacked in the cache.
    ///
    /// # Errors
    /// [`BootError`] that names the file.
    pub fn open(config: &BootConfig) -> Result<Self, BootError> {
        let open = |what, path: &Path| {
            File::open(path).map_err(|source| BootError::Open { what, path: path.to_owned(), source })
        };
        let path = &config.kernel;
        let mut kernel = open("the kernel", path)?;
        let mut ident = [0; ELF_ABI + 1];
        kernel.read_exact(&mut ident).map_err(|source| BootError::Open {
            what: "the kernel",
            path: path.clone(),
            source,
        })?;
        let protocol = match config.protocol {
            BootProtocol::Auto if ident.starts_with(&ELF_MAGIC) && ident[ELF_ABI] == ELF_ABI_STANDALONE => {
                BootProtocol::Native
            }
            other => other,
        };
        if !ident.starts_with(&ELF_MAGIC) {
            kernel = bzimage::unpack(kernel, config.cache.as_deref())
                .map_err(|source| BootError::Unpack { path: path.clone(), source })?;
        }
        let initrd = config.initrd.as_deref().map(|path| open("the initrd", path)).transpose()?;
        Ok(Self { config: config.clone(), protocol, kernel: Mutex::new(kernel), initrd: initrd.map(Mutex::new) })
    }

    /// Puts kernel, initrd and what they are told into `ram`.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn load(&self, ram: &Ram, memory_mib: u64, rsdp: u64) -> Result<Entry, BootError> {
        let path = || self.config.kernel.clone();
        let loaded = {
            let mut kernel = lock(&self.kernel);
            Elf::load(ram, None, &mut *kernel, Some(GuestAddress(layout::HIGH_MEMORY_START)))
        }
        .map_err(|error| BootError::Kernel { path: path(), memory_mib, reason: error.to_string() })?;
        let low_end = layout::ram_ranges(memory_mib)[0].1;
        if loaded.kernel_end > low_end {
            let reason = format!("it ends at {:#x}", loaded.kernel_end);
            return Err(BootError::Kernel { path: path(), memory_mib, reason });
        }
        let initrd = self.load_initrd(ram, memory_mib, loaded.kernel_end)?;
        let told = Told { cmdline: &self.config.cmdline, initrd, memory_mib, rsdp };
        write_cmdline(ram, told.cmdline)?;
        match (self.protocol, pvh_entry(&loaded)) {
            (BootProtocol::Native, _) => native::enter(ram, &told, loaded.kernel_load.0),
            (BootProtocol::Auto | BootProtocol::Pvh, Some(start)) => pvh::enter(ram, &told, start),
            (BootProtocol::Pvh, None) => Err(BootError::NoPvh { path: path() }),
            (BootProtocol::Auto | BootProtocol::Linux64, _) => linux64::enter(ram, &told, loaded.kernel_load.0),
        }
    }

    /// Puts the initrd at the top of low memory, where kernels expect it and it is in nobody's way.
    fn load_initrd(&self, ram: &Ram, memory_mib: u64, kernel_end: u64) -> Result<Option<Loaded>, BootError> {
        let (Some(file), Some(path)) = (&self.initrd, &self.config.initrd) else { return Ok(None) };
        let mut file = lock(file);
        let failed = |source| BootError::Open { what: "the initrd", path: path.clone(), source };
        let bytes = file.metadata().map_err(failed)?.len();
        let too_large = || BootError::InitrdTooLarge { path: path.clone(), bytes, memory_mib };
        let top = layout::ram_ranges(memory_mib)[0].1;
        let start = top.checked_sub(bytes).map(|start| start & !(PAGE - 1)).filter(|&start| start >= kernel_end);
        let start = start.ok_or_else(too_large)?;
        file.rewind().map_err(failed)?;
        let count = usize::try_from(bytes).map_err(|_| too_large())?;
        ram.read_exact_volatile_from(GuestAddress(start), &mut *file, count)?;
        Ok(Some(Loaded { start, bytes }))
    }
}

const fn pvh_entry(loaded: &KernelLoaderResult) -> Option<u64> {
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Some(address.0),
        _ => None,
    }
}

fn write_cmdline(ram: &Ram, cmdline: &str) -> Result<(), BootError> {
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    Ok(ram.write_obj(0_u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?)
}

fn lock(file: &Mutex<File>) -> std::sync::MutexGuard<'_, File> {
    file.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
