//! Pools and their blocks.

use std::ffi::{c_char, c_void};
use std::ptr;

use dragon_protocol::PoolOptions;

use super::{Out, check_size, close, deadline, descriptor, guard, null, refer, text};
use crate::error::{Error, Result};
use crate::objects::Channel;
use crate::pool::{Pool, PoolBlock};
use crate::session::Session;

/// `dragon_pool_options`.
#[derive(Debug)]
#[repr(C)]
pub struct DragonPoolOptions {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// Limit in bytes; 0: the default.
    pub limit: u64,
    /// A number of the caller's choice.
    pub user: u64,
    /// The smallest block; 0: the default.
    pub minimum_block: u32,
    /// Whether huge pages are asked for.
    pub huge_pages: i32,
    /// A NUMA node, or -1.
    pub numa_node: i32,
    /// Whether all memory is committed and touched at once.
    pub pre_touch: i32,
    /// A name for people, or null.
    pub name: *const c_char,
    /// The path of a file that is to hold the data, or null.
    pub file: *const c_char,
}

/// `dragon_pool_stats`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonPoolStats {
    /// Limit in bytes.
    pub limit: u64,
    /// Bytes taken from the system.
    pub committed: u64,
    /// Bytes in blocks.
    pub used: u64,
    /// Blocks.
    pub blocks: u64,
    /// Bytes of this process's mapping in huge pages.
    pub huge: u64,
}

impl DragonPoolOptions {
    /// # Safety
    /// Strings are null or NUL-terminated.
    unsafe fn read(&self) -> Result<PoolOptions> {
        check_size::<Self>("dragon_pool_options", self.size)?;
        let default = PoolOptions::default();
        let numa_node = u32::try_from(self.numa_node).ok();
        if numa_node.is_none() && self.numa_node != -1 {
            return Err(Error::InvalidArgument(format!(
                "dragon_pool_options.numa_node is {}; a node, or -1 for any, is needed",
                self.numa_node
            )));
        }
        // SAFETY: the caller's promise.
        let name = unsafe { optional(self.name) }?;
        // SAFETY: the caller's promise.
        let file = unsafe { optional(self.file) }?;
        Ok(PoolOptions {
            limit: if self.limit == 0 {
                default.limit
            } else {
                self.limit
            },
            minimum_block: if self.minimum_block == 0 {
                default.minimum_block
            } else {
                self.minimum_block
            },
            huge_pages: self.huge_pages != 0,
            numa_node,
            name: String::from_utf8_lossy(name).into_owned(),
            pre_touch: self.pre_touch != 0,
            user: self.user,
            file: file.to_vec(),
        })
    }
}

/// A string that may be left out.
///
/// # Safety
/// The pointer is null, or to a NUL-terminated string that stays for as long as the result is used.
unsafe fn optional<'a>(string: *const c_char) -> Result<&'a [u8]> {
    if string.is_null() {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { text(string, "string") }?.to_bytes())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_create(
    options: *const DragonPoolOptions,
    pool: *mut *mut Pool,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(pool, "pool") }?;
        // SAFETY: the caller's promise.
        let options = match unsafe { options.as_ref() } {
            // SAFETY: the caller's promise.
            Some(options) => unsafe { options.read() }?,
            None => PoolOptions::default(),
        };
        out.give(Pool::create(&options)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_attach(
    descriptor: *const [u8; 32],
    adopt: i32,
    pool: *mut *mut Pool,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(pool, "pool") }?;
        // SAFETY: the caller's promise.
        let descriptor = unsafe { descriptor::read(descriptor) }?;
        out.give(Pool::attach(descriptor, adopt != 0)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_close(pool: *mut Pool) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(pool, "pool") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_destroy(pool: *const Pool) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { refer(pool, "pool") }?.destroy())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_descriptor(
    pool: *const Pool,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let pool = unsafe { refer(pool, "pool") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| Ok(pool.descriptor()), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_export(pool: *const Pool, descriptor: *mut [u8; 32]) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let pool = unsafe { refer(pool, "pool") }?;
        // SAFETY: the caller's promise.
        unsafe { descriptor::write(|| pool.export(), descriptor) }
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_get_stats(
    pool: *const Pool,
    stats: *mut DragonPoolStats,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let pool = unsafe { refer(pool, "pool") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(stats, "stats") }?;
        let stats = pool.stats()?;
        out.put(DragonPoolStats {
            limit: stats.limit,
            committed: stats.committed,
            used: stats.used,
            blocks: stats.blocks,
            huge: stats.huge,
        });
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_trim(released: *mut u64) -> i32 {
    guard(|| {
        let bytes = Session::attach_or_start()?.trim_pools()?;
        // SAFETY: the caller's promise.
        unsafe { super::put_if_wanted(released, bytes) };
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_alloc(
    pool: *const Pool,
    length: u64,
    block: *mut *mut PoolBlock,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let pool = unsafe { refer(pool, "pool") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new(block, "block") }?;
        out.give(pool.alloc(length)?);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_block_data(
    block: *mut PoolBlock,
    data: *mut *mut c_void,
    length: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let block = unsafe { block.as_mut() }.ok_or_else(|| null("block"))?;
        // SAFETY: the caller's promise.
        unsafe { super::put_if_wanted(length, block.len()) };
        // SAFETY: the caller's promise.
        unsafe { super::put_if_wanted(data, block.as_mut_ptr().cast()) };
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_block_free(block: *mut PoolBlock) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { close(block, "block") }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_pool_block_send(
    block: *mut *mut PoolBlock,
    channel: *const Channel,
    hint: u64,
    timeout: i64,
) -> i32 {
    guard(|| {
        let deadline = deadline(timeout)?;
        // SAFETY: the caller's promise.
        let channel = unsafe { refer(channel, "channel") }?;
        // SAFETY: the caller's promise.
        let place = unsafe { block.as_mut() }.ok_or_else(|| null("block"))?;
        if place.is_null() {
            return Err(null("block"));
        }
        // SAFETY: the caller's promise: it came from `Out::give`, and was neither freed nor sent.
        let block = unsafe { Box::from_raw(*place) };
        match block.send(channel, hint, deadline) {
            Ok(()) => {
                *place = ptr::null_mut();
                Ok(())
            }
            Err((error, back)) => {
                *place = Box::into_raw(Box::new(back));
                Err(error)
            }
        }
    })
}
