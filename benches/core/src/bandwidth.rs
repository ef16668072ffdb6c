//! Bytes that are copied in and out, beside the same two copies with bare words, and beside those of the kernel through a pipe
//! and a socket: the same bytes by the same two processes, in slices in turn.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use dragon_raw::copies::Buffers;

use crate::beside::{Columns, Ends, NEVER, Shape, Task, each, how, slices};

/// Bytes of a slice; messages are three at least.
const SLICE: usize = 16 << 20;
const PAGE: usize = 4096;
/// Where large vectors begin in a page.
const MALLOC: usize = 16;

/// GB/s of messages of so many bytes: ours, bare copies, ours with memory that begins where the allocator has it begin, a pipe,
/// a Unix socket. All others use memory that begins at a page, which suits processors best.
pub(crate) fn bandwidth(bytes: usize) -> Result<Columns> {
    let shape = Shape {
        rounds: u32::try_from((SLICE / bytes).max(3))?,
        slices: 40,
        same_core: false,
        symmetric: false,
    };
    // As many as there are of ours: one is written, two are under way, one is read.
    let bare = Buffers::new(4, bytes)?;
    let (pipe_end, into_pipe) = std::io::pipe()?;
    let (socket_end, into_socket) = UnixStream::pair()?;
    let memory = RefCell::new(vec![0_u8; bytes + 2 * PAGE]);
    let all = |first: bool, at: usize, act: &dyn Fn(&mut [u8]) -> Result<()>| -> Result<()> {
        let mut memory = memory.borrow_mut();
        let at = memory.as_ptr().align_offset(PAGE) + at;
        let memory = &mut memory[at..at + bytes];
        // What came is looked at: the receiver's own byte is another.
        memory[bytes - 1] = u8::from(first);
        for _ in 0..shape.rounds {
            act(memory)?;
        }
        ensure!(memory[bytes - 1] == 1, "other bytes came");
        Ok(())
    };
    let channel = |ends: &Ends, first: bool, at: usize| {
        all(first, at, &|memory| {
            if first {
                ends.two.send(memory, 0, NEVER)?;
            } else {
                let message = ends.two.receive(NEVER)?;
                ensure!(message.copy_to(0, memory) == bytes, "too short");
            }
            Ok(())
        })
    };
    let ours = |ends: &Ends, first: bool| channel(ends, first, 0);
    let malloc = |ends: &Ends, first: bool| channel(ends, first, MALLOC);
    let copies = |_: &Ends, first: bool| {
        all(first, 0, &|memory| {
            if first {
                bare.send(memory);
            } else {
                bare.receive(memory);
            }
            Ok(())
        })
    };
    let pipe = |_: &Ends, first: bool| {
        all(first, 0, &|memory| {
            through(first, &into_pipe, &pipe_end, memory)
        })
    };
    let socket = |_: &Ends, first: bool| {
        all(first, 0, &|memory| {
            through(first, &into_socket, &socket_end, memory)
        })
    };
    // The first two are not looked at: the kernel's copies take the place of all buffers in the caches.
    let tasks: [Task<'_>; 7] = [&ours, &copies, &ours, &copies, &malloc, &pipe, &socket];
    let times = slices(shape, 2, &tasks)?.split_off(2);
    let volume = bytes as f64 * f64::from(shape.rounds) / 1e9;
    let note = how("two copies, memory warm, adaptive waits", shape)?;
    Ok(("GB/s", each(times, |time| volume / time), note))
}

/// A message through a pipe or a socket.
fn through(sends: bool, mut into: impl Write, mut end: impl Read, memory: &mut [u8]) -> Result<()> {
    if sends {
        into.write_all(memory)?;
    } else {
        end.read_exact(memory)?;
    }
    Ok(())
}
