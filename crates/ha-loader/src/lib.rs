//! From a PKCS#11 module's file to its function list: private copies, the newest interface, and never one's own library.
//!
//! A crate of its own because two load modules and must not hold each other: `ha-member`, and the fault-injecting token,
//! which a member can be.
#![deny(missing_docs)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki_sys as ck;
use ha_token::{ConnectError, Version};

/// The functions of one loaded module: those that its list does not reach are `None`.
pub struct Functions {
    list: ck::CK_FUNCTION_LIST_3_2,
    version: Version,
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "function list {}.{}", self.version.major, self.version.minor)
    }
}

impl std::ops::Deref for Functions {
    type Target = ck::CK_FUNCTION_LIST_3_2;
    fn deref(&self) -> &Self::Target {
        &self.list
    }
}

impl Functions {
    /// The list's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Copies a list that a module gave: one from an `interface` as far as its version says that it reaches, one from
    /// `C_GetFunctionList` as far as 2.40's, whatever version it claims.
    ///
    /// # Safety
    /// `list` points to a 2.40 function list, or, from an interface, to one of the version that its first field tells.
    pub unsafe fn read(list: *const ck::CK_FUNCTION_LIST, interface: bool) -> Functions {
        // SAFETY: every list starts with its version.
        let version = unsafe { (*list).version };
        let told = Version { major: version.major, minor: version.minor };
        let version = if interface { told } else { told.min(Version { major: 2, minor: 40 }) };
        let len = match (version.major, version.minor) {
            (3.., 2..) | (4.., _) => size_of::<ck::CK_FUNCTION_LIST_3_2>(),
            (3, _) => size_of::<ck::CK_FUNCTION_LIST_3_0>(),
            _ => size_of::<ck::CK_FUNCTION_LIST>(),
        };
        let mut whole = std::mem::MaybeUninit::<ck::CK_FUNCTION_LIST_3_2>::zeroed();
        // SAFETY: `len` bytes are readable by the version, and each older list is a prefix of the newest (checked at
        // compile time below).
        unsafe { std::ptr::copy_nonoverlapping(list.cast::<u8>(), whole.as_mut_ptr().cast::<u8>(), len) };
        // SAFETY: a version, and function pointers of which zero means `None`.
        let list = unsafe { whole.assume_init() };
        Functions { list, version }
    }
}

const _: () = {
    use std::mem::offset_of;
    assert!(
        offset_of!(ck::CK_FUNCTION_LIST, C_WaitForSlotEvent)
            == offset_of!(ck::CK_FUNCTION_LIST_3_2, C_WaitForSlotEvent)
    );
    assert!(
        offset_of!(ck::CK_FUNCTION_LIST_3_0, C_MessageVerifyFinal)
            == offset_of!(ck::CK_FUNCTION_LIST_3_2, C_MessageVerifyFinal)
    );
};

/// Loads a copy of the file whose variables are its own. `own_mark` is what the caller's library has in it, and no
/// module.
///
/// # Errors
/// [`ConnectError::Load`]; [`ConnectError::Itself`] when the file has the mark.
pub fn load_private(path: &Path, own_mark: &[u8]) -> Result<Object, ConnectError> {
    let bytes = read(path, own_mark)?;
    let by_memory = copy_in_memory(path, &bytes);
    let by_file = |first: String| match copy_in_file(path, &bytes) {
        Ok(object) => Ok(object),
        Err(second) => Err(load_error(path, format!("no private copy: {first}; {second}"))),
    };
    by_memory.or_else(by_file)
}

/// Loads the file itself: the instance that everyone in this process shares.
///
/// # Errors
/// As [`load_private`].
pub fn load_shared(path: &Path, own_mark: &[u8]) -> Result<Object, ConnectError> {
    drop(read(path, own_mark)?);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| load_error(path, e.to_string()))?;
    Object::open(&name).map_err(|reason| load_error(path, reason))
}

/// That the module at `path` cannot be loaded.
pub fn load_error(path: &Path, reason: impl Into<String>) -> ConnectError {
    ConnectError::Load { path: path.display().to_string(), reason: reason.into() }
}

/// The file's content, unless it is the caller's own library.
fn read(path: &Path, own_mark: &[u8]) -> Result<Vec<u8>, ConnectError> {
    let bytes = std::fs::read(path).map_err(|e| load_error(path, e.to_string()))?;
    // SAFETY: both ranges are those of live slices.
    let found =
        unsafe { libc::memmem(bytes.as_ptr().cast(), bytes.len(), own_mark.as_ptr().cast(), own_mark.len()) };
    if found.is_null() { Ok(bytes) } else { Err(ConnectError::Itself { path: path.display().to_string() }) }
}

fn copy_in_memory(path: &Path, bytes: &[u8]) -> Result<Object, String> {
    let name = path.file_name().map_or(&b"module"[..], OsStrExt::as_bytes);
    let name = CString::new(name.get(..name.len().min(200)).unwrap_or(name)).map_err(|e| e.to_string())?;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(format!("memfd_create: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes).map_err(|e| e.to_string())?;
    // The loader takes a name that it has seen for the object that it has loaded, and descriptors are used again. So each
    // copy gets a spelling of its own: where this library's counter is, and the copy's number, in binary, "/" for 0 and
    // "/./" for 1. Another library in this process may have this crate too, and its counter elsewhere.
    static COPIES: AtomicU64 = AtomicU64::new(0);
    let number = COPIES.fetch_add(1, Ordering::Relaxed);
    let here = (&raw const COPIES).addr();
    let bits = (0..48).map(|bit| (here >> bit) & 1 == 1).chain((0..24).map(|bit| (number >> bit) & 1 == 1));
    let spelling: String = bits.map(|one| if one { "/./" } else { "/" }).collect();
    let name = format!("/proc/self/fd{spelling}{}", file.as_raw_fd());
    Object::open(&CString::new(name).map_err(|e| e.to_string())?)
}

fn copy_in_file(path: &Path, bytes: &[u8]) -> Result<Object, String> {
    let directory = tempfile::Builder::new().prefix("pkcs11-ha-").tempdir().map_err(|e| e.to_string())?;
    let copy = directory.path().join(path.file_name().unwrap_or_else(|| "module.so".as_ref()));
    std::fs::write(&copy, bytes).map_err(|e| e.to_string())?;
    let name = CString::new(copy.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    Object::open(&name) // the directory goes with this function's end; the mapping stays
}

/// A loaded shared object. Never closed: calls may still be in it at any time.
#[derive(Debug)]
pub struct Object {
    handle: *mut c_void,
}

/// The public beginning of the C library's `struct link_map`.
#[repr(C)]
struct LinkMap {
    l_addr: usize,
    l_name: *const c_char,
}

impl Object {
    fn open(name: &CStr) -> Result<Object, String> {
        // SAFETY: the name is a C string; running the module's constructors is what a module is loaded for.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() { Err(last_error()) } else { Ok(Object { handle }) }
    }

    /// The symbol, if this very object defines it: a look-up also searches what the object depends on.
    pub fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is of an open object, the name a C string.
        let found = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if found.is_null() {
            return None;
        }
        let mut info = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: std::ptr::null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: std::ptr::null_mut(),
        };
        // SAFETY: `info` is ours to write; any address may be asked about.
        let known = unsafe { libc::dladdr(found, &mut info) };
        if known == 0 || info.dli_fname.is_null() {
            return None;
        }
        let mut map: *const LinkMap = std::ptr::null();
        // SAFETY: RTLD_DI_LINKMAP writes one pointer to a link map.
        let status =
            unsafe { libc::dlinfo(self.handle, libc::RTLD_DI_LINKMAP as c_int, (&raw mut map).cast()) };
        if status != 0 || map.is_null() {
            return None;
        }
        // SAFETY: link maps of objects that are never closed stay readable.
        let own = unsafe { (*map).l_name };
        // SAFETY: the loader's own C string.
        let own = unsafe { CStr::from_ptr(own) };
        // SAFETY: the same, of an object that is loaded.
        let defines = unsafe { CStr::from_ptr(info.dli_fname) };
        (own == defines).then_some(found)
    }

    /// Asks the module for its functions: the newest interface that it offers, else its 2.x list.
    ///
    /// # Errors
    /// It has no `C_GetFunctionList` of its own, or that fails.
    pub fn functions(&self, path: &Path) -> Result<Functions, ConnectError> {
        if let Some(functions) = self.newest_interface() {
            return Ok(functions);
        }
        let symbol = self
            .symbol(c"C_GetFunctionList")
            .ok_or_else(|| load_error(path, "it exports no C_GetFunctionList of its own"))?;
        // SAFETY: the standard fixes the type of the function of this name; a non-null pointer is `Some`.
        let get: ck::CK_C_GetFunctionList = unsafe { std::mem::transmute(symbol) };
        let get = get.ok_or_else(|| load_error(path, "its C_GetFunctionList is at no address"))?;
        let mut list: *mut ck::CK_FUNCTION_LIST = std::ptr::null_mut();
        // SAFETY: `list` is a place for the answer.
        let rv = unsafe { get(&mut list) };
        ha_token::Rv::check(rv).map_err(|rv| ConnectError::Call {
            path: path.display().to_string(),
            function: ha_token::Function::GetFunctionList,
            rv,
        })?;
        if list.is_null() {
            return Err(load_error(path, "C_GetFunctionList gave no list"));
        }
        // SAFETY: a list that the module gave, not null.
        Ok(unsafe { Functions::read(list, false) })
    }

    fn newest_interface(&self) -> Option<Functions> {
        let symbol = self.symbol(c"C_GetInterface")?;
        // SAFETY: the standard fixes the type of the function of this name; a non-null pointer is `Some`.
        let get: ck::CK_C_GetInterface = unsafe { std::mem::transmute(symbol) };
        let get = get?;
        let offered = [Some((3, 2)), Some((3, 0)), None].into_iter().filter_map(|version| {
            let mut name = *b"PKCS 11\0";
            let mut asked = version.map(|(major, minor)| ck::CK_VERSION { major, minor });
            let asked = asked.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
            let mut interface: *mut ck::CK_INTERFACE = std::ptr::null_mut();
            // SAFETY: a C string, a version or NULL, and a place for the answer.
            let rv = unsafe { get(name.as_mut_ptr(), asked, &mut interface, 0) };
            if rv != ck::CKR_OK || interface.is_null() {
                return None;
            }
            // SAFETY: the module gave it together with CKR_OK.
            let list = unsafe { (*interface).pFunctionList };
            if list.is_null() {
                return None;
            }
            // SAFETY: the "PKCS 11" interface's list starts with its version, which says what it is.
            Some(unsafe { Functions::read(list.cast(), true) })
        });
        offered.max_by_key(Functions::version)
    }
}

fn last_error() -> String {
    // SAFETY: `dlerror` gives NULL or a C string of this thread's own.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown reason".into();
    }
    // SAFETY: as above; copied at once.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &[u8] = b"a mark that no module has in it";

    #[test]
    fn copies_in_memory_and_in_files_are_different_objects() {
        let path = Path::new("/usr/lib/softhsm/libsofthsm2.so");
        let bytes = read(path, MARK).expect("SoftHSM");
        let objects = [
            copy_in_memory(path, &bytes),
            copy_in_memory(path, &bytes),
            copy_in_file(path, &bytes),
            copy_in_file(path, &bytes),
        ];
        let mut lists: Vec<_> = objects
            .map(|object| object.expect("loads").symbol(c"C_GetFunctionList").expect("its own"))
            .into_iter()
            .collect();
        lists.sort_unstable();
        lists.dedup();
        assert_eq!(lists.len(), 4);
    }

    #[test]
    fn our_own_library_is_known_by_its_mark() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("x.so");
        for (mark, itself) in [(MARK, true), (&MARK[1..], false)] {
            std::fs::write(&file, [b"before", mark, b"after"].concat()).expect("written");
            assert_eq!(matches!(read(&file, MARK), Err(ConnectError::Itself { .. })), itself);
        }
    }
}
