//! Owners of librados and librbd handles: each is made once, used by safe methods, and given back in the right order.
//!
//! ```text
//!   ImageOwner ──keeps──▶ PoolOwner ──keeps──▶ RadosOwner       (each drops before what it keeps)
//! ```
//!
//! Methods are thin: one C call each, errors as the errno that the call returned. Meaning is given to errors above.
//! librados and librbd handles may be used from any thread (librados.h, "thread-safe").

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use super::ffi::{self, Functions, ImageHandle, ImageInfo, OptionsHandle, PoolHandle, RadosHandle};

/// Most entries of any list that is asked for again with more room: the answer may grow meanwhile, but not for ever.
const LIST_TRIES: usize = 8;

/// The longest value of an option that is asked for: a list of paths.
const OPTION_BYTES_MAX: usize = 4096;

/// A positive error number from Ceph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// What a call that returns a count or a negative errno meant.
pub(super) fn check(status: c_int) -> Result<c_int, Errno> {
    if status < 0 { Err(Errno(-status)) } else { Ok(status) }
}

/// A connection to a cluster.
pub(super) struct RadosOwner {
    functions: &'static Functions,
    handle: RadosHandle,
}

// SAFETY: librados handles are thread-safe.
unsafe impl Send for RadosOwner {}
// SAFETY: as above.
unsafe impl Sync for RadosOwner {}

impl RadosOwner {
    /// A handle for `client.user`, not connected yet.
    pub(super) fn new(functions: &'static Functions, user: &CStr) -> Result<Self, Errno> {
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is writable and `user` is a C string; librados copies it.
        check(unsafe { (functions.rados_create)(&raw mut handle, user.as_ptr()) })?;
        Ok(Self { functions, handle })
    }

    pub(super) fn read_configuration(&self, path: &CStr) -> Result<(), Errno> {
        // SAFETY: the handle is alive and `path` is a C string.
        check(unsafe { (self.functions.rados_conf_read_file)(self.handle, path.as_ptr()) }).map(drop)
    }

    pub(super) fn set(&self, option: &CStr, value: &CStr) -> Result<(), Errno> {
        // SAFETY: the handle is alive and both are C strings, which librados copies.
        check(unsafe { (self.functions.rados_conf_set)(self.handle, option.as_ptr(), value.as_ptr()) }).map(drop)
    }

    /// The value of an option, with its variables expanded.
    pub(super) fn option(&self, option: &CStr) -> Result<String, Errno> {
        let mut text = [0_u8; OPTION_BYTES_MAX];
        // SAFETY: the handle is alive, `option` is a C string, and the buffer is as long as said.
        check(unsafe {
            (self.functions.rados_conf_get)(self.handle, option.as_ptr(), text.as_mut_ptr().cast(), text.len())
        })?;
        Ok(CStr::from_bytes_until_nul(&text).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// Connects; called once, before anything that speaks to the cluster.
    pub(super) fn connect(&self) -> Result<(), Errno> {
        // SAFETY: the handle is alive and configured.
        check(unsafe { (self.functions.rados_connect)(self.handle) }).map(drop)
    }

    /// The cluster's id.
    pub(super) fn fsid(&self) -> Result<String, Errno> {
        let mut text = [0_u8; 64];
        // SAFETY: the handle is connected, and the buffer is as long as said.
        check(unsafe { (self.functions.rados_cluster_fsid)(self.handle, text.as_mut_ptr().cast(), text.len()) })?;
        Ok(CStr::from_bytes_until_nul(&text).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// Makes the cluster refuse the client at `address` from now on.
    pub(super) fn block(&self, address: &CStr, seconds: u32) -> Result<(), Errno> {
        let mut address = address.to_owned().into_bytes_with_nul();
        // SAFETY: the handle is connected; the address is a zero-terminated buffer of our own, as the call wants one
        // that is not const.
        check(unsafe { (self.functions.rados_blocklist_add)(self.handle, address.as_mut_ptr().cast(), seconds) })
            .map(drop)
    }

    /// Asks the monitors, in their JSON; their answer's bytes.
    pub(super) fn ask_monitors(&self, question: &CStr) -> Result<Vec<u8>, Errno> {
        let (mut answer, mut answer_length) = (ptr::null_mut(), 0);
        let (mut words, mut words_length) = (ptr::null_mut(), 0);
        let questions = [question.as_ptr()];
        // SAFETY: the handle is connected, there is one question and no input, and the four results are writable.
        let status = unsafe {
            (self.functions.rados_mon_command)(
                self.handle,
                questions.as_ptr(),
                questions.len(),
                ptr::null(),
                0,
                &raw mut answer,
                &raw mut answer_length,
                &raw mut words,
                &raw mut words_length,
            )
        };
        let bytes = if answer.is_null() {
            Vec::new()
        } else {
            // SAFETY: the call returned a buffer of this length, which is ours until it is freed below.
            unsafe { std::slice::from_raw_parts(answer.cast::<u8>(), answer_length) }.to_vec()
        };
        for buffer in [answer, words] {
            if !buffer.is_null() {
                // SAFETY: the call allocated the buffer, and it is not used again.
                unsafe { (self.functions.rados_buffer_free)(buffer) };
            }
        }
        check(status).map(|_| bytes)
    }

    /// Waits until this client knows the newest map of the cluster.
    pub(super) fn wait_for_newest_map(&self) -> Result<(), Errno> {
        // SAFETY: the handle is connected.
        check(unsafe { (self.functions.rados_wait_for_latest_osdmap)(self.handle) }).map(drop)
    }
}

impl Drop for RadosOwner {
    fn drop(&mut self) {
        // SAFETY: all pools and images keep this owner, so nothing uses the handle any more.
        unsafe { (self.functions.rados_shutdown)(self.handle) };
    }
}

/// A pool of a connected cluster.
pub(super) struct PoolOwner {
    rados: Arc<RadosOwner>,
    handle: PoolHandle,
}

// SAFETY: librados handles are thread-safe.
unsafe impl Send for PoolOwner {}
// SAFETY: as above.
unsafe impl Sync for PoolOwner {}

impl PoolOwner {
    pub(super) fn new(rados: &Arc<RadosOwner>, pool: &CStr) -> Result<Self, Errno> {
        let mut handle = ptr::null_mut();
        // SAFETY: the cluster is connected, `pool` is a C string and `handle` is writable.
        check(unsafe { (rados.functions.rados_ioctx_create)(rados.handle, pool.as_ptr(), &raw mut handle) })?;
        Ok(Self { rados: Arc::clone(rados), handle })
    }

    pub(super) fn rados(&self) -> &RadosOwner {
        &self.rados
    }

    pub(super) fn create(&self, name: &CStr, size_bytes: u64, features: u64) -> Result<(), Errno> {
        let options = Options::new(self.rados.functions, features)?;
        // SAFETY: pool and options are alive, `name` is a C string.
        check(unsafe { (self.rados.functions.rbd_create4)(self.handle, name.as_ptr(), size_bytes, options.handle) })
            .map(drop)
    }

    pub(super) fn clone_image(&self, parent: &CStr, snapshot: &CStr, child: &CStr, features: u64) -> Result<(), Errno> {
        let options = Options::new(self.rados.functions, features)?;
        let clone = self.rados.functions.rbd_clone3;
        let (parent, snapshot, child) = (parent.as_ptr(), snapshot.as_ptr(), child.as_ptr());
        // SAFETY: pool and options are alive, the names are C strings.
        check(unsafe { clone(self.handle, parent, snapshot, self.handle, child, options.handle) }).map(drop)
    }

    pub(super) fn remove(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: the pool is alive, `name` is a C string.
        check(unsafe { (self.rados.functions.rbd_remove)(self.handle, name.as_ptr()) }).map(drop)
    }

    pub(super) fn rename(&self, from: &CStr, to: &CStr) -> Result<(), Errno> {
        // SAFETY: the pool is alive, both are C strings.
        check(unsafe { (self.rados.functions.rbd_rename)(self.handle, from.as_ptr(), to.as_ptr()) }).map(drop)
    }

    /// The names of all images.
    pub(super) fn list(&self) -> Result<Vec<String>, Errno> {
        let functions = self.rados.functions;
        let empty = ffi::ImageSpec { id: ptr::null_mut(), name: ptr::null_mut() };
        // SAFETY: the pool is alive; the array has `count` elements, which the call fills or asks more room for.
        let specs = list(empty, |array, count| unsafe { (functions.rbd_list2)(self.handle, array, count) })?;
        let names = specs.iter().map(|spec| text_at(spec.name)).collect();
        let mut specs = specs;
        // SAFETY: the call above allocated the strings of exactly these elements.
        unsafe { (functions.rbd_image_spec_list_cleanup)(specs.as_mut_ptr(), specs.len()) };
        Ok(names)
    }
}

impl PoolOwner {
    /// Takes or renews a lock on an object for some seconds. `cookie` tells holders apart that share a client.
    pub(super) fn lock_object(&self, object: &CStr, cookie: &CStr, seconds: u32) -> Result<(), Errno> {
        let lock = self.rados.functions.rados_lock_exclusive;
        let mut duration = libc::timeval { tv_sec: seconds.into(), tv_usec: 0 };
        let (object, cookie, flags) = (object.as_ptr(), cookie.as_ptr(), ffi::LOCK_MAY_RENEW);
        // SAFETY: the pool is alive, all names are C strings, the duration is read only.
        check(unsafe { lock(self.handle, object, c"basalt".as_ptr(), cookie, c"".as_ptr(), &raw mut duration, flags) })
            .map(drop)
    }

    /// Removes an object, with any lock on it.
    pub(super) fn remove_object(&self, object: &CStr) -> Result<(), Errno> {
        // SAFETY: the pool is alive, `object` is a C string.
        check(unsafe { (self.rados.functions.rados_remove)(self.handle, object.as_ptr()) }).map(drop)
    }
}

impl Drop for PoolOwner {
    fn drop(&mut self) {
        // SAFETY: all images keep this owner, so nothing uses the handle any more.
        unsafe { (self.rados.functions.rados_ioctx_destroy)(self.handle) };
    }
}

/// Options of a new image.
struct Options {
    functions: &'static Functions,
    handle: OptionsHandle,
}

impl Options {
    fn new(functions: &'static Functions, features: u64) -> Result<Self, Errno> {
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is writable; the call cannot fail.
        unsafe { (functions.rbd_image_options_create)(&raw mut handle) };
        let options = Self { functions, handle };
        for (option, value) in [(ffi::OPTION_FORMAT, 2), (ffi::OPTION_FEATURES, features)] {
            // SAFETY: the options are alive and both take a number.
            check(unsafe { (functions.rbd_image_options_set_uint64)(handle, option, value) })?;
        }
        Ok(options)
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made in `new`, dropped once.
        unsafe { (self.functions.rbd_image_options_destroy)(self.handle) };
    }
}

/// An open image.
pub(super) struct ImageOwner {
    pool: Arc<PoolOwner>,
    handle: ImageHandle,
}

// SAFETY: librbd images are thread-safe.
unsafe impl Send for ImageOwner {}
// SAFETY: as above.
unsafe impl Sync for ImageOwner {}

impl ImageOwner {
    pub(super) fn open(pool: &Arc<PoolOwner>, name: &CStr, read_only: bool) -> Result<Self, Errno> {
        let functions = pool.rados.functions;
        let open = if read_only { functions.rbd_open_read_only } else { functions.rbd_open };
        let mut handle = ptr::null_mut();
        // SAFETY: the pool is alive, `name` is a C string, `handle` is writable, and no snapshot is named.
        check(unsafe { open(pool.handle, name.as_ptr(), &raw mut handle, ptr::null()) })?;
        Ok(Self { pool: Arc::clone(pool), handle })
    }

    pub(super) fn functions(&self) -> &'static Functions {
        self.pool.rados.functions
    }

    pub(super) fn rados(&self) -> &RadosOwner {
        &self.pool.rados
    }

    /// The raw handle, for I/O; it is closed when `self` is dropped.
    pub(super) fn handle(&self) -> ImageHandle {
        self.handle
    }

    /// Size in bytes and size of one object.
    pub(super) fn stat(&self) -> Result<(u64, u64), Errno> {
        let mut info = MaybeUninit::<ImageInfo>::zeroed();
        let size = size_of::<ImageInfo>();
        // SAFETY: the image is open, and `info` has the size that is said.
        check(unsafe { (self.functions().rbd_stat)(self.handle, info.as_mut_ptr(), size) })?;
        // SAFETY: all-zero bytes are a valid `ImageInfo`, and the call wrote valid values over them.
        let info = unsafe { info.assume_init() };
        Ok((info.size_bytes, info.object_bytes))
    }

    pub(super) fn features(&self) -> Result<u64, Errno> {
        let mut features = 0;
        // SAFETY: the image is open, `features` is writable.
        check(unsafe { (self.functions().rbd_get_features)(self.handle, &raw mut features) })?;
        Ok(features)
    }

    pub(super) fn resize(&self, size_bytes: u64) -> Result<(), Errno> {
        // SAFETY: the image is open.
        check(unsafe { (self.functions().rbd_resize)(self.handle, size_bytes) }).map(drop)
    }

    pub(super) fn create_snapshot(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: the image is open, `name` is a C string.
        check(unsafe { (self.functions().rbd_snap_create)(self.handle, name.as_ptr()) }).map(drop)
    }

    pub(super) fn remove_snapshot(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: the image is open, `name` is a C string.
        check(unsafe { (self.functions().rbd_snap_remove)(self.handle, name.as_ptr()) }).map(drop)
    }

    pub(super) fn protect(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: the image is open, `name` is a C string.
        check(unsafe { (self.functions().rbd_snap_protect)(self.handle, name.as_ptr()) }).map(drop)
    }

    pub(super) fn unprotect(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: the image is open, `name` is a C string.
        check(unsafe { (self.functions().rbd_snap_unprotect)(self.handle, name.as_ptr()) }).map(drop)
    }

    pub(super) fn is_protected(&self, name: &CStr) -> Result<bool, Errno> {
        let mut protected = 0;
        // SAFETY: the image is open, `name` is a C string, `protected` is writable.
        check(unsafe { (self.functions().rbd_snap_is_protected)(self.handle, name.as_ptr(), &raw mut protected) })?;
        Ok(protected != 0)
    }

    /// Names and sizes of all snapshots.
    pub(super) fn snapshots(&self) -> Result<Vec<(String, u64)>, Errno> {
        let functions = self.functions();
        let mut room = 16;
        for _ in 0..LIST_TRIES {
            let empty = ffi::SnapInfo { id: 0, size_bytes: 0, name: ptr::null() };
            let mut array = vec![empty; room];
            let mut count = ffi::count_of(room);
            // SAFETY: the image is open; the array has `count` elements.
            let status = unsafe { (functions.rbd_snap_list)(self.handle, array.as_mut_ptr(), &raw mut count) };
            let wanted = usize::try_from(count).unwrap_or(0);
            if status == -libc::ERANGE {
                room = wanted + 1;
                continue;
            }
            let filled = usize::try_from(check(status)?).unwrap_or(0).min(room);
            let snapshots = array[..filled].iter().map(|info| (text_at(info.name), info.size_bytes)).collect();
            if filled > 0 {
                // SAFETY: the call above allocated the names; the element after the last filled one has a null name,
                // which ends the walk (room is larger than what was filled, or the call would have said ERANGE).
                unsafe { (functions.rbd_snap_list_end)(array.as_mut_ptr()) };
            }
            return Ok(snapshots);
        }
        Err(Errno(libc::ERANGE))
    }

    /// Shows the image as it was at the snapshot from now on.
    pub(super) fn show_snapshot(&self, name: &CStr) -> Result<(), Errno> {
        // SAFETY: the image is open, `name` is a C string.
        check(unsafe { (self.functions().rbd_snap_set)(self.handle, name.as_ptr()) }).map(drop)
    }

    /// The clones of the snapshot that is shown (of all where none is), as `pool/image`.
    pub(super) fn children(&self) -> Result<Vec<String>, Errno> {
        let functions = self.functions();
        let empty = ffi::LinkedImageSpec {
            pool_id: 0,
            pool_name: ptr::null_mut(),
            pool_namespace: ptr::null_mut(),
            image_id: ptr::null_mut(),
            image_name: ptr::null_mut(),
            trash: false,
        };
        // SAFETY: the image is open; the array has `count` elements.
        let mut specs =
            list(empty, |array, count| unsafe { (functions.rbd_list_children3)(self.handle, array, count) })?;
        let names = specs.iter().map(|spec| format!("{}/{}", text_at(spec.pool_name), text_at(spec.image_name)));
        let names = names.collect();
        // SAFETY: the call above allocated the strings of exactly these elements.
        unsafe { (functions.rbd_linked_image_spec_list_cleanup)(specs.as_mut_ptr(), specs.len()) };
        Ok(names)
    }

    pub(super) fn set_metadata(&self, key: &CStr, value: &CStr) -> Result<(), Errno> {
        // SAFETY: the image is open, both are C strings.
        check(unsafe { (self.functions().rbd_metadata_set)(self.handle, key.as_ptr(), value.as_ptr()) }).map(drop)
    }

    pub(super) fn metadata(&self, key: &CStr) -> Result<String, Errno> {
        let mut value = [0_u8; 512];
        let mut length = value.len();
        let get = self.functions().rbd_metadata_get;
        // SAFETY: the image is open, `key` is a C string, `value` has `length` bytes.
        check(unsafe { get(self.handle, key.as_ptr(), value.as_mut_ptr().cast(), &raw mut length) })?;
        Ok(CStr::from_bytes_until_nul(&value).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
    }

    pub(super) fn acquire_lock(&self) -> Result<(), Errno> {
        // SAFETY: the image is open.
        check(unsafe { (self.functions().rbd_lock_acquire)(self.handle, ffi::LOCK_EXCLUSIVE) }).map(drop)
    }

    pub(super) fn release_lock(&self) -> Result<(), Errno> {
        // SAFETY: the image is open.
        check(unsafe { (self.functions().rbd_lock_release)(self.handle) }).map(drop)
    }

    pub(super) fn break_lock(&self, owner: &CStr) -> Result<(), Errno> {
        // SAFETY: the image is open, `owner` is a C string.
        check(unsafe { (self.functions().rbd_lock_break)(self.handle, ffi::LOCK_EXCLUSIVE, owner.as_ptr()) }).map(drop)
    }

    /// The address of the client that has the exclusive lock.
    pub(super) fn lock_owner(&self) -> Result<Option<String>, Errno> {
        let functions = self.functions();
        let mut mode = 0;
        let owners = list(ptr::null_mut::<c_char>(), |array, count| {
            // SAFETY: the image is open; the array has `count` elements and `mode` is writable.
            unsafe { (functions.rbd_lock_get_owners)(self.handle, &raw mut mode, array, count) }
        });
        let mut owners = match owners {
            Err(Errno(libc::ENOENT)) => return Ok(None),
            other => other?,
        };
        let first = owners.first().map(|owner| text_at(*owner));
        // SAFETY: the call above allocated exactly these strings.
        unsafe { (functions.rbd_lock_get_owners_cleanup)(owners.as_mut_ptr(), owners.len()) };
        Ok(first)
    }

    /// The addresses of all clients that have the image open for writing, ourselves included.
    pub(super) fn watchers(&self) -> Result<Vec<String>, Errno> {
        let functions = self.functions();
        let empty = ffi::Watcher { address: ptr::null_mut(), id: 0, cookie: 0 };
        // SAFETY: the image is open; the array has `count` elements.
        let mut found =
            list(empty, |array, count| unsafe { (functions.rbd_watchers_list)(self.handle, array, count) })?;
        let addresses = found.iter().map(|watcher| text_at(watcher.address)).collect();
        // SAFETY: the call above allocated the strings of exactly these elements.
        unsafe { (functions.rbd_watchers_list_cleanup)(found.as_mut_ptr(), found.len()) };
        Ok(addresses)
    }
}

impl Drop for ImageOwner {
    fn drop(&mut self) {
        // SAFETY: the image is open, and nothing uses the handle after this.
        let status = unsafe { (self.functions().rbd_close)(self.handle) };
        if let Err(errno) = check(status) {
            tracing::warn!(error = %io::Error::from(errno), "an image did not close in order");
        }
    }
}

/// Calls `fill` with more and more room until the list fits. `fill` says how many there are in `count` and returns a
/// negative errno, ERANGE where there is too little room.
fn list<T: Copy>(empty: T, mut fill: impl FnMut(*mut T, *mut usize) -> c_int) -> Result<Vec<T>, Errno> {
    let mut array = vec![empty; 16];
    for _ in 0..LIST_TRIES {
        let mut count = array.len();
        let status = fill(array.as_mut_ptr(), &raw mut count);
        if status == -libc::ERANGE {
            array = vec![empty; count.max(array.len() * 2)];
            continue;
        }
        check(status)?;
        array.truncate(count);
        return Ok(array);
    }
    Err(Errno(libc::ERANGE))
}

/// The text at a C string that a call returned, empty for null.
fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: librbd returns zero-terminated strings, which live until the list's clean-up, after this call.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A C string of a name that may come from anywhere.
pub(super) fn c_string(text: &str) -> Result<CString, super::RbdError> {
    CString::new(text).map_err(|_| super::RbdError::Name { text: text.to_owned() })
}
