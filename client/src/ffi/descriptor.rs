//! Descriptors as bytes and as text.

use std::ffi::c_char;

use dragon_protocol::Descriptor;

use super::function::{DescriptorBytes, Out, functions};
use super::{null, text};
use crate::error::Error;

functions! {
    fn dragon_descriptor_text(descriptor: Descriptor, text: *mut c_char, capacity: usize) {
        if text.is_null() {
            return Err(null("text"));
        }
        let shown = descriptor.to_string();
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
    }

    fn dragon_descriptor_parse(text: *const c_char, descriptor: Out<DescriptorBytes>) {
        // SAFETY: the caller's promise.
        let given = unsafe { self::text(text, "text") }?.to_string_lossy();
        let parsed = given.parse::<Descriptor>();
        let parsed = parsed.map_err(|error| Error::InvalidArgument(error.to_string()))?;
        descriptor.put(parsed.to_bytes());
        Ok(())
    }
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
