//! How a function of the C interface takes its arguments.
//!
//! `functions!` writes what all functions need around their bodies: the name for the linker, the panic boundary, and the
//! checks of the arguments, all of them before the body runs. What C passes for an argument, and what the body gets, is told
//! by [`Argument`]. `object!` writes the functions that objects of all kinds have.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use dragon_channels::WaitMode;
use dragon_protocol::Descriptor;
use dragon_shmem::Deadline;

use super::{deadline, null};
use crate::error::{Error, Result};

/// Defines functions of the C interface. The first argument may be anything that is an [`Argument`]; the body's value is a
/// [`Result`].
macro_rules! functions {
    ($(
        fn $function:ident($($argument:ident: $kind:ty),* $(,)?) $body:block
    )+) => {$(
        /// See `dragon.h`.
        ///
        /// # Safety
        /// As the module's parent says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $function(
            $($argument: <$kind as $crate::ffi::function::Argument>::Raw),*
        ) -> i32 {
            $crate::ffi::guard(|| {
                $(
                    // SAFETY: the caller's promise.
                    let $argument = unsafe {
                        <$kind as $crate::ffi::function::Argument>::take($argument, stringify!($argument))
                    }?;
                )*
                $body
            })
        }
    )+};
}

/// Defines the functions that objects of a kind have because they are objects. All names are written out, so that a search
/// for one finds it.
macro_rules! object {
    (
        $object:ident $name:ident {
            attach: $attach:ident,
            close: $close:ident,
            descriptor: $descriptor:ident,
            export: $export:ident,
            $(destroy: $destroy:ident,)?
            $(set_wait_mode: $set_wait_mode:ident,)?
        }
    ) => {
        $crate::ffi::function::functions! {
            fn $attach(
                descriptor: $crate::Descriptor,
                adopt: i32,
                $name: $crate::ffi::function::Out<*mut $object>,
            ) {
                $name.give($object::attach(descriptor, adopt != 0)?);
                Ok(())
            }

            fn $close($name: Box<$object>) {
                drop($name);
                Ok(())
            }

            fn $descriptor(
                $name: &$object,
                descriptor: $crate::ffi::function::Out<$crate::ffi::function::DescriptorBytes>,
            ) {
                descriptor.put($name.descriptor().to_bytes());
                Ok(())
            }

            fn $export(
                $name: &$object,
                descriptor: $crate::ffi::function::Out<$crate::ffi::function::DescriptorBytes>,
            ) {
                descriptor.put($name.export()?.to_bytes());
                Ok(())
            }

            $(fn $destroy($name: &$object) {
                $name.destroy()
            })?

            $(fn $set_wait_mode($name: &$object, mode: $crate::WaitMode) {
                $name.set_wait_mode(mode)
            })?
        }
    };
}

pub(super) use {functions, object};

/// What a function gets for an argument that C passes as `Raw`.
pub trait Argument: Sized {
    /// What C passes.
    type Raw;

    /// Checks the argument; `name` is for the error.
    ///
    /// # Errors
    /// When it is null and must not be, or out of its range.
    ///
    /// # Safety
    /// What the module's parent says about pointers.
    unsafe fn take(raw: Self::Raw, name: &str) -> Result<Self>;
}

macro_rules! plain {
    ($($kind:ty),+) => {$(
        impl Argument for $kind {
            type Raw = Self;

            #[inline]
            unsafe fn take(raw: Self, _: &str) -> Result<Self> {
                Ok(raw)
            }
        }
    )+};
}

plain!(i32, u32, u64, usize);

/// Pointers that the function itself checks.
impl<T> Argument for *const T {
    type Raw = Self;

    #[inline]
    unsafe fn take(raw: Self, _: &str) -> Result<Self> {
        Ok(raw)
    }
}

/// Pointers that the function itself checks.
impl<T> Argument for *mut T {
    type Raw = Self;

    #[inline]
    unsafe fn take(raw: Self, _: &str) -> Result<Self> {
        Ok(raw)
    }
}

/// What a wait calls at each signal: with success the wait goes on.
#[derive(Debug)]
pub struct OnSignal(unsafe extern "C" fn(*mut c_void) -> i32);

impl Argument for OnSignal {
    type Raw = Option<unsafe extern "C" fn(*mut c_void) -> i32>;

    #[inline]
    unsafe fn take(raw: Self::Raw, name: &str) -> Result<Self> {
        raw.map(Self).ok_or_else(|| null(name))
    }
}

impl OnSignal {
    /// Whether the wait goes on.
    pub(super) fn call(&self, context: *mut c_void) -> bool {
        // SAFETY: the caller promised a function that takes this context.
        unsafe { (self.0)(context) == 0 }
    }
}

/// A handle or a structure, not null.
impl<T> Argument for &T {
    type Raw = *const T;

    #[inline]
    unsafe fn take(raw: *const T, name: &str) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { raw.as_ref() }.ok_or_else(|| null(name))
    }
}

/// A handle or a structure that may be left out.
impl<T> Argument for Option<&T> {
    type Raw = *const T;

    #[inline]
    unsafe fn take(raw: *const T, _: &str) -> Result<Self> {
        // SAFETY: the caller's promise.
        Ok(unsafe { raw.as_ref() })
    }
}

/// A handle or a structure that changes, not null.
impl<T> Argument for &mut T {
    type Raw = *mut T;

    #[inline]
    unsafe fn take(raw: *mut T, name: &str) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { raw.as_mut() }.ok_or_else(|| null(name))
    }
}

/// A handle that the caller gives back.
impl<T> Argument for Box<T> {
    type Raw = *mut T;

    unsafe fn take(raw: *mut T, name: &str) -> Result<Self> {
        let handle = NonNull::new(raw).ok_or_else(|| null(name))?;
        // SAFETY: the caller's promise: it came from [`Out::give`] and was not given back yet.
        Ok(unsafe { Self::from_raw(handle.as_ptr()) })
    }
}

/// Where a result goes: checked before the operation, so that no result is lost for want of a place.
#[derive(Debug)]
pub struct Out<T>(NonNull<T>);

impl<T> Argument for Out<T> {
    type Raw = *mut T;

    #[inline]
    unsafe fn take(raw: *mut T, name: &str) -> Result<Self> {
        NonNull::new(raw).map(Self).ok_or_else(|| null(name))
    }
}

impl<T> Out<T> {
    #[inline]
    pub(super) fn put(self, value: T) {
        // SAFETY: `take`'s caller promised a place. What was there is the caller's plain data and needs no drop.
        unsafe { self.0.write(value) };
    }
}

impl<T> Out<*mut T> {
    /// Gives a handle to the caller.
    pub(super) fn give(self, value: T) {
        self.put(Box::into_raw(Box::new(value)));
    }
}

/// Where a result goes if the caller wants it.
#[derive(Debug)]
pub struct Wanted<T>(Option<Out<T>>);

impl<T> Argument for Wanted<T> {
    type Raw = *mut T;

    #[inline]
    unsafe fn take(raw: *mut T, _: &str) -> Result<Self> {
        Ok(Self(NonNull::new(raw).map(Out)))
    }
}

impl<T> Wanted<T> {
    #[inline]
    pub(super) fn put(self, value: T) {
        if let Some(place) = self.0 {
            place.put(value);
        }
    }
}

impl<T> Wanted<*mut T> {
    /// Gives a handle to the caller, or closes it.
    pub(super) fn give(self, value: T) {
        if let Some(place) = self.0 {
            place.give(value);
        }
    }
}

/// A place with a handle, which the function takes; afterwards NULL is there.
#[derive(Debug)]
pub struct Taken<T>(NonNull<*mut T>);

impl<T> Argument for Taken<T> {
    type Raw = *mut *mut T;

    unsafe fn take(raw: *mut *mut T, name: &str) -> Result<Self> {
        let place = NonNull::new(raw).ok_or_else(|| null(name))?;
        // SAFETY: the caller's promise.
        let handle = unsafe { place.read() };
        if handle.is_null() {
            return Err(null(name));
        }
        Ok(Self(place))
    }
}

impl<T> Taken<T> {
    /// The handle.
    pub(super) fn out(self) -> T {
        // SAFETY: `take`'s caller promised a place, in which it has found a handle.
        let handle = unsafe { self.0.replace(ptr::null_mut()) };
        // SAFETY: the promise of `take`'s caller: it came from [`Out::give`] and was not given back yet.
        *unsafe { Box::from_raw(handle) }
    }

    /// Hands the handle to an operation that gives it back when it fails.
    pub(super) fn hand_over(
        self,
        operation: impl FnOnce(T) -> Result<(), (Error, T)>,
    ) -> Result<()> {
        let place = Out(self.0);
        operation(self.out()).map_err(|(error, back)| {
            place.give(back);
            error
        })
    }
}

/// A timeout in nanoseconds, or DRAGON_NEVER.
impl Argument for Deadline {
    type Raw = i64;

    #[inline]
    unsafe fn take(raw: i64, _: &str) -> Result<Self> {
        deadline(raw)
    }
}

/// A descriptor as the caller holds it.
pub(super) type DescriptorBytes = [u8; Descriptor::LEN];

impl Argument for Descriptor {
    type Raw = *const DescriptorBytes;

    unsafe fn take(raw: Self::Raw, name: &str) -> Result<Self> {
        // SAFETY: the caller's promise.
        let bytes = unsafe { <&DescriptorBytes as Argument>::take(raw, name) }?;
        Self::from_bytes(bytes).map_err(|error| Error::InvalidArgument(error.to_string()))
    }
}

/// A `dragon_wait_mode`.
impl Argument for WaitMode {
    type Raw = i32;

    unsafe fn take(raw: i32, _: &str) -> Result<Self> {
        match raw {
            0 => Ok(Self::Adaptive),
            1 => Ok(Self::Spin),
            2 => Ok(Self::Sleep),
            _ => Err(Error::InvalidArgument(format!(
                "the wait mode is {raw}; it must be DRAGON_WAIT_ADAPTIVE (0), DRAGON_WAIT_SPIN (1) or DRAGON_WAIT_SLEEP (2)"
            ))),
        }
    }
}
