//! The functions of librados and librbd that Basalt calls, found in the shared libraries at run time.
//!
//! This module owns the C declarations (of librados.h and librbd.h as shipped with Ceph 16.2; all are kept by later
//! releases) and the loading. It never calls any of them: that is for `handle` and `completion`, which say for each
//! call why it is sound.
//!
//! Invariant: once loaded, the libraries are never unloaded, for they keep threads of their own.

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

use super::RbdError;

/// The Debian package that has each library, for the error that names the way out.
const PACKAGE_OF: [(&str, &str); 2] = [("librados.so.2", "librados2"), ("librbd.so.1", "librbd1")];

/// `rados_t`.
pub(super) type RadosHandle = *mut c_void;
/// `rados_ioctx_t`.
pub(super) type PoolHandle = *mut c_void;
/// `rbd_image_t`.
pub(super) type ImageHandle = *mut c_void;
/// `rbd_completion_t`.
pub(super) type CompletionHandle = *mut c_void;
/// `rbd_image_options_t`.
pub(super) type OptionsHandle = *mut c_void;
/// `rbd_callback_t`.
pub(super) type Callback = unsafe extern "C" fn(CompletionHandle, *mut c_void);

/// `RBD_LOCK_MODE_EXCLUSIVE`.
pub(super) const LOCK_EXCLUSIVE: c_int = 0;
/// `EVENT_TYPE_EVENTFD`.
pub(super) const EVENT_TYPE_EVENTFD: c_int = 2;
/// `LIBRADOS_LOCK_FLAG_MAY_RENEW`.
pub(super) const LOCK_MAY_RENEW: u8 = 1 << 0;
/// `RBD_IMAGE_OPTION_FORMAT`.
pub(super) const OPTION_FORMAT: c_int = 0;
/// `RBD_IMAGE_OPTION_FEATURES`.
pub(super) const OPTION_FEATURES: c_int = 1;

/// `rbd_image_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ImageInfo {
    pub(super) size_bytes: u64,
    pub(super) object_bytes: u64,
    pub(super) objects: u64,
    pub(super) order: c_int,
    pub(super) block_name_prefix: [c_char; 24],
    pub(super) parent_pool: i64,
    pub(super) parent_name: [c_char; 96],
}
const _: () = assert!(size_of::<ImageInfo>() == 160);

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ImageSpec {
    pub(super) id: *mut c_char,
    pub(super) name: *mut c_char,
}
const _: () = assert!(size_of::<ImageSpec>() == 16);

/// `rbd_linked_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LinkedImageSpec {
    pub(super) pool_id: i64,
    pub(super) pool_name: *mut c_char,
    pub(super) pool_namespace: *mut c_char,
    pub(super) image_id: *mut c_char,
    pub(super) image_name: *mut c_char,
    pub(super) trash: bool,
}
const _: () = assert!(size_of::<LinkedImageSpec>() == 48);

/// `rbd_snap_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SnapInfo {
    pub(super) id: u64,
    pub(super) size_bytes: u64,
    pub(super) name: *const c_char,
}
const _: () = assert!(size_of::<SnapInfo>() == 24);

/// `rbd_image_watcher_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Watcher {
    pub(super) address: *mut c_char,
    pub(super) id: i64,
    pub(super) cookie: u64,
}
const _: () = assert!(size_of::<Watcher>() == 24);

/// Declares the table: one field per function, of its C type, and how to find them all.
macro_rules! functions {
    ($($library:ident { $($name:ident($($type:ty),*) $(-> $result:ty)?;)* })*) => {
        /// The functions, found once per process.
        pub(super) struct Functions {
            $($(pub(super) $name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*)*
        }

        impl Functions {
            fn find(rados: &Library, rbd: &Library) -> Result<Self, libloading::Error> {
                // Names the parameters after the groups below.
                let ($($library,)*) = (rados, rbd);
                Ok(Self {
                    $($(
                        // SAFETY: the symbol is a function of the library's C interface, and its type here is the one
                        // that the library's header declares.
                        $name: *unsafe { $library.get(concat!(stringify!($name), "\0").as_bytes()) }?,
                    )*)*
                })
            }
        }
    };
}

functions! {
    rados {
        rados_create(*mut RadosHandle, *const c_char) -> c_int;
        rados_conf_read_file(RadosHandle, *const c_char) -> c_int;
        rados_conf_set(RadosHandle, *const c_char, *const c_char) -> c_int;
        rados_conf_get(RadosHandle, *const c_char, *mut c_char, usize) -> c_int;
        rados_connect(RadosHandle) -> c_int;
        rados_shutdown(RadosHandle);
        rados_ioctx_create(RadosHandle, *const c_char, *mut PoolHandle) -> c_int;
        rados_ioctx_destroy(PoolHandle);
        rados_cluster_fsid(RadosHandle, *mut c_char, usize) -> c_int;
        rados_blocklist_add(RadosHandle, *mut c_char, u32) -> c_int;
        rados_wait_for_latest_osdmap(RadosHandle) -> c_int;
        rados_mon_command(
            RadosHandle, *const *const c_char, usize, *const c_char, usize,
            *mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize
        ) -> c_int;
        rados_buffer_free(*mut c_char);
        rados_lock_exclusive(
            PoolHandle, *const c_char, *const c_char, *const c_char, *const c_char, *mut libc::timeval, u8
        ) -> c_int;
        rados_remove(PoolHandle, *const c_char) -> c_int;
    }
    rbd {
        rbd_image_options_create(*mut OptionsHandle);
        rbd_image_options_set_uint64(OptionsHandle, c_int, u64) -> c_int;
        rbd_image_options_destroy(OptionsHandle);
        rbd_create4(PoolHandle, *const c_char, u64, OptionsHandle) -> c_int;
        rbd_clone3(PoolHandle, *const c_char, *const c_char, PoolHandle, *const c_char, OptionsHandle) -> c_int;
        rbd_remove(PoolHandle, *const c_char) -> c_int;
        rbd_rename(PoolHandle, *const c_char, *const c_char) -> c_int;
        rbd_list2(PoolHandle, *mut ImageSpec, *mut usize) -> c_int;
        rbd_image_spec_list_cleanup(*mut ImageSpec, usize);
        rbd_open(PoolHandle, *const c_char, *mut ImageHandle, *const c_char) -> c_int;
        rbd_open_read_only(PoolHandle, *const c_char, *mut ImageHandle, *const c_char) -> c_int;
        rbd_close(ImageHandle) -> c_int;
        rbd_stat(ImageHandle, *mut ImageInfo, usize) -> c_int;
        rbd_get_features(ImageHandle, *mut u64) -> c_int;
        rbd_resize(ImageHandle, u64) -> c_int;
        rbd_snap_create(ImageHandle, *const c_char) -> c_int;
        rbd_snap_remove(ImageHandle, *const c_char) -> c_int;
        rbd_snap_protect(ImageHandle, *const c_char) -> c_int;
        rbd_snap_unprotect(ImageHandle, *const c_char) -> c_int;
        rbd_snap_is_protected(ImageHandle, *const c_char, *mut c_int) -> c_int;
        rbd_snap_list(ImageHandle, *mut SnapInfo, *mut c_int) -> c_int;
        rbd_snap_list_end(*mut SnapInfo);
        rbd_snap_set(ImageHandle, *const c_char) -> c_int;
        rbd_list_children3(ImageHandle, *mut LinkedImageSpec, *mut usize) -> c_int;
        rbd_linked_image_spec_list_cleanup(*mut LinkedImageSpec, usize);
        rbd_metadata_set(ImageHandle, *const c_char, *const c_char) -> c_int;
        rbd_metadata_get(ImageHandle, *const c_char, *mut c_char, *mut usize) -> c_int;
        rbd_lock_acquire(ImageHandle, c_int) -> c_int;
        rbd_lock_release(ImageHandle) -> c_int;
        rbd_lock_break(ImageHandle, c_int, *const c_char) -> c_int;
        rbd_lock_get_owners(ImageHandle, *mut c_int, *mut *mut c_char, *mut usize) -> c_int;
        rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
        rbd_watchers_list(ImageHandle, *mut Watcher, *mut usize) -> c_int;
        rbd_watchers_list_cleanup(*mut Watcher, usize);
        rbd_set_image_notification(ImageHandle, c_int, c_int) -> c_int;
        rbd_poll_io_events(ImageHandle, *mut CompletionHandle, c_int) -> c_int;
        rbd_aio_create_completion(*mut c_void, Option<Callback>, *mut CompletionHandle) -> c_int;
        rbd_aio_get_return_value(CompletionHandle) -> isize;
        rbd_aio_get_arg(CompletionHandle) -> *mut c_void;
        rbd_aio_release(CompletionHandle);
        rbd_aio_readv(ImageHandle, *const libc::iovec, c_int, u64, CompletionHandle) -> c_int;
        rbd_aio_writev(ImageHandle, *const libc::iovec, c_int, u64, CompletionHandle) -> c_int;
        rbd_aio_flush(ImageHandle, CompletionHandle) -> c_int;
        rbd_aio_discard(ImageHandle, u64, u64, CompletionHandle) -> c_int;
        rbd_aio_write_zeroes(ImageHandle, u64, usize, CompletionHandle, c_int, c_int) -> c_int;
    }
}

/// The loaded functions; loads the libraries at the first call.
///
/// # Errors
/// [`RbdError::Library`], which names the Debian package; the next call tries again.
pub(super) fn functions() -> Result<&'static Functions, RbdError> {
    static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
    if let Some(loaded) = FUNCTIONS.get() {
        return Ok(loaded);
    }
    let [rados, rbd] = PACKAGE_OF.map(|(library, package)| {
        // SAFETY: loading runs the initialisers of Ceph's libraries, which any program that links them runs as well.
        let loaded = unsafe { Library::new(library) };
        loaded.map_err(|source| RbdError::Library { library, package, source })
    });
    let (rados, rbd) = (rados?, rbd?);
    let found = Functions::find(&rados, &rbd).map_err(|source| {
        let [_, (library, package)] = PACKAGE_OF;
        RbdError::Library { library, package, source }
    })?;
    // Their threads run on: the libraries stay for as long as the process.
    std::mem::forget((rados, rbd));
    Ok(FUNCTIONS.get_or_init(|| found))
}

/// The unsigned length of a C array, for calls that want an `int`.
pub(super) fn count_of(length: usize) -> c_int {
    c_int::try_from(length).unwrap_or(c_int::MAX)
}

/// Ceph's features of an image that matter here (rbd/features.h).
pub(super) mod feature {
    /// `RBD_FEATURE_LAYERING`: clones.
    pub(crate) const LAYERING: u64 = 1 << 0;
    /// `RBD_FEATURE_EXCLUSIVE_LOCK`.
    pub(crate) const EXCLUSIVE_LOCK: u64 = 1 << 2;
    /// `RBD_FEATURE_OBJECT_MAP`: which objects exist, so that clones and diffs do not ask for each.
    pub(crate) const OBJECT_MAP: u64 = 1 << 3;
    /// `RBD_FEATURE_FAST_DIFF`.
    pub(crate) const FAST_DIFF: u64 = 1 << 4;
    /// `RBD_FEATURE_DEEP_FLATTEN`: snapshots of a flattened clone lose their parent too.
    pub(crate) const DEEP_FLATTEN: u64 = 1 << 5;
}

/// No flags, where a call takes some.
pub(super) const NO_FLAGS: c_int = 0;
