//! Everything a configuration names, opened: what the machine needs from the host for as long as the process lives.
//!
//! Opened once, in two steps: [`Prepared`] holds what takes the rights of whoever started the process, then [`Prepared::open`] opens the volumes,
//! which start threads, behind the jail's first walls. Machines are built from the result again and again. Nothing here is guest state.

use crate::boot::{BootError, Image};
use crate::config::{Checked, ConsoleDevice};
use crate::console::log::Log;
use crate::console::{Hub, server};
use crate::kvm::{KvmError, attempt};
use crate::overhead::Overhead;
use crate::virtio::block::SharedVolume;
use crate::virtio::tap::{Tap, TapError};
use kvm_ioctls::Kvm;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use storage::source::{self, OpenError, OpenOptions};

/// Something the configuration names could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// There is no usable KVM.
    #[error("open /dev/kvm; the host needs virtualisation switched on, and this user access to it")]
    NoKvm(#[source] KvmError),
    /// Kernel or initrd.
    #[error("boot")]
    Boot(#[from] BootError),
    /// A disk.
    #[error("disk {id}")]
    Disk {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
    /// A network device.
    #[error("net {id}")]
    Net {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: TapError,
    },
    /// The console's files.
    #[error("console: {attempt} {path}")]
    Console {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A descriptor of our own.
    #[error("{attempt}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What was opened for one configuration.
#[derive(Debug)]
pub struct Resources {
    /// The configuration.
    pub config: Checked,
    /// KVM.
    pub kvm: Kvm,
    /// Kernel and initrd.
    pub image: Image,
    /// Disks by id.
    pub volumes: BTreeMap<String, SharedVolume>,
    /// Tap interfaces by id.
    pub taps: BTreeMap<String, Arc<Tap>>,
    /// The console.
    pub hub: Arc<Hub>,
    /// What tells the monitor's own size.
    pub overhead: Arc<Overhead>,
    /// The host's source of entropy.
    pub entropy: Arc<File>,
}

/// Everything but the volumes is open, and no thread was started.
#[derive(Debug)]
pub struct Prepared {
    config: Checked,
    kvm: Kvm,
    image: Image,
    volumes: BTreeMap<String, source::Prepared>,
    taps: BTreeMap<String, Arc<Tap>>,
    hub: Arc<Hub>,
    overhead: Arc<Overhead>,
    entropy: Arc<File>,
}

impl Prepared {
    /// Opens what `config` names; also gives the console's shell, which belongs to the control thread.
    ///
    /// # Errors
    /// [`ResourceError`] that names the device; nothing stays open.
    pub fn new(config: Checked) -> Result<(Self, server::Server), ResourceError> {
        let kvm = Kvm::new().map_err(attempt("open /dev/kvm")).map_err(ResourceError::NoKvm)?;
        let image = Image::open(&config.get().boot)?;
        let taps = open_taps(&config)?;
        let volumes = prepare_volumes(&config)?;
        let io = |attempt| move |source| ResourceError::Io { attempt, source };
        let hub = Arc::new(Hub::new().map_err(io("make the console"))?);
        let console = open_console(&config, &hub)?;
        let entropy = Arc::new(File::open("/dev/urandom").map_err(io("open /dev/urandom"))?);
        let overhead = Arc::new(Overhead::open());
        Ok((Self { config, kvm, image, volumes, taps, hub, overhead, entropy }, console))
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &Checked {
        &self.config
    }

    /// The files that [`Prepared::open`] reads, and the threads that it starts.
    #[must_use]
    pub fn reads(&self) -> Vec<PathBuf> {
        self.volumes.values().flat_map(source::Prepared::reads).cloned().collect()
    }

    /// Opens the volumes.
    ///
    /// # Errors
    /// [`ResourceError::Disk`]; nothing stays open.
    pub fn open(self) -> Result<Resources, ResourceError> {
        let Self { config, kvm, image, volumes, taps, hub, overhead, entropy } = self;
        let open = |(id, volume): (String, source::Prepared)| match volume.open() {
            Ok(volume) => Ok((id, Arc::new(Mutex::new(volume)))),
            Err(source) => Err(ResourceError::Disk { id, source: Box::new(source) }),
        };
        let volumes = volumes.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Resources { config, kvm, image, volumes, taps, hub, overhead, entropy })
    }
}

impl Resources {
    /// The hub, for the device that the console was configured to be.
    #[must_use]
    pub fn hub_for(&self, device: ConsoleDevice) -> Option<Arc<Hub>> {
        (self.config.get().console.device == device).then(|| Arc::clone(&self.hub))
    }
}

fn open_taps(config: &Checked) -> Result<BTreeMap<String, Arc<Tap>>, ResourceError> {
    let open = |net: &crate::config::NetConfig| {
        let tap = Tap::open(&net.tap).map_err(|source| ResourceError::Net { id: net.id.clone(), source })?;
        Ok((net.id.clone(), Arc::new(tap)))
    };
    config.get().nets.iter().map(open).collect()
}

fn prepare_volumes(config: &Checked) -> Result<BTreeMap<String, source::Prepared>, ResourceError> {
    let prepare = |disk: &crate::config::DiskConfig| {
        let options =
            OpenOptions { read_only: disk.read_only, holder: config.get().name.clone(), ..OpenOptions::default() };
        let volume = source::Prepared::new(&disk.source, &options)
            .map_err(|source| ResourceError::Disk { id: disk.id.clone(), source: Box::new(source) })?;
        Ok((disk.id.clone(), volume))
    };
    config.get().disks.iter().map(prepare).collect()
}

fn open_console(config: &Checked, hub: &Arc<Hub>) -> Result<server::Server, ResourceError> {
    let console = &config.get().console;
    let failed = |attempt, path: &Path| {
        let path = path.to_owned();
        move |source| ResourceError::Console { attempt, path, source }
    };
    let log = console.log.as_deref().map(|path| Log::open(path).map_err(failed("open the log", path))).transpose()?;
    let listener = console.socket.as_deref().map(|path| listen(path).map_err(failed("listen at", path))).transpose()?;
    Ok(server::Server::new(Arc::clone(hub), listener, log))
}

/// Listens at a unix socket; a socket there that nobody listens at is a leftover and replaced.
///
/// # Errors
/// `AddrInUse` when somebody listens there; else what the kernel said.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        bound => return bound,
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
    }
    std::fs::remove_file(path)?;
    UnixListener::bind(path)
}
