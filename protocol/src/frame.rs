//! Framing of control messages: a length (u32, little-endian), then a postcard-encoded value.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest control message. Larger payloads travel through pools.
pub const MAX_FRAME: usize = 64 << 20;

/// Why a control message cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error(
        "a control message of {0} bytes exceeds the limit of {MAX_FRAME} bytes; send large data through a pool"
    )]
    TooLong(usize),
    /// Not a message of this protocol.
    #[error("a control message of {0} bytes cannot be decoded")]
    Malformed(usize),
}

/// Appends the frame of `message` to `out`.
///
/// # Errors
/// When the message is longer than [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    let body = postcard::to_allocvec(message).map_err(|_| FrameError::Malformed(0))?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_FRAME);
    let length = length.ok_or(FrameError::TooLong(body.len()))?;
    out.reserve(4 + body.len());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&body);
    debug_assert_eq!(out.len() - start, 4 + body.len());
    Ok(())
}

/// The length that the first four bytes of a frame announce.
///
/// # Errors
/// When it exceeds [`MAX_FRAME`].
pub fn body_length(head: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_FRAME {
        Err(FrameError::TooLong(length))
    } else {
        Ok(length)
    }
}

/// Decodes the body of a frame. The whole body must be used up.
///
/// # Errors
/// When it is not a `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(FrameError::Malformed(body.len())),
    }
}
