//! From a machine of the spec to the configuration that its VMM takes.

use model::VolumeId;
use model::volume::{Volume, VolumeBackend};
use storage::source::{FileSource, RbdSource};
use vmm::config::{
    BootConfig, BootProtocol, ConsoleConfig, ConsoleDevice, DiskConfig, DiskSource, JailConfig, Mac, NetConfig,
    VmConfig,
};

use super::{Failure, MachineParts, images, volumes};
use crate::config::Config;
use crate::process::MachineDir;

/// The configuration of a machine on this host.
///
/// # Errors
/// [`Failure`] when a volume is on Ceph and this host has none.
pub fn vm_config(config: &Config, parts: &MachineParts) -> Result<VmConfig, Failure> {
    let machine = &parts.machine;
    let dir = MachineDir::new(&config.paths.run, machine.id);
    let disks = machine.disks.iter().zip(&parts.volumes).enumerate().map(|(index, (disk, volume))| {
        Ok(DiskConfig {
            id: format!("disk{index}"),
            source: source(config, volume)?,
            read_only: disk.read_only,
            queues: 1,
            serial: Some(serial(volume.id)),
        })
    });
    let nets = parts.nets.iter().enumerate().map(|(index, net)| {
        let mac = Mac::try_from(net.mac.bytes())
            .map_err(|error| Failure::caused(format!("give vm {} its address", machine.id), "", error))?;
        Ok(NetConfig { id: format!("net{index}"), tap: net.tap.clone(), mac, mtu: Some(net.mtu) })
    });
    Ok(VmConfig {
        name: machine.name.clone(),
        vcpus: machine.vcpus.get(),
        memory_mib: machine.memory.get(),
        boot: BootConfig {
            kernel: images::path(&config.paths.cache, &parts.kernel),
            initrd: parts.initrd.as_ref().map(|image| images::path(&config.paths.cache, image)),
            cmdline: machine.boot.cmdline.clone(),
            protocol: BootProtocol::Auto,
            cache: Some(config.paths.cache.join("kernels")),
        },
        disks: disks.collect::<Result<_, Failure>>()?,
        nets: nets.collect::<Result<_, Failure>>()?,
        console: ConsoleConfig {
            log: Some(dir.console_log()),
            socket: Some(dir.console()),
            device: ConsoleDevice::Serial,
        },
        rng: true,
        jail: Some(JailConfig { uid: parts.uid, gid: parts.uid, chroot: None }),
    })
}

fn source(config: &Config, volume: &Volume) -> Result<DiskSource, Failure> {
    match &volume.backend {
        VolumeBackend::Local => {
            let path = volumes::local_path(&config.paths.state, volume);
            Ok(DiskSource::File(FileSource { path, direct: false }))
        }
        VolumeBackend::Rbd { pool } => {
            let ceph = config.ceph.as_ref().ok_or_else(volumes::no_ceph)?;
            Ok(DiskSource::Rbd(RbdSource {
                conf: ceph.conf.clone(),
                user: ceph.user.clone(),
                pool: pool.clone(),
                image: volume.storage_name(),
            }))
        }
    }
}

/// A disk's serial number: as much of the volume's id as a guest can read (virtio 1.2 §5.2.6: 20 bytes).
fn serial(volume: VolumeId) -> String {
    volume.uuid().simple().to_string().chars().take(20).collect()
}
