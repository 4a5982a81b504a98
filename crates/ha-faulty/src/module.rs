//! The real module, loaded, and what is offered in front of it: loaded once, and never changed after.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use cryptoki_sys as ck;
use ha_loader::{Functions, Object};
use ha_token::{ConnectError, Function};

use crate::config::Config;
use crate::control;
use crate::lists::{self, WRAPPERS};
use crate::state::State;

/// In this library, and in no module.
#[used]
static MARK: [u8; 44] = *b"faulty-token refuses a module that has this!";

/// The real module and its configuration.
pub(crate) struct Module {
    pub(crate) config: Config,
    pub(crate) script: State,
    functions: Functions,
    /// Its list of 2.x, with our functions in the place of its own.
    pub(crate) list: &'static ck::CK_FUNCTION_LIST,
    /// Its interfaces, the same.
    pub(crate) interfaces: Vec<Interface>,
}

/// An interface that is offered.
pub(crate) struct Interface(pub(crate) ck::CK_INTERFACE);

// SAFETY: a module's name and list are for every thread to read, and last as long as it is loaded: for ever here.
unsafe impl Send for Interface {}
// SAFETY: as above.
unsafe impl Sync for Interface {}

// SAFETY: function pointers and plain data, which nobody changes.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

static MODULE: OnceLock<Module> = OnceLock::new();

/// The module; loaded by the first call, and tried again by the next where that fails.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn get() -> Result<&'static Module, String> {
    static LOADING: Mutex<()> = Mutex::new(());
    if let Some(module) = MODULE.get() {
        return Ok(module);
    }
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    if LOADER.load(Ordering::SeqCst) == thread {
        return Err("the module leads back to the faulty token itself".into());
    }
    let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = MODULE.get() {
        return Ok(module);
    }
    LOADER.store(thread, Ordering::SeqCst);
    let _ended = Ended;
    let module = load()?;
    Ok(MODULE.get_or_init(|| module))
}

/// The thread that loads the module; 0 is none.
static LOADER: AtomicI32 = AtomicI32::new(0);

/// Nobody loads the module any more.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        LOADER.store(0, Ordering::SeqCst);
    }
}

/// The module, once it is loaded.
pub(crate) fn loaded() -> Option<&'static Module> {
    MODULE.get()
}

fn load() -> Result<Module, String> {
    let config = Config::load()?;
    if let Some(socket) = &config.socket {
        control::check(socket)?;
    }
    let path = &config.module;
    let object = match config.private {
        true => ha_loader::load_private(path, &MARK),
        false => ha_loader::load_shared(path, &MARK),
    };
    let object = object.map_err(|error| match error {
        ConnectError::Itself { path } => format!("{path} is the faulty token itself, not a real module"),
        error => error.to_string(),
    })?;
    let functions = object.functions(path).map_err(|error| error.to_string())?;
    let list = own_list(&object).ok_or_else(|| format!("{}: no function list", path.display()))?;
    let interfaces = interfaces(&object, list);
    let script = config.script()?;
    Ok(Module { config, script, functions, list, interfaces })
}

/// The module's list of 2.x, replaced.
fn own_list(object: &Object) -> Option<&'static ck::CK_FUNCTION_LIST> {
    let symbol = object.symbol(c"C_GetFunctionList")?;
    // SAFETY: the standard fixes the type of the function of this name; a non-null pointer is `Some`.
    let get: ck::CK_C_GetFunctionList = unsafe { std::mem::transmute(symbol) };
    let mut list: *mut ck::CK_FUNCTION_LIST = std::ptr::null_mut();
    // SAFETY: `list` is a place for the answer.
    let rv = unsafe { get?(&mut list) };
    if rv != ck::CKR_OK || list.is_null() {
        return None;
    }
    // SAFETY: the module gave it as a 2.x list.
    let mut list = unsafe { *list };
    lists::replace(&mut list, &WRAPPERS);
    Some(Box::leak(Box::new(list)))
}

/// The module's interfaces, replaced where they are PKCS#11's; if it has none, that of its 2.x list.
fn interfaces(object: &Object, list: &'static ck::CK_FUNCTION_LIST) -> Vec<Interface> {
    let theirs = told(object).unwrap_or_default();
    if theirs.is_empty() {
        return vec![Interface(ck::CK_INTERFACE {
            pInterfaceName: c"PKCS 11".as_ptr().cast_mut().cast(),
            pFunctionList: std::ptr::from_ref(list).cast_mut().cast::<c_void>(),
            flags: 0,
        })];
    }
    theirs.into_iter().map(|interface| Interface(ours(interface))).collect()
}

fn told(object: &Object) -> Option<Vec<ck::CK_INTERFACE>> {
    let symbol = object.symbol(c"C_GetInterfaceList")?;
    // SAFETY: the standard fixes the type of the function of this name; a non-null pointer is `Some`.
    let get: ck::CK_C_GetInterfaceList = unsafe { std::mem::transmute(symbol) };
    let get = get?;
    let mut count = 0;
    // SAFETY: asks for the count.
    let rv = unsafe { get(std::ptr::null_mut(), &mut count) };
    if rv != ck::CKR_OK || count > 100 {
        return None;
    }
    let none = ck::CK_INTERFACE {
        pInterfaceName: std::ptr::null_mut(),
        pFunctionList: std::ptr::null_mut(),
        flags: 0,
    };
    let mut all = vec![none; count as usize];
    // SAFETY: room for as many as there are.
    let rv = unsafe { get(all.as_mut_ptr(), &mut count) };
    all.truncate(count as usize);
    all.retain(|i| !i.pInterfaceName.is_null() && !i.pFunctionList.is_null());
    (rv == ck::CKR_OK).then_some(all)
}

/// The same interface with our functions, if it is one of PKCS#11's.
fn ours(mut interface: ck::CK_INTERFACE) -> ck::CK_INTERFACE {
    // SAFETY: names of interfaces are C strings.
    if unsafe { CStr::from_ptr(interface.pInterfaceName.cast()) } != c"PKCS 11" {
        return interface;
    }
    // SAFETY: a list of PKCS#11's begins with its version.
    let version = unsafe { *interface.pFunctionList.cast::<ck::CK_VERSION>() };
    macro_rules! replaced {
        ($list:ty) => {{
            // SAFETY: the version says that the list is of this type.
            let mut list = unsafe { *interface.pFunctionList.cast::<$list>() };
            lists::replace(&mut list, &WRAPPERS);
            std::ptr::from_mut(Box::leak(Box::new(list))).cast::<c_void>()
        }};
    }
    interface.pFunctionList = match (version.major, version.minor) {
        (3, 0 | 1) => replaced!(ck::CK_FUNCTION_LIST_3_0),
        (3.., _) => replaced!(ck::CK_FUNCTION_LIST_3_2),
        _ => replaced!(ck::CK_FUNCTION_LIST),
    };
    interface
}

impl Module {
    /// The module's own function, as the address that it is at; NULL when it has none.
    pub(crate) fn address(&self, function: Function) -> *const c_void {
        lists::address(&*self.functions, function)
    }

    /// The module's own functions, as typed.
    pub(crate) fn real(&self) -> &ck::CK_FUNCTION_LIST_3_2 {
        &self.functions
    }
}
