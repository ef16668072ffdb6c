//! Requests of a client and their answers: any number are under way, and each is answered when it can be.
//!
//! Requests reach the loop in the order in which the client sent them. One that waits keeps no other waiting: the answers go
//! out as they come. What cannot be given to the client any more goes back to the loop, which knows what was handed over
//! with it ([`Event::Undelivered`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Result, bail};
use dragon_protocol::control::{ClientReply, ClientRequest, NO_REQUEST, Numbered};
use dragon_protocol::frame::{self, FrameError};
use dragon_protocol::group::GroupRequest;
use dragon_protocol::inspect::{LogFilter, Scope};
use dragon_protocol::{Code, SlotId};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::send_with_fds;
use crate::memory::Memory;
use crate::services::{Event, Followed};

/// As many requests of one client may be under way; the next one is read when there is an answer. Threads of a process wait
/// for one answer each.
const UNDER_WAY: usize = 1 << 14;

/// An answer on its way to the client.
struct Answer {
    number: u64,
    reply: ClientReply,
    descriptors: Vec<OwnedFd>,
    /// What the loop makes of it when the client does not get it.
    made_group: bool,
    /// Its place among those under way.
    _place: Option<OwnedSemaphorePermit>,
}

/// Why nothing more is read.
enum Last {
    /// The client has left, or is gone.
    Left,
    /// It wants lines of logs from now on, and nothing else.
    Follows(u64, LogFilter, Scope),
}

/// Answers a client until it leaves or is gone.
pub(super) async fn serve(
    stream: &mut UnixStream,
    death: &AsyncFd<OwnedFd>,
    slot: Option<SlotId>,
    memory: &Memory,
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    let (answers, mut outbox) = mpsc::unbounded_channel();
    let requests = Requests {
        slot,
        memory,
        events,
        answers,
        places: Arc::new(Semaphore::new(UNDER_WAY)),
    };
    let mut on_its_way = None;
    let (read, write) = stream.split();
    let last = tokio::select! {
        last = requests.take(read) => last,
        given = give(write, &mut outbox, &mut on_its_way, events) => given.map(|()| Last::Left),
        // It waits for nothing any more: what it held must not wait for its answers.
        died = death.readable() => died.map(|_| Last::Left).map_err(Into::into),
    };
    // Those that come later find it closed.
    outbox.close();
    let in_part = on_its_way.is_some();
    let kept = std::iter::from_fn(|| outbox.try_recv().ok());
    for answer in on_its_way.into_iter().chain(kept) {
        answer.goes_back(events).await;
    }
    match last? {
        Last::Left => Ok(()),
        Last::Follows(..) if in_part => bail!("asked for logs while other requests were under way"),
        Last::Follows(number, filter, scope) => {
            follow_logs(stream, death, number, (filter, scope), events).await
        }
    }
}

/// The requests of a client.
struct Requests<'a> {
    slot: Option<SlotId>,
    memory: &'a Memory,
    events: &'a mpsc::Sender<Event>,
    answers: mpsc::UnboundedSender<Answer>,
    places: Arc<Semaphore>,
}

impl Requests<'_> {
    /// Takes requests until there are no more.
    async fn take(&self, mut stream: ReadHalf<'_>) -> Result<Last> {
        loop {
            let (number, request) = match read_request(&mut stream).await {
                Ok(request) => request,
                Err(error) => {
                    // Where the next request would begin is not known. Who is gone hears nothing.
                    if let Some(error) = error.downcast_ref::<FrameError>() {
                        let text = format!("{error}: it is no request; the connection ends here");
                        let reply = ClientReply::Failed(Code::InvalidArgument, text);
                        self.answer(NO_REQUEST, None, (reply, Vec::new()));
                        // What is written last ends the connection.
                        std::future::pending::<()>().await;
                    }
                    return Err(error);
                }
            };
            match request {
                ClientRequest::Leave => return Ok(Last::Left),
                ClientRequest::FollowLogs(filter, scope) => {
                    return Ok(Last::Follows(number, filter, scope));
                }
                ClientRequest::Cancel(asked) => {
                    if let Some(slot) = self.slot {
                        self.events.send(Event::Cancelled(slot, asked)).await?;
                    }
                }
                request => {
                    let place = self.places.clone().acquire_owned().await?;
                    self.begin(number, place, request).await?;
                }
            }
        }
    }

    /// Has a request answered, at once or later.
    async fn begin(
        &self,
        number: u64,
        place: OwnedSemaphorePermit,
        request: ClientRequest,
    ) -> Result<()> {
        if Memory::takes_long(&request) {
            let (memory, slot, answers) = (self.memory.clone(), self.slot, self.answers.clone());
            tokio::spawn(async move {
                if let Ok(answer) = memory.answer(slot, request).await {
                    // Of pools that a process made and did not get its slot's end knows.
                    let _ = answers.send(Answer::new(number, Some(place), answer));
                }
            });
            return Ok(());
        }
        let request = match self.memory.answer(self.slot, request).await {
            Ok(answer) => {
                self.answer(number, Some(place), answer);
                return Ok(());
            }
            Err(request) => request,
        };
        let made_group = matches!(request, ClientRequest::Group(GroupRequest::Start(..)));
        let (reply, answer) = oneshot::channel();
        let asked = Event::Client {
            slot: self.slot,
            number,
            request,
            reply,
        };
        self.events.send(asked).await?;
        let (answers, events) = (self.answers.clone(), self.events.clone());
        tokio::spawn(async move {
            let ending =
                |_| ClientReply::Failed(Code::RuntimeGone, "the runtime is ending".to_owned());
            let reply = answer.await.unwrap_or_else(ending);
            let answer = Answer {
                made_group,
                ..Answer::new(number, Some(place), (reply, Vec::new()))
            };
            if let Err(unsent) = answers.send(answer) {
                unsent.0.goes_back(&events).await;
            }
        });
        Ok(())
    }

    fn answer(
        &self,
        number: u64,
        place: Option<OwnedSemaphorePermit>,
        answer: (ClientReply, Vec<OwnedFd>),
    ) {
        // Both ends are this client's: they go together.
        let _ = self.answers.send(Answer::new(number, place, answer));
    }
}

impl Answer {
    fn new(
        number: u64,
        place: Option<OwnedSemaphorePermit>,
        (reply, descriptors): (ClientReply, Vec<OwnedFd>),
    ) -> Self {
        Self {
            number,
            reply,
            descriptors,
            made_group: false,
            _place: place,
        }
    }

    /// The client does not get it.
    async fn goes_back(self, events: &mpsc::Sender<Event>) {
        let _ = events
            .send(Event::Undelivered(self.reply, self.made_group))
            .await;
    }
}

/// Gives the client its answers. What is on its way stays in `on_its_way` until all of it is written.
async fn give(
    mut stream: WriteHalf<'_>,
    outbox: &mut mpsc::UnboundedReceiver<Answer>,
    on_its_way: &mut Option<Answer>,
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    while let Some(answer) = outbox.recv().await {
        let answer = on_its_way.insert(answer);
        let mut bytes = Vec::new();
        if let Err(error) = frame::encode(&(answer.number, &answer.reply), &mut bytes) {
            let text = format!("the answer is too large: {error}; ask for less at once");
            let instead = ClientReply::Failed(Code::TooLarge, text);
            let whole = std::mem::replace(&mut answer.reply, instead);
            let undelivered = Event::Undelivered(whole, answer.made_group);
            events.send(undelivered).await?;
            frame::encode(&(answer.number, &answer.reply), &mut bytes)?;
        }
        let fds: Vec<BorrowedFd<'_>> = answer.descriptors.iter().map(AsFd::as_fd).collect();
        let sent = send_with_fds(stream.as_ref(), &bytes, &fds).await?;
        stream.write_all(&bytes[sent..]).await?;
        if on_its_way
            .take_if(|given| given.number == NO_REQUEST)
            .is_some()
        {
            bail!("said what is no request");
        }
        *on_its_way = None;
    }
    Ok(())
}

async fn read_request(stream: &mut ReadHalf<'_>) -> Result<Numbered<ClientRequest>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; frame::request_length(head)?];
    stream.read_exact(&mut body).await?;
    Ok(frame::decode(&body)?)
}

/// Pushes lines of logs to a client until it closes the connection.
async fn follow_logs(
    stream: &mut UnixStream,
    death: &AsyncFd<OwnedFd>,
    asked: u64,
    (filter, scope): (LogFilter, Scope),
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    let (client, mut batches) = mpsc::channel(1);
    let (number, begun) = oneshot::channel();
    let begin = Followed::Begin {
        filter,
        scope,
        client,
        number,
    };
    events.send(Event::Followed(begin)).await?;
    let number = begun.await?;
    let pushed = async {
        let mut said = [0; 1];
        loop {
            tokio::select! {
                batch = batches.recv() => {
                    let Some(batch) = batch else { return Ok(()) };
                    let mut bytes = Vec::new();
                    frame::encode(&(asked, batch), &mut bytes)?;
                    stream.write_all(&bytes).await?;
                    events.send(Event::Followed(Followed::Taken(number))).await?;
                }
                // Whoever follows says nothing more: this is the end.
                read = stream.read(&mut said) => return read.map(drop).map_err(Into::into),
                died = death.readable() => return died.map(drop).map_err(Into::into),
            }
        }
    };
    let ended = pushed.await;
    let _ = events.send(Event::Followed(Followed::Gone(number))).await;
    ended
}

#[cfg(test)]
mod tests;
