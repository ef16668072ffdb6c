//! Names and the key-value store of the node.

use std::ffi::{c_char, c_void};

use dragon_protocol::{Code, Descriptor};
use dragon_shmem::Deadline;

use super::function::{Out, functions};
use super::{list, many, room, text};
use crate::error::{Error, Result};
use crate::names::{self, Lasts, Value, store};

/// `dragon_value`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonValue {
    /// 1: an object; 0: bytes.
    pub is_object: i32,
    /// The object.
    pub descriptor: [u8; Descriptor::LEN],
    /// How many bytes.
    pub length: usize,
}

/// `dragon_key`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonKey {
    /// Its bytes, and a NUL.
    pub bytes: [u8; 256],
    /// How many bytes.
    pub length: usize,
}

functions! {
    fn dragon_name_publish(name: *const c_char, descriptor: Descriptor, lasts: i32) {
        // SAFETY: the caller's promise.
        let name = unsafe { name_of(name) }?;
        names::publish(name, Value::Object(descriptor), how_long(lasts)?)
    }

    fn dragon_name_publish_bytes(
        name: *const c_char,
        bytes: *const c_void,
        length: usize,
        lasts: i32,
    ) {
        // SAFETY: the caller's promise.
        let name = unsafe { name_of(name) }?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { many(bytes.cast::<u8>(), length, "bytes") }?;
        names::publish(name, Value::Bytes(bytes.to_vec()), how_long(lasts)?)
    }

    fn dragon_name_lookup(
        name: *const c_char,
        value: Out<DragonValue>,
        buffer: *mut c_void,
        capacity: usize,
    ) {
        // SAFETY: the caller's promise.
        let name = unsafe { name_of(name) }?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { room(buffer, capacity) }?;
        give(names::look_up(name)?, value, buffer)
    }

    fn dragon_name_wait(
        name: *const c_char,
        timeout: Deadline,
        value: Out<DragonValue>,
        buffer: *mut c_void,
        capacity: usize,
    ) {
        // SAFETY: the caller's promise.
        let name = unsafe { name_of(name) }?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { room(buffer, capacity) }?;
        give(names::wait_for(name, timeout)?, value, buffer)
    }

    fn dragon_name_unpublish(name: *const c_char) {
        // SAFETY: the caller's promise.
        let name = unsafe { name_of(name) }?;
        names::unpublish(name).map(drop)
    }

    fn dragon_name_list(
        begin: *const c_char,
        names: *mut DragonKey,
        capacity: usize,
        count: Out<usize>,
    ) {
        // SAFETY: the caller's promise.
        let begin = unsafe { name_of(begin) }?;
        let found = names::list(begin)?;
        let keys = found.iter().map(|name| key(name.as_bytes()));
        // SAFETY: the caller's promise.
        unsafe { list(keys, names, capacity, count) }
    }

    fn dragon_kv_put(
        key: *const c_void,
        key_length: usize,
        value: *const c_void,
        length: usize,
    ) {
        // SAFETY: the caller's promise.
        let key = unsafe { many(key.cast::<u8>(), key_length, "key") }?;
        // SAFETY: the caller's promise.
        let value = unsafe { many(value.cast::<u8>(), length, "value") }?;
        store::put(key, value)
    }

    fn dragon_kv_get(
        key: *const c_void,
        key_length: usize,
        buffer: *mut c_void,
        capacity: usize,
        length: Out<usize>,
    ) {
        // SAFETY: the caller's promise.
        let key = unsafe { many(key.cast::<u8>(), key_length, "key") }?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { room(buffer, capacity) }?;
        copy(&store::wait_for(key, Deadline::Now)?, buffer, length)
    }

    fn dragon_kv_wait(
        key: *const c_void,
        key_length: usize,
        timeout: Deadline,
        buffer: *mut c_void,
        capacity: usize,
        length: Out<usize>,
    ) {
        // SAFETY: the caller's promise.
        let key = unsafe { many(key.cast::<u8>(), key_length, "key") }?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { room(buffer, capacity) }?;
        copy(&store::wait_for(key, timeout)?, buffer, length)
    }

    fn dragon_kv_delete(key: *const c_void, key_length: usize) {
        // SAFETY: the caller's promise.
        let key = unsafe { many(key.cast::<u8>(), key_length, "key") }?;
        store::delete(key).map(drop)
    }

    fn dragon_kv_compare_and_set(
        key: *const c_void,
        key_length: usize,
        expected: *const c_void,
        expected_length: usize,
        value: *const c_void,
        length: usize,
    ) {
        // SAFETY: the caller's promise.
        let key = unsafe { many(key.cast::<u8>(), key_length, "key") }?;
        // SAFETY: the caller's promise.
        let expected = unsafe { perhaps(expected, expected_length) }?;
        // SAFETY: the caller's promise.
        let value = unsafe { perhaps(value, length) }?;
        store::compare_and_set(key, expected, value)
    }

    fn dragon_kv_list(
        begin: *const c_void,
        begin_length: usize,
        keys: *mut DragonKey,
        capacity: usize,
        count: Out<usize>,
    ) {
        // SAFETY: the caller's promise.
        let begin = unsafe { many(begin.cast::<u8>(), begin_length, "begin") }?;
        let found = store::list(begin)?;
        // SAFETY: the caller's promise.
        unsafe { list(found.iter().map(|bytes| key(bytes)), keys, capacity, count) }
    }
}

/// # Safety
/// As [`text`].
unsafe fn name_of<'a>(name: *const c_char) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    let name = unsafe { text(name, "name") }?;
    name.to_str().map_err(|error| {
        let shown = name.to_string_lossy();
        Error::InvalidArgument(format!("the name '{shown}' is no UTF-8 text: {error}"))
    })
}

/// Bytes, or with NULL nothing.
///
/// # Safety
/// As [`many`].
unsafe fn perhaps<'a>(bytes: *const c_void, length: usize) -> Result<Option<&'a [u8]>> {
    if bytes.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { many(bytes.cast::<u8>(), length, "bytes") }.map(Some)
}

fn how_long(lasts: i32) -> Result<Lasts> {
    match lasts {
        0 => Ok(Lasts::UntilUnpublished),
        1 => Ok(Lasts::WithPublisher),
        _ => Err(Error::InvalidArgument(format!(
            "lasts is {lasts}; it must be DRAGON_UNTIL_UNPUBLISHED (0) or DRAGON_WITH_PUBLISHER (1)"
        ))),
    }
}

fn give(found: Value, value: Out<DragonValue>, buffer: &mut [u8]) -> Result<()> {
    let mut shown = DragonValue {
        is_object: 0,
        descriptor: [0; Descriptor::LEN],
        length: 0,
    };
    match found {
        Value::Object(descriptor) => {
            shown.is_object = 1;
            shown.descriptor = descriptor.to_bytes();
            value.put(shown);
            Ok(())
        }
        Value::Bytes(bytes) => {
            shown.length = bytes.len();
            value.put(shown);
            fit(&bytes, buffer)
        }
    }
}

fn copy(bytes: &[u8], buffer: &mut [u8], length: Out<usize>) -> Result<()> {
    length.put(bytes.len());
    fit(bytes, buffer)
}

fn fit(bytes: &[u8], buffer: &mut [u8]) -> Result<()> {
    let Some(place) = buffer.get_mut(..bytes.len()) else {
        return Err(Error::Daemon {
            code: Code::TooLarge,
            text: format!(
                "the value has {} bytes, there is room for {}; values have at most 65536",
                bytes.len(),
                buffer.len()
            ),
        });
    };
    place.copy_from_slice(bytes);
    Ok(())
}

fn key(bytes: &[u8]) -> DragonKey {
    let mut shown = DragonKey {
        bytes: [0; 256],
        length: bytes.len(),
    };
    // Names and keys have at most 255 bytes.
    for (to, from) in shown.bytes.iter_mut().zip(bytes) {
        *to = *from;
    }
    shown
}
