//! How a pool is to be made.

use serde::{Deserialize, Serialize};

/// How a pool is to be made.
///
/// ```
/// use dragon_protocol::PoolOptions;
///
/// let options = PoolOptions {
///     limit: 4 << 30,
///     name: "images".to_owned(),
///     ..PoolOptions::default()
/// };
/// assert!(options.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolOptions {
    /// Bytes that it may grow to, rounded up to 2 MiB. What is not used costs nothing.
    pub limit: u64,
    /// No block is smaller: a power of two from 64 B to 32 KiB.
    pub minimum_block: u32,
    /// Ask for huge pages. What was obtained is told by the pool's statistics.
    pub huge_pages: bool,
    /// Take all memory from one NUMA node.
    pub numa_node: Option<u32>,
    /// A name for people, at most [`PoolOptions::MAX_NAME`] bytes; it stands in errors and in the kernel's lists.
    pub name: String,
    /// Commit and touch all memory at creation.
    pub pre_touch: bool,
    /// A number of the user's choice; an attribute that nothing depends on.
    pub user: u64,
    /// Where the data lies: the path, as bytes, of a file that the daemon makes and removes. Empty: in memory.
    pub file: Vec<u8>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            limit: 1 << 30,
            minimum_block: Self::LEAST_BLOCK,
            huge_pages: false,
            numa_node: None,
            name: String::new(),
            pre_touch: false,
            user: 0,
            file: Vec::new(),
        }
    }
}

/// An option of a pool that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolOptionError {
    /// The limit.
    #[error("limit of a pool: {0} is not from {least} to {most} bytes", least = PoolOptions::LEAST_LIMIT, most = PoolOptions::MOST_LIMIT)]
    Limit(u64),
    /// The smallest block.
    #[error("minimum block of a pool: {0} is not a power of two from {least} to {most}", least = PoolOptions::LEAST_BLOCK, most = PoolOptions::MOST_BLOCK)]
    MinimumBlock(u32),
    /// The name.
    #[error("name of a pool: {0} bytes, at most {most} fit", most = PoolOptions::MAX_NAME)]
    Name(usize),
    /// The path of a file.
    #[error("file of a pool: a path without zero bytes that starts with '/' is needed")]
    File,
}

impl PoolOptions {
    /// The smallest limit.
    pub const LEAST_LIMIT: u64 = 1;
    /// The largest limit: 128 TiB, what addresses within a node can name.
    pub const MOST_LIMIT: u64 = 1 << 47;
    /// The smallest block of all.
    pub const LEAST_BLOCK: u32 = 64;
    /// The largest minimum.
    pub const MOST_BLOCK: u32 = 32 << 10;
    /// Bytes of a name.
    pub const MAX_NAME: usize = 64;

    /// Checks that every option is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), PoolOptionError> {
        if !(Self::LEAST_LIMIT..=Self::MOST_LIMIT).contains(&self.limit) {
            return Err(PoolOptionError::Limit(self.limit));
        }
        if !self.minimum_block.is_power_of_two()
            || !(Self::LEAST_BLOCK..=Self::MOST_BLOCK).contains(&self.minimum_block)
        {
            return Err(PoolOptionError::MinimumBlock(self.minimum_block));
        }
        if self.name.len() > Self::MAX_NAME {
            return Err(PoolOptionError::Name(self.name.len()));
        }
        let path = &self.file;
        if path.first().is_some_and(|first| *first != b'/') || path.contains(&0) {
            return Err(PoolOptionError::File);
        }
        Ok(())
    }
}
