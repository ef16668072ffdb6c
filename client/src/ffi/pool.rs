//! Pools and their blocks.

use std::ffi::{c_char, c_void};

use dragon_protocol::PoolOptions;
use dragon_shmem::Deadline;

use super::function::{Argument, Out, Taken, Wanted, functions, object};
use super::{check_size, many, or_default, room, text};
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
            limit: or_default(self.limit, default.limit),
            minimum_block: or_default(self.minimum_block, default.minimum_block),
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

object! {
    Pool pool {
        attach: dragon_pool_attach,
        close: dragon_pool_close,
        descriptor: dragon_pool_descriptor,
        export: dragon_pool_export,
        destroy: dragon_pool_destroy,
    }
}

functions! {
    fn dragon_pool_create(options: Option<&DragonPoolOptions>, pool: Out<*mut Pool>) {
        // SAFETY: the caller's promise.
        let options = options.map(|options| unsafe { options.read() });
        pool.give(Pool::create(&options.transpose()?.unwrap_or_default())?);
        Ok(())
    }

    fn dragon_pool_get_stats(pool: &Pool, stats: Out<DragonPoolStats>) {
        let found = pool.stats()?;
        stats.put(DragonPoolStats {
            limit: found.limit,
            committed: found.committed,
            used: found.used,
            blocks: found.blocks,
            huge: found.huge,
        });
        Ok(())
    }

    fn dragon_pool_trim(released: Wanted<u64>) {
        released.put(Session::attach_or_start()?.trim_pools()?);
        Ok(())
    }

    fn dragon_pool_alloc(pool: &Pool, length: u64, block: Out<*mut PoolBlock>) {
        block.give(pool.alloc(length)?);
        Ok(())
    }

    fn dragon_pool_block_data(block: &mut PoolBlock, data: Wanted<*mut c_void>, length: Wanted<u64>) {
        length.put(block.len());
        data.put(block.as_mut_ptr().cast());
        Ok(())
    }

    fn dragon_pool_block_node(block: &PoolBlock, node: Out<u32>) {
        node.put(block.node());
        Ok(())
    }

    fn dragon_pool_block_write(block: &mut PoolBlock, at: u64, data: *const c_void, length: usize) {
        // SAFETY: the caller's promise.
        block.write(at, unsafe { many(data.cast::<u8>(), length, "data") }?)
    }

    fn dragon_pool_block_read(block: &PoolBlock, at: u64, data: *mut c_void, length: usize) {
        // SAFETY: the caller's promise.
        block.read(at, unsafe { room(data, length) }?)
    }

    fn dragon_pool_block_copy(
        to: *mut PoolBlock,
        to_at: u64,
        from: *const PoolBlock,
        from_at: u64,
        length: u64,
    ) {
        if to.cast_const() == from {
            // SAFETY: the caller's promise; the other name of the block is not used.
            let block = unsafe { <&mut PoolBlock as Argument>::take(to, "to") }?;
            return block.copy_within(to_at, from_at, length);
        }
        // SAFETY: the caller's promise; they are two blocks.
        let to = unsafe { <&mut PoolBlock as Argument>::take(to, "to") }?;
        // SAFETY: as above.
        let from = unsafe { <&PoolBlock as Argument>::take(from, "from") }?;
        to.copy_from(to_at, from, from_at, length)
    }

    fn dragon_pool_block_fill(block: &mut PoolBlock, at: u64, length: u64, value: u32) {
        block.fill(at, length, value.to_le_bytes()[0])
    }

    fn dragon_pool_block_hash(block: &PoolBlock, at: u64, length: u64, hash: Out<[u8; 32]>) {
        hash.put(block.hash(at, length)?);
        Ok(())
    }

    fn dragon_pool_block_compare(
        first: &PoolBlock,
        first_at: u64,
        second: &PoolBlock,
        second_at: u64,
        length: u64,
        order: Out<i32>,
    ) {
        order.put(first.compare(first_at, second, second_at, length)? as i32);
        Ok(())
    }

    fn dragon_pool_block_free(block: Box<PoolBlock>) {
        drop(block);
        Ok(())
    }

    fn dragon_pool_block_send(
        block: Taken<PoolBlock>,
        channel: &Channel,
        hint: u64,
        timeout: Deadline,
    ) {
        block.hand_over(|block| block.send(channel, hint, timeout))
    }
}
