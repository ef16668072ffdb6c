//! `libdragon.so.1` as a table of functions, as `dragon.h` declares them.

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use pyo3::PyResult;
use pyo3::exceptions::PyImportError;

const SONAME: &str = "libdragon.so.1";
/// Names another library to use, for development.
const OVERRIDE: &str = "DRAGON_LIB";

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = 32;
/// `DRAGON_ALL`.
pub(crate) const ALL: u32 = u32::MAX;
/// The timeout that waits for ever.
pub(crate) const NEVER: i64 = -1;
/// The timeout that does not wait.
pub(crate) const TRY: i64 = 0;

pub(crate) const OK: i32 = 0;
pub(crate) const TIMEOUT: i32 = 1;
pub(crate) const EMPTY: i32 = 2;
pub(crate) const FULL: i32 = 3;
pub(crate) const INVALID_ARGUMENT: i32 = 10;
pub(crate) const NOT_OWNER: i32 = 12;
pub(crate) const INTERRUPTED: i32 = 25;
pub(crate) const BROKEN: i32 = 26;

/// `dragon_on_signal`.
pub(crate) type OnSignal = unsafe extern "C" fn(*mut c_void) -> i32;

/// Any object of the library: a pointer that only the library looks into.
pub(crate) type Object = *mut c_void;

/// `dragon_bytes`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    pub(crate) data: *const c_void,
    pub(crate) length: usize,
}

impl Bytes {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self {
            data: bytes.as_ptr().cast(),
            length: bytes.len(),
        }
    }
}

/// `dragon_message`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct RawMessage {
    pub(crate) data: *const c_void,
    pub(crate) length: usize,
    pub(crate) hint: u64,
    private_words: [u64; 8],
}

impl RawMessage {
    pub(crate) const fn empty() -> Self {
        Self {
            data: std::ptr::null(),
            length: 0,
            hint: 0,
            private_words: [0; 8],
        }
    }
}

/// `dragon_runtime`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RuntimeInfo {
    pub(crate) runtime: u64,
    pub(crate) node: u32,
    pub(crate) nodes: u32,
    pub(crate) cpus: u32,
    pub(crate) global_services: u32,
    pub(crate) slot: u32,
    pub(crate) slot_generation: u32,
}

/// `dragon_node`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawNode {
    pub(crate) node: u32,
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    pub(crate) pid: u32,
    pub(crate) host: [c_char; 260],
    pub(crate) address: [c_char; 64],
}

impl RawNode {
    pub(crate) const EMPTY: Self = Self {
        node: 0,
        cpus: 0,
        memory: 0,
        pid: 0,
        host: [0; 260],
        address: [0; 64],
    };
}

/// `dragon_channel_options`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelOptions {
    pub(crate) size: usize,
    pub(crate) user: u64,
    pub(crate) capacity: u32,
    pub(crate) block: u32,
    pub(crate) limit: u32,
    pub(crate) reserved: u32,
}

/// `dragon_stat`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStat {
    pub(crate) name: [c_char; 56],
    pub(crate) value: u64,
}

impl RawStat {
    pub(crate) const EMPTY: Self = Self {
        name: [0; 56],
        value: 0,
    };
}

/// `DRAGON_READABLE`.
pub(crate) const READABLE: u32 = 1;
/// `DRAGON_WRITABLE`.
pub(crate) const WRITABLE: u32 = 2;

/// `dragon_ready`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    pub(crate) token: u64,
    pub(crate) member: u64,
    pub(crate) ready: u32,
    pub(crate) reserved: u32,
}

/// `dragon_value`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NamedValue {
    pub(crate) is_object: i32,
    pub(crate) descriptor: [u8; DESCRIPTOR],
    pub(crate) length: usize,
}

/// `DRAGON_BY_POLICY`.
pub(crate) const BY_POLICY: i32 = -1;

/// `dragon_spawn_request`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SpawnRequest {
    pub(crate) size: usize,
    pub(crate) node: i32,
    pub(crate) output: i32,
    pub(crate) argv: *const Bytes,
    pub(crate) argc: usize,
    pub(crate) interpreter: *const c_char,
    pub(crate) preload: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) environment: *const *const c_char,
    pub(crate) directory: *const c_char,
    pub(crate) notify: *const c_void,
    pub(crate) lives: i32,
}

/// `dragon_spawn_result`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpawnResult {
    pub(crate) code: i32,
    pub(crate) pid: u32,
    pub(crate) process: Object,
}

macro_rules! functions {
    ($(fn $name:ident($($type:ty),*) -> $result:ty;)*) => {
        /// The functions of the library. It stays loaded until the process ends.
        #[derive(Debug)]
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($type),*) -> $result,)*
        }

        impl Api {
            fn of(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is the one that dragon.h declares for this name; SONAME names that interface.
                        let function = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }?;
                        *function
                    },)*
                })
            }
        }
    };
}

functions! {
    fn dragon_last_error() -> *const c_char;
    fn dragon_attach() -> i32;
    fn dragon_is_attached() -> i32;
    fn dragon_runtime_info(*mut RuntimeInfo) -> i32;
    fn dragon_nodes(*mut RawNode, usize, *mut usize) -> i32;
    fn dragon_stats(*mut RawStat, usize, *mut usize) -> i32;

    fn dragon_channel_create(*const ChannelOptions, *mut Object) -> i32;
    fn dragon_channel_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_channel_close(Object) -> i32;
    fn dragon_channel_destroy(Object) -> i32;
    fn dragon_channel_descriptor(Object, *mut u8) -> i32;
    fn dragon_channel_export(Object, *mut u8) -> i32;
    fn dragon_channel_send(Object, *const Bytes, usize, u64, i64) -> i32;
    fn dragon_channel_receive(Object, i64, *mut RawMessage) -> i32;
    fn dragon_message_release(*mut RawMessage) -> i32;
    fn dragon_channel_poll(Object, i64, *mut u64) -> i32;
    fn dragon_channel_attributes(Object, *mut u64, *mut u64) -> i32;

    fn dragon_lock_create(u64, *mut Object) -> i32;
    fn dragon_lock_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_lock_close(Object) -> i32;
    fn dragon_lock_descriptor(Object, *mut u8) -> i32;
    fn dragon_lock_export(Object, *mut u8) -> i32;
    fn dragon_lock_acquire(Object, i64, *mut i32) -> i32;
    fn dragon_lock_release(Object, i32) -> i32;

    fn dragon_event_create(u64, *mut Object) -> i32;
    fn dragon_event_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_event_close(Object) -> i32;
    fn dragon_event_descriptor(Object, *mut u8) -> i32;
    fn dragon_event_export(Object, *mut u8) -> i32;
    fn dragon_event_set(Object) -> i32;
    fn dragon_event_clear(Object) -> i32;
    fn dragon_event_wait(Object, i64) -> i32;
    fn dragon_event_is_set(Object, *mut i32) -> i32;

    fn dragon_semaphore_create(u32, u32, u64, *mut Object) -> i32;
    fn dragon_semaphore_create_owned(u32, u32, u64, *mut Object) -> i32;
    fn dragon_semaphore_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_semaphore_close(Object) -> i32;
    fn dragon_semaphore_descriptor(Object, *mut u8) -> i32;
    fn dragon_semaphore_export(Object, *mut u8) -> i32;
    fn dragon_semaphore_acquire(Object, i64) -> i32;
    fn dragon_semaphore_release(Object, u32) -> i32;
    fn dragon_semaphore_value(Object, *mut u32) -> i32;

    fn dragon_condition_create(u32, u64, *mut Object) -> i32;
    fn dragon_condition_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_condition_close(Object) -> i32;
    fn dragon_condition_descriptor(Object, *mut u8) -> i32;
    fn dragon_condition_export(Object, *mut u8) -> i32;
    fn dragon_condition_wait_through_signals(Object, Object, i64, OnSignal, *mut c_void, *mut i32) -> i32;
    fn dragon_condition_notify(Object, u32, *mut u32) -> i32;
    fn dragon_condition_waiting(Object, *mut u32) -> i32;

    fn dragon_barrier_create(u32, u64, *mut Object) -> i32;
    fn dragon_barrier_create_with_action(u32, u64, *mut Object) -> i32;
    fn dragon_barrier_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_barrier_close(Object) -> i32;
    fn dragon_barrier_descriptor(Object, *mut u8) -> i32;
    fn dragon_barrier_export(Object, *mut u8) -> i32;
    fn dragon_barrier_wait_through_signals(Object, i64, OnSignal, *mut c_void, *mut u32, *mut u64) -> i32;
    fn dragon_barrier_acted(Object, u64, i32) -> i32;
    fn dragon_barrier_abort(Object) -> i32;
    fn dragon_barrier_reset(Object) -> i32;
    fn dragon_barrier_state(Object, *mut u32, *mut u32, *mut i32) -> i32;

    fn dragon_memory_create(u64, *const c_void, usize, *mut Object) -> i32;
    fn dragon_memory_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_memory_close(Object) -> i32;
    fn dragon_memory_descriptor(Object, *mut u8) -> i32;
    fn dragon_memory_export(Object, *mut u8) -> i32;
    fn dragon_memory_data(Object, *mut *mut c_void, *mut u64) -> i32;
    fn dragon_memory_write(Object, u64, *const c_void, usize) -> i32;
    fn dragon_memory_read(Object, u64, *mut c_void, usize) -> i32;

    fn dragon_set_create(u32, u64, *mut Object) -> i32;
    fn dragon_set_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_set_close(Object) -> i32;
    fn dragon_set_descriptor(Object, *mut u8) -> i32;
    fn dragon_set_export(Object, *mut u8) -> i32;
    fn dragon_set_add(Object, *const u8, u32, u64, *mut u64) -> i32;
    fn dragon_set_wait(Object, i64, *mut Ready, usize, *mut usize) -> i32;

    fn dragon_name_publish(*const c_char, *const u8, i32) -> i32;
    fn dragon_name_lookup(*const c_char, *mut NamedValue, *mut c_void, usize) -> i32;
    fn dragon_name_unpublish(*const c_char) -> i32;

    fn dragon_spawn_many(*const SpawnRequest, usize, *mut SpawnResult) -> i32;
    fn dragon_process_attach(*const u8, i32, *mut Object) -> i32;
    fn dragon_process_close(Object) -> i32;
    fn dragon_process_descriptor(Object, *mut u8) -> i32;
    fn dragon_process_export(Object, *mut u8) -> i32;
    fn dragon_process_wait(Object, i64, *mut i32) -> i32;
    fn dragon_process_signal(Object, i32) -> i32;
}

static API: OnceLock<Result<Api, String>> = OnceLock::new();

/// The library, loaded at the first call.
pub(crate) fn api() -> PyResult<&'static Api> {
    match API.get_or_init(load) {
        Ok(api) => Ok(api),
        Err(text) => Err(PyImportError::new_err(text.clone())),
    }
}

/// The library, for what can only be called with an object of it in hand.
pub(crate) fn loaded() -> Option<&'static Api> {
    API.get().and_then(|api| api.as_ref().ok())
}

fn load() -> Result<Api, String> {
    let library = open()?;
    let api = Api::of(&library).map_err(|error| {
        format!(
            "{SONAME} is of another release than this package: {error}; install the package again"
        )
    })?;
    // Never closed: whoever has one of its functions may call it until the process ends.
    let _ = library.into_raw();
    Ok(api)
}

fn open() -> Result<Library, String> {
    // A process has one client core, whatever languages it mixes: where C code has brought the library, it is that one.
    // SAFETY: with RTLD_NOLOAD no code of the library runs.
    if let Ok(present) = unsafe { Library::open(Some(SONAME), libc::RTLD_NOLOAD | RTLD_NOW) } {
        return Ok(present);
    }
    let mut tried = Vec::new();
    for path in candidates() {
        // SAFETY: it is our own library, whose initialisation does nothing but what Rust's runtime does.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok(library),
            Err(error) => tried.push(format!("{}: {error}", path.display())),
        }
    }
    Err(format!(
        "cannot load {SONAME} ({}); install the package again, or set {OVERRIDE} to the library's path",
        tried.join("; ")
    ))
}

fn candidates() -> Vec<PathBuf> {
    let beside = own_directory().map(|directory| directory.join(SONAME));
    let chosen = std::env::var_os(OVERRIDE).map(PathBuf::from);
    match (beside, chosen) {
        (Some(beside), Some(chosen)) if !beside.exists() => vec![chosen],
        (Some(beside), _) => vec![beside],
        (None, Some(chosen)) => vec![chosen],
        (None, None) => vec![PathBuf::from(SONAME)],
    }
}

/// The folder that this module was loaded from.
fn own_directory() -> Option<PathBuf> {
    let address: *const c_void = (own_directory as fn() -> Option<PathBuf> as *const ()).cast();
    // SAFETY: all fields are pointers, for which zero is a value.
    let mut place: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is one of this module's code and the result is writable.
    let found = unsafe { libc::dladdr(address, &raw mut place) };
    if found == 0 || place.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gives a string that lives as long as the module is loaded.
    let file = unsafe { CStr::from_ptr(place.dli_fname) };
    Path::new(OsStr::from_bytes(file.to_bytes()))
        .parent()
        .map(Path::to_path_buf)
}
