//! A tap interface of the host: one Ethernet packet a call, each behind a virtio header of 12 bytes (`IFF_VNET_HDR`).
//!
//! This file owns the ioctls and the vectored calls. It opens interfaces that exist and never makes one: what a missing name means is the caller's
//! question. Offsets of the structures are those of `linux/if.h` and `linux/if_tun.h`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use storage::memory::Buffers;

/// Bytes of the virtio header before each packet (virtio 1.2 §5.1.6, with `num_buffers`).
pub const HEADER_BYTES: usize = 12;

/// What the host may hand to the guest unfinished (`TUNSETOFFLOAD`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Packets without checksum.
    pub checksum: bool,
    /// TCP over IPv4 to be cut into segments.
    pub tso4: bool,
    /// TCP over IPv6 to be cut into segments.
    pub tso6: bool,
}

/// A tap interface could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no such interface in this network namespace.
    #[error(
        "there is no interface {name:?} in this network namespace; make it with: ip tuntap add {name} mode tap vnet_hdr"
    )]
    Missing {
        /// The name.
        name: String,
    },
    /// The kernel refused.
    #[error("tap {name}: {attempt}")]
    Refused {
        /// The name.
        name: String,
        /// What was attempted.
        attempt: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// An attached tap interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

/// `struct ifreq` as the tun driver reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl Tap {
    /// Attaches to the interface `name`, non-blocking.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        if !Path::new("/sys/class/net").join(name).exists() {
            return Err(TapError::Missing { name: name.to_owned() });
        }
        let refused = |attempt| move |source| TapError::Refused { name: name.to_owned(), attempt, source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(refused("open /dev/net/tun"))?;
        let flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap_or(0);
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, padding: [0; 22] };
        let length = name.len().min(libc::IFNAMSIZ - 1);
        request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
        // SAFETY: the structure has the size and layout of `struct ifreq` (asserted above) and lives through the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        check(result).map_err(refused("attach to the interface"))?;
        let header = libc::c_int::try_from(HEADER_BYTES).unwrap_or(0);
        // SAFETY: the kernel reads one int through the pointer.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
        check(result).map_err(refused("set the size of the virtio header"))?;
        Ok(Self { file, name: name.to_owned() })
    }

    /// Says what the guest takes unfinished.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn set_offload(&self, offload: Offload) -> Result<(), TapError> {
        let bit = |on, bit: libc::c_uint| if on { bit } else { 0 };
        let flags = bit(offload.checksum, libc::TUN_F_CSUM)
            | bit(offload.checksum && offload.tso4, libc::TUN_F_TSO4)
            | bit(offload.checksum && offload.tso6, libc::TUN_F_TSO6);
        // SAFETY: the argument is a plain number.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
        check(result).map_err(|source| TapError::Refused {
            name: self.name.clone(),
            attempt: "set the offloads",
            source,
        })
    }

    /// Reads one packet with its header into `bytes`; none when none waits.
    ///
    /// # Errors
    /// What the kernel said: `EBADFD` once the interface is gone.
    pub fn receive(&self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        use std::io::Read;
        match (&self.file).read(bytes) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one packet with its header from guest memory.
    ///
    /// # Errors
    /// What the kernel said; `EINVAL` for a header or packet it does not accept.
    pub fn send(&self, packet: &Buffers) -> io::Result<usize> {
        let count = libc::c_int::try_from(packet.count()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the array has `count` elements over memory that `packet` keeps mapped, and the kernel only reads it during the call.
        let sent = unsafe { libc::writev(self.file.as_raw_fd(), packet.as_iovecs(), count) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
impl Tap {
    /// Any descriptor that keeps packets apart in place of an interface.
    pub(crate) fn of(packets: impl Into<std::os::fd::OwnedFd>) -> Self {
        Self { file: packets.into().into(), name: "test".to_owned() }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_named_with_the_way_out() {
        let error = Tap::open("no-such-tap").unwrap_err();
        assert!(error.to_string().contains("ip tuntap add no-such-tap"), "{error}");
    }
}
