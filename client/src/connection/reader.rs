//! Answers from the control socket, one after the other.

use std::os::fd::{BorrowedFd, OwnedFd};

use dragon_protocol::control::{ClientReply, Numbered};
use dragon_protocol::frame;

use crate::attach::receive_some;
use crate::error::{Error, Result};

/// Bytes of a frame's length.
const HEAD: usize = 4;

/// What was read of the answer that comes next: any thread can read on.
#[derive(Debug, Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    filled: usize,
    descriptors: Vec<OwnedFd>,
}

impl Reader {
    /// Waits for the next answer, and the descriptors that come with it. After a signal it is [`Error::Interrupted`], unless
    /// the answer has begun to come.
    pub(super) fn read(
        &mut self,
        socket: BorrowedFd<'_>,
    ) -> Result<(Numbered<ClientReply>, Vec<OwnedFd>)> {
        self.fill(socket, HEAD)?;
        // The first read is of so many bytes.
        let head = self.bytes.first_chunk().copied().unwrap_or_default();
        let length = frame::body_length(head)?;
        while let Err(error) = self.fill(socket, HEAD + length) {
            if !matches!(error, Error::Interrupted) {
                return Err(error);
            }
        }
        let answer = frame::decode(&self.bytes[HEAD..])?;
        self.bytes.clear();
        self.filled = 0;
        Ok((answer, std::mem::take(&mut self.descriptors)))
    }

    fn fill(&mut self, socket: BorrowedFd<'_>, length: usize) -> Result<()> {
        self.bytes.resize(length.max(self.bytes.len()), 0);
        while self.filled < length {
            let rest = &mut self.bytes[self.filled..length];
            self.filled += receive_some(socket, rest, &mut self.descriptors)?;
        }
        Ok(())
    }
}
