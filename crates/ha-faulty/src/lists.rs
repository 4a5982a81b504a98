//! The function lists: one function of ours for each of the standard's, and the three that hand them out.
//!
//! Every function of ours does the same: it hands its arguments on to `through`, with the number of the function. So the
//! compiler makes them from one generic function for each count of arguments, and takes the arguments' types from the
//! standard's own list.

use std::ffi::{CStr, c_void};

use cryptoki_sys::{self as ck, CK_RV};
use ha_token::{Function, Rv};

use crate::guard::contained;
use crate::module;
use crate::shape::every_function;
use crate::through::through;

/// An argument of a PKCS#11 function.
pub(crate) trait Word: Copy {
    /// As a number; pointers as their address.
    fn word(self) -> usize;
    /// The argument with another number in its place. Pointers stay what they are.
    fn with(self, word: usize) -> Self;
}

impl Word for ck::CK_ULONG {
    fn word(self) -> usize {
        self as usize
    }
    fn with(self, word: usize) -> Self {
        word as ck::CK_ULONG
    }
}

impl Word for ck::CK_BBOOL {
    fn word(self) -> usize {
        usize::from(self)
    }
    fn with(self, _: usize) -> Self {
        self
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self.expose_provenance()
    }
    fn with(self, _: usize) -> Self {
        self
    }
}

impl Word for ck::CK_NOTIFY {
    fn word(self) -> usize {
        usize::from(self.is_some())
    }
    fn with(self, _: usize) -> Self {
        self
    }
}

macro_rules! pass {
    ($($name:ident $count:literal($($arg:ident: $type:ident)*);)*) => {$(
        unsafe extern "C" fn $name<const FUNCTION: usize, $($type: Word),*>($($arg: $type),*) -> CK_RV {
            contained(|| {
                let Some(function) = Function::ALL.get(FUNCTION).copied() else { return Rv::GENERAL_ERROR.0 };
                let words: [usize; $count] = [$($arg.word()),*];
                through(function, &words, &|module, words| {
                    let address = module.address(function);
                    if address.is_null() {
                        return Rv::FUNCTION_NOT_SUPPORTED.0;
                    }
                    let mut words = words.iter().copied();
                    let mut next = || words.next().unwrap_or(0);
                    // SAFETY: the field of the module's list that has this address is of the type of the one that this
                    // function is in, as `WRAPPERS` has them.
                    let real: unsafe extern "C" fn($($type),*) -> CK_RV = unsafe { std::mem::transmute(address) };
                    // SAFETY: the caller's own arguments, but for handles and slots, which are the module's.
                    unsafe { real($($arg.with(next())),*) }
                })
            })
        }
    )*};
}

pass! {
    pass1 1(a: A);
    pass2 2(a: A b: B);
    pass3 3(a: A b: B c: C);
    pass4 4(a: A b: B c: C d: D);
    pass5 5(a: A b: B c: C d: D e: E);
    pass6 6(a: A b: B c: C d: D e: E f: F);
    pass7 7(a: A b: B c: C d: D e: E f: F g: G);
    pass8 8(a: A b: B c: C d: D e: E f: F g: G h: H);
    pass9 9(a: A b: B c: C d: D e: E f: F g: G h: H i: I);
    pass10 10(a: A b: B c: C d: D e: E f: F g: G h: H i: I j: J);
}

/// Our function for one of the standard's, by how many arguments it has.
macro_rules! wrapper {
    (GetFunctionList $($_:ident)*) => {
        C_GetFunctionList
    };
    (GetInterfaceList $($_:ident)*) => {
        C_GetInterfaceList
    };
    (GetInterface $($_:ident)*) => {
        C_GetInterface
    };
    ($f:ident $a:ident) => {
        pass1::<{ Function::$f as usize }, _>
    };
    ($f:ident $a:ident $b:ident) => {
        pass2::<{ Function::$f as usize }, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident) => {
        pass3::<{ Function::$f as usize }, _, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident $d:ident) => {
        pass4::<{ Function::$f as usize }, _, _, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident $d:ident $e:ident) => {
        pass5::<{ Function::$f as usize }, _, _, _, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident $d:ident $e:ident $g:ident) => {
        pass6::<{ Function::$f as usize }, _, _, _, _, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident $d:ident $e:ident $g:ident $h:ident) => {
        pass7::<{ Function::$f as usize }, _, _, _, _, _, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident $d:ident $e:ident $g:ident $h:ident $i:ident) => {
        pass8::<{ Function::$f as usize }, _, _, _, _, _, _, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident $d:ident $e:ident $g:ident $h:ident $i:ident $j:ident) => {
        pass9::<{ Function::$f as usize }, _, _, _, _, _, _, _, _, _>
    };
    ($f:ident $a:ident $b:ident $c:ident $d:ident $e:ident $g:ident $h:ident $i:ident $j:ident $k:ident) => {
        pass10::<{ Function::$f as usize }, _, _, _, _, _, _, _, _, _, _>
    };
}

macro_rules! wrappers {
    ($($c:ident is $function:ident($($role:ident),*);)*) => {
        /// Every function of ours.
        pub(crate) static WRAPPERS: ck::CK_FUNCTION_LIST_3_2 = ck::CK_FUNCTION_LIST_3_2 {
            version: ck::CK_VERSION { major: 3, minor: 2 },
            $($c: Some(wrapper!($function $($role)*)),)*
        };

        // The place of each in the list is its number: older lists are beginnings of the newest.
        const _: () = {
            $(assert!(std::mem::offset_of!(ck::CK_FUNCTION_LIST_3_2, $c) == offset(Function::$function));)*
        };
    };
}
every_function!(wrappers);

/// Where a function's address is in a list.
const fn offset(function: Function) -> usize {
    std::mem::offset_of!(ck::CK_FUNCTION_LIST_3_2, C_Initialize) + function as usize * size_of::<usize>()
}

/// A function list of one of the standard's versions.
///
/// # Safety
/// The type is a beginning of the newest version's list.
pub(crate) unsafe trait List {}

// SAFETY: the standard only ever added functions at the end, which `ha-loader` checks of these types.
unsafe impl List for ck::CK_FUNCTION_LIST {}
// SAFETY: as above.
unsafe impl List for ck::CK_FUNCTION_LIST_3_0 {}
// SAFETY: it is that list.
unsafe impl List for ck::CK_FUNCTION_LIST_3_2 {}

/// Puts our functions in the place of those that a module's list has.
pub(crate) fn replace<L: List>(list: &mut L, ours: &ck::CK_FUNCTION_LIST_3_2) {
    for function in Function::ALL.iter().copied() {
        if offset(function) + size_of::<usize>() > size_of::<L>() {
            break;
        }
        if !address(list, function).is_null() {
            let place = std::ptr::from_mut(list).wrapping_byte_add(offset(function)).cast::<*const c_void>();
            // SAFETY: within the list, where a function pointer is, which any address of a function may be.
            unsafe { place.write(address(ours, function)) };
        }
    }
}

/// The address of a function in a list that reaches as far; NULL where there is none.
pub(crate) fn address<L: List>(list: &L, function: Function) -> *const c_void {
    if offset(function) + size_of::<usize>() > size_of::<L>() {
        return std::ptr::null();
    }
    let place = std::ptr::from_ref(list).wrapping_byte_add(offset(function)).cast::<*const c_void>();
    // SAFETY: within the list, where a function pointer is; none is NULL.
    unsafe { place.read() }
}

/// The module, or a line on standard error.
fn module_or_say() -> Result<&'static module::Module, CK_RV> {
    module::get().map_err(|error| {
        crate::say(&error);
        Rv::GENERAL_ERROR.0
    })
}

/// `C_GetFunctionList`: the module's own list of 2.x, with our functions in it. Loads the module.
///
/// # Safety
/// `list` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut ck::CK_FUNCTION_LIST) -> CK_RV {
    contained(|| {
        let module = match module_or_say() {
            Ok(module) => module,
            Err(rv) => return rv,
        };
        if list.is_null() {
            return Rv::ARGUMENTS_BAD.0;
        }
        // SAFETY: this function's own condition.
        unsafe { list.write(std::ptr::from_ref(module.list).cast_mut()) };
        ck::CKR_OK
    })
}

/// `C_GetInterfaceList`: the module's own interfaces, in its order.
///
/// # Safety
/// `count` is NULL, or readable and writable; `list` is NULL, or writable for as many interfaces as `count` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterfaceList(list: *mut ck::CK_INTERFACE, count: *mut ck::CK_ULONG) -> CK_RV {
    contained(|| {
        let module = match module_or_say() {
            Ok(module) => module,
            Err(rv) => return rv,
        };
        if count.is_null() {
            return Rv::ARGUMENTS_BAD.0;
        }
        let all = &module.interfaces;
        // SAFETY: this function's own condition.
        let room = unsafe { count.read() };
        // SAFETY: as above.
        unsafe { count.write(all.len() as ck::CK_ULONG) };
        if list.is_null() {
            return ck::CKR_OK;
        }
        if (room as usize) < all.len() {
            return Rv::BUFFER_TOO_SMALL.0;
        }
        for (i, interface) in all.iter().enumerate() {
            // SAFETY: there is room for all of them.
            unsafe { list.wrapping_add(i).write(interface.0) };
        }
        ck::CKR_OK
    })
}

/// `C_GetInterface`: the newest of the module's interfaces with this name, version and flags; what is NULL does not
/// matter, but for the name, which is then `PKCS 11`.
///
/// # Safety
/// `name` is NULL or ends with a NUL; `version` is NULL or readable; `found` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut ck::CK_UTF8CHAR,
    version: *mut ck::CK_VERSION,
    found: *mut *mut ck::CK_INTERFACE,
    flags: ck::CK_FLAGS,
) -> CK_RV {
    contained(|| {
        let module = match module_or_say() {
            Ok(module) => module,
            Err(rv) => return rv,
        };
        if found.is_null() {
            return Rv::ARGUMENTS_BAD.0;
        }
        let wanted = if name.is_null() {
            c"PKCS 11"
        } else {
            // SAFETY: this function's own condition.
            unsafe { CStr::from_ptr(name.cast()) }
        };
        // SAFETY: NULL or readable.
        let version = unsafe { version.as_ref() };
        let told = |interface: &ck::CK_INTERFACE| {
            // SAFETY: lists of PKCS#11's begin with their version; of others the version is not asked.
            let version = unsafe { *interface.pFunctionList.cast::<ck::CK_VERSION>() };
            (version.major, version.minor)
        };
        let suits = |interface: &&ck::CK_INTERFACE| {
            // SAFETY: names of interfaces are C strings.
            let name = unsafe { CStr::from_ptr(interface.pInterfaceName.cast()) };
            name == wanted
                && interface.flags & flags == flags
                && version.is_none_or(|v| (v.major, v.minor) == told(interface))
        };
        let newest = module.interfaces.iter().map(|i| &i.0).filter(suits).max_by_key(|i| told(i));
        let Some(interface) = newest else { return Rv::ARGUMENTS_BAD.0 };
        // SAFETY: this function's own condition.
        unsafe { found.write(std::ptr::from_ref(interface).cast_mut()) };
        ck::CKR_OK
    })
}
