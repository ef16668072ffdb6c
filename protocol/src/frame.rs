//! Framing of control messages: a length (u32, little-endian), then a postcard-encoded value.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest control message. Larger payloads travel through pools.
pub const MAX_FRAME: usize = 64 << 20;
/// The longest request of a client: what its daemon adds to pass it on to other nodes fits into a frame with it.
pub const MAX_REQUEST: usize = MAX_FRAME - (1 << 20);

/// Why a control message cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than the limit: [`MAX_FRAME`] or [`MAX_REQUEST`].
    #[error(
        "a control message of {length} bytes exceeds the limit of {limit} bytes; send large data through a pool"
    )]
    TooLong {
        /// Its bytes.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Not a message of this protocol.
    #[error("a control message of {0} bytes cannot be decoded")]
    Malformed(usize),
}

/// Appends the frame of `message` to `out`.
///
/// # Errors
/// When the message is longer than [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    encode_within(MAX_FRAME, message, out)
}

/// As [`encode`], for the request of a client.
///
/// # Errors
/// When the message is longer than [`MAX_REQUEST`].
pub fn encode_request<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    encode_within(MAX_REQUEST, message, out)
}

fn encode_within<T: Serialize>(
    limit: usize,
    message: &T,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let encoded = postcard::to_extend(message, core::mem::take(out));
    *out = encoded.map_err(|_| FrameError::Malformed(0))?;
    let length = out.len() - start - 4;
    match u32::try_from(length).ok().filter(|_| length <= limit) {
        Some(length) => {
            out[start..start + 4].copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        None => {
            out.truncate(start);
            Err(FrameError::TooLong { length, limit })
        }
    }
}

/// The length that the first four bytes of a frame announce.
///
/// # Errors
/// When it exceeds [`MAX_FRAME`].
pub fn body_length(head: [u8; 4]) -> Result<usize, FrameError> {
    length_within(MAX_FRAME, head)
}

/// As [`body_length`], for the request of a client.
///
/// # Errors
/// When it exceeds [`MAX_REQUEST`].
pub fn request_length(head: [u8; 4]) -> Result<usize, FrameError> {
    length_within(MAX_REQUEST, head)
}

fn length_within(limit: usize, head: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(head) as usize;
    if length > limit {
        Err(FrameError::TooLong { length, limit })
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
