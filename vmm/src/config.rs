//! What a machine is made of: the configuration sent with `configure` or read from a file.
//!
//! [`VmConfig`] is the wire form: JSON, unknown fields refused, plain types. [`Checked`] is the only form the machine is built from; its one door
//! is [`Checked::try_from`], which refuses counts, sizes, names and combinations that no machine can have. No file is opened here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use storage::source::{FileSource, RbdSource, Source as DiskSource};

/// The most vCPUs of one machine: LAPIC ids stay below 255, the last that fits an xAPIC destination.
pub const VCPUS_MAX: u8 = 64;
/// The least guest memory, MiB: a kernel, its initrd and the boot structures.
pub const MEMORY_MIN_MIB: u64 = 16;
/// The most guest memory, MiB (1 TiB): what fits 40 physical address bits, which every host offers.
pub const MEMORY_MAX_MIB: u64 = 1 << 20;
/// The most PCI functions of one machine: bus 0 has 32 slots, slot 0 is the host bridge.
pub const PCI_DEVICES_MAX: usize = 31;
/// The most request queues of one disk.
pub const DISK_QUEUES_MAX: u16 = 16;
/// The longest command line, bytes with its closing zero (`COMMAND_LINE_SIZE` of Linux on x86).
pub const CMDLINE_MAX: usize = 2048;
/// The longest name or id, bytes.
pub const NAME_MAX: usize = 64;
/// The longest interface name, bytes (`IFNAMSIZ` less its closing zero).
pub const TAP_NAME_MAX: usize = 15;
/// The longest serial number of a disk, bytes (virtio 1.2 §5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub const DISK_SERIAL_MAX: usize = 20;
/// The smallest MTU IPv4 allows, and the largest a virtio network device can announce.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 68..=65_535;

/// A machine, as clients write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// A name for logs and for `state`; no meaning to the machine.
    pub name: String,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// What runs first.
    pub boot: BootConfig,
    /// Block devices, in PCI slot order.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network devices, in PCI slot order after the disks.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Where the console goes.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// Whether the guest has a virtio entropy device.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Who the process becomes once everything is open; absent leaves it as it is.
    #[serde(default)]
    pub jail: Option<JailConfig>,
}

/// The kernel and how it is entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// A bzImage or an ELF file.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: BootProtocol,
    /// A directory that keeps kernels decompressed from a bzImage, by content; absent decompresses at each configure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// `native` where the file is a standalone program, PVH where the kernel has the note, else the Linux 64-bit protocol.
    #[default]
    Auto,
    /// 32-bit protected mode at the address in the `XEN_ELFNOTE_PHYS32_ENTRY` note.
    Pvh,
    /// Long mode at the kernel's 64-bit entry point with a zero page (Documentation/arch/x86/boot.rst).
    Linux64,
    /// A freestanding ELF program entered in long mode at user privilege; see `boot::native`.
    Native,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Unique among disks and nets.
    pub id: String,
    /// Where its bytes are.
    pub source: DiskSource,
    /// Whether the guest may write.
    #[serde(default)]
    pub read_only: bool,
    /// Request queues, 1 to [`DISK_QUEUES_MAX`].
    #[serde(default = "one")]
    pub queues: u16,
    /// What the guest reads as the serial number; absent uses the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Unique among disks and nets.
    pub id: String,
    /// The name of an existing tap interface.
    pub tap: String,
    /// The guest's address.
    pub mac: Mac,
    /// The MTU told to the guest; absent tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// Where the guest's console goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// A file that keeps the output, bounded, with one rotation (`.1`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// A unix stream socket: raw bytes both ways, the latest output replayed to each new client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Which guest device is joined to the socket and the log.
    #[serde(default)]
    pub device: ConsoleDevice,
}

/// The guest device behind the console socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleDevice {
    /// `ttyS0`, a 16550A at port 0x3f8.
    #[default]
    Serial,
    /// `hvc0`, a virtio console.
    Virtio,
}

/// Who the process becomes before guest code runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Numeric user.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Reserved: the jail confines the file system by landlock, so a directory given here is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chroot: Option<PathBuf>,
}

const fn yes() -> bool {
    true
}

const fn one() -> u16 {
    1
}

/// An Ethernet address of one station, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// The six bytes as they go on the wire.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for Mac {
    type Error = ConfigError;

    fn try_from(octets: [u8; 6]) -> Result<Self, ConfigError> {
        if octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(ConfigError::Mac { text: Self(octets).to_string() });
        }
        Ok(Self(octets))
    }
}

impl FromStr for Mac {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refused = || ConfigError::Mac { text: text.to_owned() };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = u8::from_str_radix(part.ok_or_else(refused)?, 16).map_err(|_| refused())?;
        }
        if parts.next().is_some() { Err(refused()) } else { Self::try_from(octets) }
    }
}

impl TryFrom<String> for Mac {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A configuration that no machine can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not the JSON form of a [`VmConfig`].
    #[error("read the configuration: {reason}")]
    Parse {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A name or id that is empty, too long or has unusual characters.
    #[error("{field} {value:?} must be 1 to {max} letters, digits, '.', '_' or '-'")]
    Name {
        /// The field, as written in the configuration.
        field: &'static str,
        /// What it held.
        value: String,
        /// The longest that is accepted, bytes.
        max: usize,
    },
    /// A number outside its range.
    #[error("{field} {value} must be {least} to {most}")]
    Range {
        /// The field, as written in the configuration.
        field: &'static str,
        /// What it held.
        value: u64,
        /// The least that is accepted.
        least: u64,
        /// The most that is accepted.
        most: u64,
    },
    /// An id that occurs twice.
    #[error("the id {id:?} is used by two devices")]
    DuplicateId {
        /// The id.
        id: String,
    },
    /// More devices than slots.
    #[error("{count} PCI devices are more than the {PCI_DEVICES_MAX} slots of the bus")]
    TooManyDevices {
        /// How many were asked for.
        count: usize,
    },
    /// A command line that does not fit, or holds a zero byte.
    #[error("boot.cmdline of {length} bytes must be shorter than {CMDLINE_MAX} bytes and hold no zero byte")]
    Cmdline {
        /// Its length, bytes.
        length: usize,
    },
    /// Not the address of one station.
    #[error("{text:?} is not the MAC address of one station, such as 52:54:00:12:34:56")]
    Mac {
        /// What was written.
        text: String,
    },
    /// A serial number that a guest cannot read.
    #[error("serial {serial:?} of disk {id:?} must be at most {DISK_SERIAL_MAX} printable ASCII characters")]
    Serial {
        /// The disk.
        id: String,
        /// What was written.
        serial: String,
    },
    /// The jail would keep the process privileged.
    #[error("jail.uid and jail.gid must not be 0")]
    JailIsRoot,
    /// The jail has no root of its own.
    #[error("jail.chroot {path} is not supported: the jail confines the file system by landlock")]
    Chroot {
        /// What was written.
        path: PathBuf,
    },
    /// A native program has no use for this field.
    #[error("boot.initrd cannot be combined with boot.protocol \"native\"")]
    NativeInitrd,
}

impl VmConfig {
    /// Reads the JSON form and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] that names the field.
    pub fn parse(json: &str) -> Result<Checked, ConfigError> {
        let config: Self =
            serde_json::from_str(json).map_err(|error| ConfigError::Parse { reason: error.to_string() })?;
        Checked::try_from(config)
    }

    /// The PCI functions the machine will have besides the host bridge.
    #[must_use]
    pub fn pci_devices(&self) -> usize {
        let console = usize::from(self.console.device == ConsoleDevice::Virtio);
        self.disks.len() + self.nets.len() + console + usize::from(self.rng)
    }
}

/// A [`VmConfig`] that a machine can be built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked(VmConfig);

impl Checked {
    /// What was checked.
    #[must_use]
    pub const fn get(&self) -> &VmConfig {
        &self.0
    }

    /// Gives the configuration back.
    #[must_use]
    pub fn into_inner(self) -> VmConfig {
        self.0
    }
}

impl TryFrom<VmConfig> for Checked {
    type Error = ConfigError;

    fn try_from(config: VmConfig) -> Result<Self, ConfigError> {
        name("name", &config.name, NAME_MAX)?;
        range("vcpus", u64::from(config.vcpus), 1, u64::from(VCPUS_MAX))?;
        range("memory_mib", config.memory_mib, MEMORY_MIN_MIB, MEMORY_MAX_MIB)?;
        boot(&config.boot)?;
        let count = config.pci_devices();
        if count > PCI_DEVICES_MAX {
            return Err(ConfigError::TooManyDevices { count });
        }
        let mut ids = BTreeSet::new();
        for id in config.disks.iter().map(|disk| &disk.id).chain(config.nets.iter().map(|net| &net.id)) {
            name("id", id, NAME_MAX)?;
            if !ids.insert(id) {
                return Err(ConfigError::DuplicateId { id: id.clone() });
            }
        }
        config.disks.iter().try_for_each(disk)?;
        config.nets.iter().try_for_each(net)?;
        if config.jail.as_ref().is_some_and(|jail| jail.uid == 0 || jail.gid == 0) {
            return Err(ConfigError::JailIsRoot);
        }
        if let Some(path) = config.jail.as_ref().and_then(|jail| jail.chroot.clone()) {
            return Err(ConfigError::Chroot { path });
        }
        Ok(Self(config))
    }
}

fn boot(boot: &BootConfig) -> Result<(), ConfigError> {
    let length = boot.cmdline.len();
    if length >= CMDLINE_MAX || boot.cmdline.contains('\0') {
        return Err(ConfigError::Cmdline { length });
    }
    if boot.protocol == BootProtocol::Native && boot.initrd.is_some() {
        return Err(ConfigError::NativeInitrd);
    }
    Ok(())
}

fn disk(disk: &DiskConfig) -> Result<(), ConfigError> {
    range("disks[].queues", u64::from(disk.queues), 1, u64::from(DISK_QUEUES_MAX))?;
    match &disk.serial {
        Some(serial) if serial.len() > DISK_SERIAL_MAX || !serial.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(ConfigError::Serial { id: disk.id.clone(), serial: serial.clone() })
        }
        _ => Ok(()),
    }
}

fn net(net: &NetConfig) -> Result<(), ConfigError> {
    name("nets[].tap", &net.tap, TAP_NAME_MAX)?;
    net.mtu.map_or(Ok(()), |mtu| {
        range("nets[].mtu", u64::from(mtu), u64::from(*MTU_RANGE.start()), u64::from(*MTU_RANGE.end()))
    })
}

fn name(field: &'static str, value: &str, max: usize) -> Result<(), ConfigError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if value.is_empty() || value.len() > max || !value.bytes().all(plain) {
        return Err(ConfigError::Name { field, value: value.to_owned(), max });
    }
    Ok(())
}

const fn range(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if value < least || value > most {
        return Err(ConfigError::Range { field, value, least, most });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json() -> serde_json::Value {
        serde_json::json!({
            "name": "web-1", "vcpus": 2, "memory_mib": 256,
            "boot": {"kernel": "/boot/vmlinuz", "cmdline": "console=ttyS0"},
            "disks": [{"id": "root", "source": {"file": {"path": "/tmp/a.raw", "direct": true}}}],
            "nets": [{"id": "net0", "tap": "tap0", "mac": "52:54:00:00:00:01", "mtu": 1450}],
            "console": {"socket": "/run/c.sock"}
        })
    }

    fn with(path: &str, value: serde_json::Value) -> Result<Checked, ConfigError> {
        let mut config = json();
        let (parent, key) = path.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        VmConfig::parse(&config.to_string())
    }

    #[test]
    fn a_plain_configuration_is_accepted_with_defaults_and_round_trips() {
        let checked = VmConfig::parse(&json().to_string()).unwrap();
        let config = checked.get();
        assert!(config.rng && config.jail.is_none() && !config.disks[0].read_only);
        assert_eq!((config.disks[0].queues, config.boot.protocol), (1, BootProtocol::Auto));
        assert_eq!(config.console.device, ConsoleDevice::Serial);
        let again = VmConfig::parse(&serde_json::to_string(config).unwrap()).unwrap();
        assert_eq!(checked, again);
    }

    #[test]
    fn an_rbd_source_has_its_shape() {
        let rbd =
            serde_json::json!([{"id": "d", "source": {"rbd": {"conf": "/c", "user": "u", "pool": "p", "image": "i"}}}]);
        let checked = with("/disks", rbd).unwrap();
        assert!(matches!(&checked.get().disks[0].source, DiskSource::Rbd(rbd) if rbd.image == "i"));
    }

    /// Each row breaks one field; the error must name what was wrong with it.
    #[test]
    fn each_bad_field_is_named() {
        let long = "x".repeat(CMDLINE_MAX);
        let rows = [
            ("/name", serde_json::json!(""), "name"),
            ("/name", serde_json::json!("a/b"), "name"),
            ("/vcpus", serde_json::json!(0), "vcpus 0 must be 1 to 64"),
            ("/vcpus", serde_json::json!(65), "vcpus"),
            ("/memory_mib", serde_json::json!(1), "memory_mib"),
            ("/boot/cmdline", serde_json::json!(long), "boot.cmdline of 2048 bytes"),
            ("/boot/cmdline", serde_json::json!("a\u{0}b"), "boot.cmdline"),
            ("/boot/protocol", serde_json::json!("bios"), "bios"),
            ("/nets/0/mac", serde_json::json!("01:00:5e:00:00:01"), "01:00:5e:00:00:01"),
            ("/nets/0/mac", serde_json::json!("5254:00:00:00:1"), "MAC"),
            ("/nets/0/mtu", serde_json::json!(60), "nets[].mtu"),
            ("/nets/0/tap", serde_json::json!("a-name-longer-than-fifteen"), "nets[].tap"),
            ("/nets/0/id", serde_json::json!("root"), "used by two devices"),
            ("/disks/0/queues", serde_json::json!(17), "disks[].queues"),
            ("/disks/0/serial", serde_json::json!("has a space"), "serial"),
            ("/disks/0/source", serde_json::json!({"nbd": {}}), "nbd"),
            ("/disks/0/colour", serde_json::json!(1), "colour"),
            ("/jail", serde_json::json!({"uid": 0, "gid": 5}), "jail"),
        ];
        for (path, value, expected) in rows {
            let error = with(path, value.clone()).unwrap_err().to_string();
            assert!(error.contains(expected), "{path} = {value}: {error}");
        }
    }

    #[test]
    fn more_devices_than_slots_are_refused() {
        let disks: Vec<_> =
            (0..31).map(|n| serde_json::json!({"id": format!("d{n}"), "source": {"file": {"path": "/d"}}})).collect();
        assert_eq!(with("/disks", disks.into()), Err(ConfigError::TooManyDevices { count: 33 }));
    }
}
