//! The three ioctls that make a tap (Linux Documentation/networking/tuntap.rst; numbers from linux/if_tun.h).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Ethernet frames, no extra header of 4 bytes, room for the virtio-net header.
const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

nix::ioctl_write_int!(tun_set_iff, b'T', 202);
nix::ioctl_write_int!(tun_set_persist, b'T', 203);
nix::ioctl_write_int!(tun_set_owner, b'T', 204);

/// Makes tap `name`, or attaches to it for a moment, has it stay, and lets `owner` attach to it.
///
/// # Errors
/// What the kernel says; `EBUSY` when a machine has it open.
pub(super) fn make_persistent(name: &str, owner: Option<u32>) -> io::Result<()> {
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is a C struct of integers and arrays of them, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() || !name.is_ascii() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = libc::c_char::try_from(byte).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(TAP_FLAGS).map_err(|_| io::ErrorKind::InvalidInput)?;
    let address = (&raw mut request).expose_provenance() as nix::sys::ioctl::ioctl_param_type;
    // SAFETY: the descriptor is an open /dev/net/tun and the address that of a whole ifreq, which outlives the call.
    unsafe { tun_set_iff(tap.as_raw_fd(), address) }?;
    if let Some(owner) = owner {
        // SAFETY: the request takes a number, no pointer.
        unsafe { tun_set_owner(tap.as_raw_fd(), owner.into()) }?;
    }
    // SAFETY: the request takes a number, no pointer.
    unsafe { tun_set_persist(tap.as_raw_fd(), 1) }?;
    Ok(())
}
