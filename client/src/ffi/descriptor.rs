//! Descriptors as bytes and as text.

use std::ffi::c_char;

use dragon_protocol::Descriptor;

use super::{Out, guard, null, refer, text};
use crate::error::{Error, Result};

/// A descriptor as the caller holds it.
pub(super) type Bytes = [u8; Descriptor::LEN];

/// # Safety
/// Null, or valid for reads.
pub(super) unsafe fn read(bytes: *const Bytes) -> Result<Descriptor> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { refer(bytes, "the descriptor") }?;
    Descriptor::from_bytes(bytes).map_err(|error| Error::InvalidArgument(error.to_string()))
}

/// # Safety
/// Null, or valid for a write.
pub(super) unsafe fn write(
    descriptor: impl FnOnce() -> Result<Descriptor>,
    bytes: *mut Bytes,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let out = unsafe { Out::new(bytes, "the place for the descriptor") }?;
    out.put(descriptor()?.to_bytes());
    Ok(())
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_descriptor_text(
    descriptor: *const [u8; 32],
    text: *mut c_char,
    capacity: usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let shown = unsafe { read(descriptor) }?.to_string();
        if text.is_null() {
            return Err(null("text"));
        }
        if shown.len() >= capacity {
            return Err(Error::InvalidArgument(format!(
                "the text of a descriptor needs {} bytes with its NUL, there is room for {capacity}; DRAGON_DESCRIPTOR_TEXT is always enough",
                shown.len() + 1
            )));
        }
        // SAFETY: the caller's array has room for the text and one more byte.
        let place = unsafe { std::slice::from_raw_parts_mut(text, shown.len() + 1) };
        super::fill(place, &shown);
        Ok(())
    })
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_descriptor_parse(
    text: *const c_char,
    descriptor: *mut [u8; 32],
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let given = unsafe { self::text(text, "text") }?;
        let parse = || {
            let given = given.to_string_lossy();
            let parsed = given.parse::<Descriptor>();
            parsed.map_err(|error| Error::InvalidArgument(error.to_string()))
        };
        // SAFETY: the caller's promise.
        unsafe { write(parse, descriptor) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, RuntimeId};

    #[test]
    fn the_longest_text_has_room() {
        let longest = Descriptor {
            runtime: RuntimeId(u64::MAX),
            object: ObjectId {
                node: NodeIndex::new(NodeIndex::MAX).unwrap(),
                kind: ObjectKind::Channel,
                index: u32::MAX,
                generation: u32::MAX,
            },
            user: u64::MAX,
        };
        assert!(longest.to_string().len() < 96);
    }
}
