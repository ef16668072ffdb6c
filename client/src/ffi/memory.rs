//! Shared memory.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use super::function::{Out, Wanted, functions, object};
use super::{many, room};
use crate::memory::Memory;

object! {
    Memory memory {
        attach: dragon_memory_attach,
        close: dragon_memory_close,
        descriptor: dragon_memory_descriptor,
        export: dragon_memory_export,
        destroy: dragon_memory_destroy,
    }
}

functions! {
    fn dragon_memory_create(user: u64, contents: *const c_void, length: usize, memory: Out<*mut Memory>) {
        memory.give(if contents.is_null() {
            Memory::create_zeroed(user, length as u64)?
        } else {
            // SAFETY: the caller's promise.
            Memory::create(user, unsafe { many(contents.cast::<u8>(), length, "contents") }?)?
        });
        Ok(())
    }

    fn dragon_memory_data(memory: &Memory, data: Wanted<*mut c_void>, length: Wanted<u64>) {
        length.put(memory.length()?);
        data.put(memory.bytes()?.map_or(ptr::null_mut(), NonNull::as_ptr).cast());
        Ok(())
    }

    fn dragon_memory_write(memory: &Memory, at: u64, data: *const c_void, length: usize) {
        // SAFETY: the caller's promise.
        memory.write(at, unsafe { many(data.cast::<u8>(), length, "data") }?)
    }

    fn dragon_memory_read(memory: &Memory, at: u64, data: *mut c_void, length: usize) {
        // SAFETY: the caller's promise.
        memory.read(at, unsafe { room(data, length) }?)
    }
}
