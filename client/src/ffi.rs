//! The C interface, as `client/c/dragon.h` declares and describes it.
//!
//! Every function runs inside `guard`: no panic leaves the library, the code is the return value, and the text waits
//! for `dragon_last_error`. Handles are boxes: a pointer leads straight to the object.
//!
//! Safety of all functions: pointers are null or point to what the header says; handles come from this library and are
//! not closed yet. Null is refused wherever the header does not allow it.

pub mod barrier;
pub mod broadcast;
pub mod channel;
pub mod condition;
pub mod descriptor;
pub mod event;
pub mod function;
pub mod last_error;
pub mod lock;
pub mod memory;
pub mod names;
pub mod pool;
pub mod priority;
pub mod process;
pub mod process_options;
pub mod runtime;
pub mod semaphore;
pub mod set;
pub mod spawn;
pub mod stream;

pub use broadcast::DragonBroadcastOptions;
pub use channel::{
    DragonBytes, DragonChannelInfo, DragonChannelOptions, DragonMessage, DragonReceived,
    DragonSendOptions,
};
pub use names::{DragonKey, DragonValue};
pub use pool::{DragonPoolOptions, DragonPoolStats};
pub use priority::{DragonPriorityQueueInfo, DragonPriorityQueueOptions};
pub use process_options::{DragonLimit, DragonProcessOptions};
pub use runtime::{DragonNode, DragonRuntime, DragonStat};
pub use set::DragonReady;
pub use spawn::{DragonSpawnRequest, DragonSpawnResult};
pub use stream::{DragonEndpointOptions, DragonStreamReceiver, DragonStreamSender};

use std::any::Any;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use dragon_protocol::Code;
use dragon_shmem::Deadline;

use self::function::Out;
use crate::error::{Error, Result};

/// `DRAGON_NEVER`.
const NEVER: i64 = -1;

/// Checks the `size` that a caller wrote into a structure: its caller may know another release's.
fn check_size<T>(structure: &str, size: usize) -> Result<()> {
    if size == size_of::<T>() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{structure}.size is {size}, this library knows {} bytes; set it to sizeof({structure}), with the header of the library's release",
        size_of::<T>()
    )))
}

/// A number of an options structure, where 0 stands for the default.
fn or_default<T: PartialEq + From<u8>>(given: T, default: T) -> T {
    if given == T::from(0) { default } else { given }
}

/// Runs the body of a function of the C interface; returns its code.
#[inline]
fn guard(body: impl FnOnce() -> Result<()>) -> i32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Code::Ok.to_i32(),
        Ok(Err(error)) => last_error::set(error),
        Err(panic) => last_error::set(Error::Defect(text_of(&*panic))),
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "panic".to_owned()
    }
}

fn null(what: &str) -> Error {
    Error::InvalidArgument(format!("{what} is NULL"))
}

/// What a pointer of the caller refers to.
///
/// # Safety
/// The pointer is null, or valid for reads for as long as the result is used.
#[inline]
unsafe fn refer<'a, T>(pointer: *const T, what: &str) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(what))
}

/// `count` values at `pointer`; null is allowed when there are none.
///
/// # Safety
/// Null, or valid for reads of `count` values for as long as the result is used.
unsafe fn many<'a, T>(pointer: *const T, count: usize, what: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(null(what));
    }
    if count > isize::MAX.cast_unsigned() / size_of::<T>().max(1) {
        return Err(Error::InvalidArgument(format!(
            "{what}: {count} is more than memory holds"
        )));
    }
    // SAFETY: the caller's promise, not null, and the size fits.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// `capacity` bytes at `buffer`, to be written to; null is allowed when there are none.
///
/// # Safety
/// Null, or valid for writes of so many bytes, which nobody else uses as long as the result lives.
unsafe fn room<'a>(buffer: *mut c_void, capacity: usize) -> Result<&'a mut [u8]> {
    if capacity == 0 {
        return Ok(&mut []);
    }
    if buffer.is_null() {
        return Err(null("buffer"));
    }
    // SAFETY: the caller's promise, and not null.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), capacity) })
}

/// # Safety
/// Null, or a string that ends with NUL and stays as long as the result is used.
unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a CStr> {
    if pointer.is_null() {
        return Err(null(what));
    }
    // SAFETY: the caller's promise, and not null.
    Ok(unsafe { CStr::from_ptr(pointer) })
}

#[inline]
fn deadline(timeout: i64) -> Result<Deadline> {
    match u64::try_from(timeout) {
        Ok(nanoseconds) => Ok(Deadline::after(nanoseconds)),
        Err(_) if timeout == NEVER => Ok(Deadline::Never),
        Err(_) => Err(Error::InvalidArgument(format!(
            "the timeout {timeout} is negative; -1 (DRAGON_NEVER) is for ever, 0 (DRAGON_TRY) does not wait"
        ))),
    }
}

/// Copies text into an array of the caller's structure, cut at its end, always with a NUL.
fn fill(array: &mut [c_char], text: &str) {
    array.fill(0);
    let room = array.len().saturating_sub(1);
    for (to, from) in array.iter_mut().zip(text.bytes().take(room)) {
        *to = from as c_char;
    }
}

/// Writes `items` to the caller's array, as many as it holds, and how many there are to `count`.
///
/// # Safety
/// `array` is null or valid for writes of `capacity` values.
unsafe fn list<T>(
    items: impl ExactSizeIterator<Item = T>,
    array: *mut T,
    capacity: usize,
    count: Out<usize>,
) -> Result<()> {
    if array.is_null() && capacity != 0 {
        return Err(null("the array"));
    }
    count.put(items.len());
    for (index, item) in items.take(capacity).enumerate() {
        // SAFETY: below capacity, for which the caller vouches.
        let place = unsafe { array.add(index) };
        // SAFETY: as above.
        unsafe { ptr::write(place, item) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(deadline(-1).unwrap(), Deadline::Never);
        assert_eq!(deadline(0).unwrap(), Deadline::Now);
        assert!(matches!(deadline(1).unwrap(), Deadline::At(_)));
        let error = deadline(-2).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.to_string().contains("-2"));
    }

    #[test]
    fn a_panic_becomes_a_code() {
        // A panic that prints nothing: whoever reads what tests say looks for those that failed.
        let panic = || resume_unwind(Box::new("no 7".to_owned()));
        assert_eq!(guard(panic), Code::Internal.to_i32());
        let text = last_error::dragon_last_error();
        // SAFETY: the text of this thread's last error, valid until the next one.
        let text = unsafe { CStr::from_ptr(text) }.to_str().unwrap();
        assert!(text.contains("no 7"), "{text}");
    }

    #[test]
    fn text_is_cut_at_the_end_of_the_array() {
        let letters = |text: &[u8; 4]| text.map(|byte| byte as c_char);
        let mut array = [1; 4];
        fill(&mut array, "abcdef");
        assert_eq!(array, letters(b"abc\0"));
        fill(&mut array, "x");
        assert_eq!(array, letters(b"x\0\0\0"));
    }
}
