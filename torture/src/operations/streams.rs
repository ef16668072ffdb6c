//! Streams: conversations over an endpoint.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::{Deadline, Endpoint, EndpointOptions, Error, StreamReceiver, StreamSender};
use dragon_shmem::Member;

use crate::operations::channel::Nothing;
use crate::operations::{Act, HUGE, LARGE, Operation, Words, bytes_of, checked, operation, soon};
use crate::survivor::Survivor;

const STREAMS: u32 = 2;
const CAPACITY: u32 = 4;

/// What the survivor has, or does when the victim waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Nothing: it looks afterwards.
    Looks,
    /// It has opened a conversation and sent two chunks of so many bytes.
    Sends(usize),
    /// The same, and has closed its end.
    Sent(usize),
    /// It has opened a conversation; it sends when the victim waits.
    SendsLate,
    /// It opens a conversation when the victim waits.
    OpensLate,
    /// It has all rows; it gives one back when the victim waits.
    HasAll,
    /// It accepts and receives when the victim waits.
    ReceivesLate,
}

pub(super) const OPERATIONS: &[Operation] = &[
    operation("stream-create", |_| Ok(Box::new(Nothing)), creates),
    operation("stream-open", looks::<0>, opens),
    operation("stream-open-kept", looks::<2>, opens),
    operation("stream-open-sleeps", |m| rig(m, 1, Part::HasAll), opens),
    operation("stream-send", looks::<2>, |m, w| sends(m, w, 8)),
    operation("stream-send-large", looks::<2>, |m, w| sends(m, w, LARGE)),
    operation("stream-send-huge", looks::<2>, |m, w| sends(m, w, HUGE)),
    operation("stream-hand-over", looks::<2>, hands_over),
    operation("stream-buffered", buffered, writes_whole),
    operation("stream-buffered-receive", buffered_with_one, reads_whole),
    operation(
        "stream-send-sleeps",
        |m| rig(m, 2, Part::ReceivesLate),
        sends_many,
    ),
    operation("stream-finish", looks::<2>, finishes),
    operation("stream-abort", looks::<2>, aborts),
    operation("stream-whole", looks::<1>, does_it_all),
    operation("stream-accept", |m| rig(m, 1, Part::Sends(8)), accepts),
    operation(
        "stream-accept-sleeps",
        |m| rig(m, 1, Part::OpensLate),
        accepts,
    ),
    operation("stream-receive", |m| rig(m, 1, Part::Sends(8)), receives),
    operation(
        "stream-receive-large",
        |m| rig(m, 1, Part::Sends(LARGE)),
        receives,
    ),
    operation(
        "stream-receive-sleeps",
        |m| rig(m, 1, Part::SendsLate),
        receives,
    ),
    operation(
        "stream-receive-end",
        |m| rig(m, 2, Part::Sent(8)),
        receives_to_the_end,
    ),
    operation(
        "stream-close-full",
        |m| rig(m, 2, Part::Sent(LARGE)),
        closes,
    ),
    operation(
        "stream-close-full-not-kept",
        |m| rig(m, 0, Part::Sent(LARGE)),
        closes,
    ),
    operation("stream-destroy", |m| rig(m, 1, Part::Sends(8)), destroys),
];

fn looks<const KEPT: u32>(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    rig(member, KEPT, Part::Looks)
}

fn rig(member: &Arc<Member>, kept: u32, part: Part) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        member: Arc::clone(member),
        kept,
        part,
        endpoint: None,
        senders: Vec::new(),
        receivers: Vec::new(),
    }))
}

/// An endpoint whose conversations travel as one message each.
fn buffered(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Buffered {
        member: Arc::clone(member),
        sends: false,
        endpoint: None,
    }))
}

fn buffered_with_one(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Buffered {
        member: Arc::clone(member),
        sends: true,
        endpoint: None,
    }))
}

struct Buffered {
    member: Arc<Member>,
    /// A whole conversation is there at the start.
    sends: bool,
    endpoint: Option<Endpoint>,
}

impl Survivor for Buffered {
    fn arm(&mut self) -> Result<Vec<String>> {
        let options = EndpointOptions {
            buffered: true,
            streams: STREAMS,
            block: 64,
            ..EndpointOptions::default()
        };
        let endpoint = Endpoint::create(&self.member, &options)?;
        if self.sends {
            write_whole(&endpoint)?;
        }
        let words = vec![endpoint.descriptor().to_string()];
        self.endpoint = Some(endpoint);
        Ok(words)
    }

    fn check(&mut self) -> Result<()> {
        let endpoint = self.endpoint.take().context("armed")?;
        match endpoint.accept(Deadline::Now) {
            Ok(receiver) => read_whole(receiver)?,
            Err(Error::Empty) => {}
            Err(error) => return Err(error).context("accepting what is there"),
        }
        for _ in 0..STREAMS {
            write_whole(&endpoint).context("the endpoint is full")?;
        }
        for _ in 0..STREAMS {
            read_whole(endpoint.accept(soon())?)?;
        }
        Ok(())
    }
}

/// Two chunks, which are one message by reference.
fn write_whole(endpoint: &Endpoint) -> Result<()> {
    let mut sender = endpoint.open_send(soon())?;
    send(&mut sender, 0, LARGE)?;
    send(&mut sender, 0, LARGE)?;
    Ok(sender.close(soon())?)
}

fn read_whole(mut receiver: StreamReceiver) -> Result<()> {
    let whole = receiver.receive(soon())?.into_vec();
    ensure!(
        whole == bytes_of(0, 2 * LARGE),
        "a conversation of {} bytes came",
        whole.len()
    );
    match receiver.receive(soon()) {
        Err(Error::EndOfStream(_)) => Ok(()),
        other => bail!("the end is {other:?}"),
    }
}

struct Rig {
    member: Arc<Member>,
    kept: u32,
    part: Part,
    /// One of its own for each victim.
    endpoint: Option<Endpoint>,
    /// With the number of the next chunk.
    senders: Vec<(StreamSender, u64)>,
    receivers: Vec<StreamReceiver>,
}

fn send(sender: &mut StreamSender, n: u64, length: usize) -> Result<(), Error> {
    sender.send(&bytes_of(n, length), n, soon())
}

/// Receives what there is; the chunks are whole and in order, and there is an end.
fn drain(mut receiver: StreamReceiver) -> Result<()> {
    let mut expected = 0;
    loop {
        match receiver.receive(soon()) {
            Ok(chunk) => {
                let n = checked(chunk)?;
                ensure!(n == expected, "chunk {n} in place of {expected}");
                expected += 1;
            }
            Err(Error::EndOfStream(_) | Error::PeerDied(_)) => return Ok(()),
            Err(error) => return Err(error).context("a receiver"),
        }
    }
}

impl Rig {
    fn endpoint(&self) -> Result<&Endpoint> {
        self.endpoint.as_ref().context("armed")
    }

    /// All rows can be used.
    fn is_whole(&self) -> Result<()> {
        let endpoint = self.endpoint()?;
        let mut both = Vec::new();
        for n in 0..STREAMS {
            let mut sender = endpoint.open_send(soon()).context("opening")?;
            send(&mut sender, 0, LARGE)?;
            let receiver = endpoint.accept(soon()).context("accepting")?;
            both.push((sender, receiver));
            ensure!(both.len() == n as usize + 1, "counted");
        }
        for (mut sender, receiver) in both {
            sender.close(soon())?;
            drain(receiver)?;
        }
        Ok(())
    }
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        let options = EndpointOptions {
            streams: STREAMS,
            kept: self.kept,
            capacity: CAPACITY,
            block: 64,
            ..EndpointOptions::default()
        };
        self.endpoint = Some(Endpoint::create(&self.member, &options)?);
        // Channels that are kept are there.
        self.is_whole()?;
        let endpoint = self.endpoint()?;
        let mut senders = Vec::new();
        match self.part {
            Part::Looks | Part::OpensLate | Part::ReceivesLate => {}
            Part::SendsLate => senders.push((endpoint.open_send(soon())?, 0)),
            Part::Sends(length) | Part::Sent(length) => {
                let mut sender = endpoint.open_send(soon())?;
                send(&mut sender, 0, length)?;
                send(&mut sender, 1, length)?;
                if matches!(self.part, Part::Sent(_)) {
                    sender.close(soon())?;
                }
                senders.push((sender, 2));
            }
            Part::HasAll => {
                for _ in 0..STREAMS {
                    senders.push((endpoint.open_send(soon())?, 0));
                }
            }
        }
        let words = vec![endpoint.descriptor().to_string()];
        self.senders = senders;
        Ok(words)
    }

    fn release(&mut self) -> Result<()> {
        match self.part {
            Part::SendsLate => {
                let (sender, next) = self.senders.first_mut().context("armed")?;
                // The victim may be dead by now.
                *next += u64::from(send(sender, *next, 8).is_ok());
            }
            Part::OpensLate => {
                let sender = self.endpoint()?.open_send(soon())?;
                self.senders.push((sender, 0));
            }
            Part::HasAll => {
                drop(self.senders.pop());
                let endpoint = self.endpoint()?;
                // Rows of both are offered; the first one is the other sender's.
                let kept = endpoint.accept(soon())?;
                drop(endpoint.accept(soon())?);
                self.receivers.push(kept);
            }
            Part::ReceivesLate => {
                let mut receiver = self.endpoint()?.accept(soon())?;
                let first = checked(receiver.receive(soon())?)?;
                ensure!(first == 0, "chunk {first} in place of the first");
                self.receivers.push(receiver);
            }
            Part::Looks | Part::Sends(_) | Part::Sent(_) => {
                bail!("the victim sleeps, and nothing is to wake it")
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        for (mut sender, next) in self.senders.drain(..) {
            match send(&mut sender, next, 8) {
                Ok(()) | Err(Error::PeerDied(_) | Error::PeerClosed(_) | Error::Destroyed(_)) => {}
                Err(error) => return Err(error).context("the survivor's sender"),
            }
        }
        self.receivers.clear();
        match self.endpoint()?.accept(Deadline::Now) {
            // The victim destroyed it.
            Err(Error::Destroyed(_)) => {}
            first => {
                let mut next = first;
                loop {
                    match next {
                        Ok(receiver) => drain(receiver)?,
                        Err(Error::Empty) => break,
                        Err(error) => return Err(error).context("accepting what was offered"),
                    }
                    next = self.endpoint()?.accept(Deadline::Now);
                }
                self.is_whole()?;
            }
        }
        self.endpoint = None;
        Ok(())
    }
}

fn attached(member: &Arc<Member>, words: &Words) -> Result<&'static Endpoint> {
    let endpoint = Endpoint::attach(member, &words.descriptor(0)?, false)?;
    Ok(Box::leak(Box::new(endpoint)))
}

fn leaked<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

fn creates(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        leaked(Endpoint::create(&member, &EndpointOptions::default())?);
        Ok(())
    }))
}

fn opens(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = attached(member, words)?;
    Ok(Box::new(move || {
        leaked(endpoint.open_send(Deadline::Never)?);
        Ok(())
    }))
}

fn sends(member: &Arc<Member>, words: &Words, length: usize) -> Result<Act> {
    let sender = leaked(attached(member, words)?.open_send(soon())?);
    Ok(Box::new(move || {
        Ok(sender.send(&bytes_of(0, length), 0, Deadline::Never)?)
    }))
}

/// A block that the receiver gets without a copy.
fn hands_over(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let sender = leaked(attached(member, words)?.open_send(soon())?);
    let block = member.alloc(HUGE as u64)?;
    member.pool().write(block.offset, 0, &bytes_of(0, HUGE))?;
    Ok(Box::new(move || {
        Ok(sender.send_block(block, 0, Deadline::Never)?)
    }))
}

fn writes_whole(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = attached(member, words)?;
    Ok(Box::new(move || write_whole(endpoint)))
}

fn reads_whole(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = attached(member, words)?;
    Ok(Box::new(move || {
        read_whole(endpoint.accept(Deadline::Never)?)
    }))
}

fn sends_many(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let sender = leaked(attached(member, words)?.open_send(soon())?);
    for n in 0..CAPACITY.into() {
        send(sender, n, 8)?;
    }
    Ok(Box::new(move || {
        let last = u64::from(CAPACITY);
        Ok(sender.send(&bytes_of(last, 8), last, Deadline::Never)?)
    }))
}

fn finishes(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let sender = leaked(attached(member, words)?.open_send(soon())?);
    send(sender, 0, LARGE)?;
    Ok(Box::new(move || Ok(sender.close(Deadline::Never)?)))
}

fn aborts(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let mut sender = attached(member, words)?.open_send(soon())?;
    send(&mut sender, 0, LARGE)?;
    Ok(Box::new(move || Ok(sender.abort()?)))
}

/// Both ends, from opening to the row's being free again.
fn does_it_all(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = attached(member, words)?;
    // Row 0 is in use, so this is about one whose channel is not kept.
    leaked(endpoint.open_send(soon())?);
    leaked(endpoint.accept(soon())?);
    Ok(Box::new(move || {
        let mut sender = endpoint.open_send(Deadline::Never)?;
        sender.send(&bytes_of(0, 8), 0, Deadline::Never)?;
        let mut receiver = endpoint.accept(Deadline::Never)?;
        sender.close(Deadline::Never)?;
        drop(receiver.receive(Deadline::Never)?);
        drop(receiver.receive(Deadline::Never));
        Ok(())
    }))
}

fn accepts(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = attached(member, words)?;
    Ok(Box::new(move || {
        leaked(endpoint.accept(Deadline::Never)?);
        Ok(())
    }))
}

fn receives(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let receiver = leaked(attached(member, words)?.accept(soon())?);
    Ok(Box::new(move || {
        drop(receiver.receive(Deadline::Never)?);
        Ok(())
    }))
}

fn receives_to_the_end(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let receiver = leaked(attached(member, words)?.accept(soon())?);
    drop(receiver.receive(soon())?);
    drop(receiver.receive(soon())?);
    Ok(Box::new(move || match receiver.receive(Deadline::Never) {
        Err(Error::EndOfStream(_)) => Ok(()),
        other => bail!("the end is {other:?}"),
    }))
}

/// The second end closes before it has received anything.
fn closes(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let receiver = attached(member, words)?.accept(soon())?;
    Ok(Box::new(move || Ok(receiver.close()?)))
}

fn destroys(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let endpoint = attached(member, words)?;
    Ok(Box::new(move || Ok(endpoint.destroy()?)))
}
