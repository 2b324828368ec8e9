//! User, group and capabilities: gives up all of them, for all threads, for good.
//!
//! Source: capabilities(7), credentials(7). A change from user 0 to another clears the effective, permitted and ambient sets of every thread
//! (the C library carries a change of user to all threads); the bounding set follows for what those threads might execute, which the
//! no-new-privileges flag already keeps from gaining anything.

use std::collections::HashSet;

use caps::errors::CapsError;
use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// An unprivileged user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User, not 0.
    pub uid: u32,
    /// Group, not 0.
    pub gid: u32,
}

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// User or group 0 was asked for.
    #[error("become user {} and group {}: 0 is not unprivileged", .0.uid, .0.gid)]
    Root(Identity),
    /// A system call refused.
    #[error("{what}")]
    Call {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A capability set could not be read or written.
    #[error("clear the {set:?} capability set")]
    Set {
        /// Which set.
        set: CapSet,
        /// Why.
        #[source]
        source: CapsError,
    },
    /// Something is still held: the process was started with capabilities and no identity to become.
    #[error("still hold {held:?} in the {set:?} capability set")]
    Held {
        /// Which set.
        set: CapSet,
        /// What is in it.
        held: HashSet<Capability>,
    },
}

/// Sets the no-new-privileges flag: no execution gains anything any more.
///
/// # Errors
/// [`PrivilegeError::Call`].
pub fn forbid_gaining() -> Result<(), PrivilegeError> {
    nix::sys::prctl::set_no_new_privs().map_err(|source| PrivilegeError::Call { what: "set no-new-privileges", source })
}

/// What opening volumes and then becoming somebody else takes: a keyring of another user, pinned memory of an io_uring on older kernels, the
/// change itself.
const KEPT_FOR_OPENING: [Capability; 4] =
    [Capability::CAP_DAC_OVERRIDE, Capability::CAP_IPC_LOCK, Capability::CAP_SETGID, Capability::CAP_SETUID];

/// Gives up every capability but those that opening an image needs; threads made later have no more.
///
/// # Errors
/// [`PrivilegeError::Set`].
pub fn keep_for_opening() -> Result<(), PrivilegeError> {
    if Uid::effective().is_root() {
        clear(CapSet::Bounding)?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        clear(set)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        let fail = |source| PrivilegeError::Set { set, source };
        let held = caps::read(None, set).map_err(fail)?;
        let kept = held.into_iter().filter(|capability| KEPT_FOR_OPENING.contains(capability)).collect();
        caps::set(None, set, &kept).map_err(fail)?;
    }
    Ok(())
}

/// Becomes `identity`, where one is given, and makes sure that no capability is left.
///
/// # Errors
/// [`PrivilegeError`]; the process may have given up a part then, and must end.
pub fn drop_to(identity: Option<Identity>) -> Result<(), PrivilegeError> {
    if let Some(identity) = identity {
        if identity.uid == 0 || identity.gid == 0 {
            return Err(PrivilegeError::Root(identity));
        }
        if Uid::effective().is_root() {
            if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
                clear(CapSet::Bounding)?;
            }
            become_other(identity)?;
        }
    }
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        clear(set)?;
        let held = caps::read(None, set).map_err(|source| PrivilegeError::Set { set, source })?;
        if !held.is_empty() {
            return Err(PrivilegeError::Held { set, held });
        }
    }
    Ok(())
}

fn become_other(identity: Identity) -> Result<(), PrivilegeError> {
    let call = |what| move |source| PrivilegeError::Call { what, source };
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setgroups(&[]).map_err(call("leave all supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(call("change group"))?;
    setresuid(uid, uid, uid).map_err(call("change user"))
}

fn clear(set: CapSet) -> Result<(), PrivilegeError> {
    caps::clear(None, set).map_err(|source| PrivilegeError::Set { set, source })
}
