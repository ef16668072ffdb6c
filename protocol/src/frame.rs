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
    out.extend_from_slice(&[0; 4]);
    let encoded = postcard::to_extend(message, core::mem::take(out));
    *out = encoded.map_err(|_| FrameError::Malformed(0))?;
    let body = out.len() - start - 4;
    match u32::try_from(body).ok().filter(|_| body <= MAX_FRAME) {
        Some(length) => {
            out[start..start + 4].copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        None => {
            out.truncate(start);
            Err(FrameError::TooLong(body))
        }
    }
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
