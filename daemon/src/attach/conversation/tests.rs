use dragon_protocol::control::Spawned;
use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};
use dragon_shmem::local::Node;
use tokio::task::JoinHandle;

use super::*;
use crate::readable::end_of;

/// A client of a daemon whose loop is the test.
struct Rig {
    client: UnixStream,
    events: mpsc::Receiver<Event>,
    served: JoinHandle<Result<()>>,
}

impl Rig {
    fn new() -> Self {
        let (client, mut stream) = UnixStream::pair().unwrap();
        let (sender, events) = mpsc::channel(8);
        let slot = SlotId {
            index: 1,
            generation: 1,
        };
        let served = tokio::spawn(async move {
            let node = Node::with_limit(16 << 20).unwrap();
            let memory = Memory::new(node.control, node.pool);
            let death = end_of(std::process::id()).unwrap();
            serve(&mut stream, &death, Some(slot), &memory, &sender).await
        });
        Self {
            client,
            events,
            served,
        }
    }

    async fn ask(&mut self, number: u64, request: ClientRequest) {
        let mut bytes = Vec::new();
        frame::encode_request(&(number, request), &mut bytes).unwrap();
        self.client.write_all(&bytes).await.unwrap();
    }

    /// The next request, and where its answer goes.
    async fn asked(&mut self) -> (u64, oneshot::Sender<ClientReply>) {
        match self.events.recv().await.unwrap() {
            Event::Client { number, reply, .. } => (number, reply),
            other => panic!("{other:?}"),
        }
    }

    async fn hear(&mut self) -> Numbered<ClientReply> {
        let mut head = [0; 4];
        self.client.read_exact(&mut head).await.unwrap();
        let mut body = vec![0; frame::body_length(head).unwrap()];
        self.client.read_exact(&mut body).await.unwrap();
        frame::decode(&body).unwrap()
    }
}

fn started() -> ClientReply {
    let process = ObjectId {
        node: NodeIndex::FIRST,
        kind: ObjectKind::Process,
        index: 7,
        generation: 1,
    };
    ClientReply::Spawned(vec![Ok(Spawned { process, pid: 1 })])
}

#[tokio::test]
async fn a_request_that_waits_is_passed_by_others() {
    let mut rig = Rig::new();
    rig.ask(5, ClientRequest::Stats).await;
    rig.ask(6, ClientRequest::Nodes).await;
    let commit = ClientRequest::Commit { pool: 0, bytes: 1 };
    rig.ask(7, commit).await;
    let ((first, waits), (second, soon)) = (rig.asked().await, rig.asked().await);
    assert_eq!((first, second), (5, 6));
    assert_eq!(rig.hear().await.0, 7);
    soon.send(ClientReply::Done).unwrap();
    assert_eq!(rig.hear().await, (6, ClientReply::Done));
    rig.ask(0, ClientRequest::Cancel(5)).await;
    let cancelled = rig.events.recv().await.unwrap();
    assert!(matches!(cancelled, Event::Cancelled(_, 5)), "{cancelled:?}");
    waits.send(ClientReply::Trimmed(5)).unwrap();
    assert_eq!(rig.hear().await, (5, ClientReply::Trimmed(5)));
    rig.ask(0, ClientRequest::Leave).await;
    rig.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_the_client_did_not_get_goes_back() {
    let mut rig = Rig::new();
    rig.ask(1, ClientRequest::Spawn(Vec::new())).await;
    let (_, reply) = rig.asked().await;
    drop(rig.client);
    assert!(rig.served.await.unwrap().is_err());
    reply.send(started()).unwrap();
    let back = rig.events.recv().await.unwrap();
    assert!(
        matches!(&back, Event::Undelivered(reply, false) if *reply == started()),
        "{back:?}"
    );
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_a_refusal() {
    let mut rig = Rig::new();
    for number in [1, 2] {
        rig.ask(number, ClientRequest::Stats).await;
    }
    let ((_, long), (_, other)) = (rig.asked().await, rig.asked().await);
    let whole = ClientReply::Keys(vec![vec![7; frame::MAX_FRAME]]);
    long.send(whole.clone()).unwrap();
    let (1, ClientReply::Failed(code, text)) = rig.hear().await else {
        panic!("it was answered");
    };
    assert_eq!(code, Code::TooLarge);
    assert!(text.contains(&frame::MAX_FRAME.to_string()), "{text}");
    let back = rig.events.recv().await.unwrap();
    assert!(matches!(back, Event::Undelivered(reply, false) if reply == whole));
    other.send(ClientReply::Done).unwrap();
    assert_eq!(rig.hear().await, (2, ClientReply::Done));
}

#[tokio::test]
async fn a_request_that_is_too_long_to_be_passed_on_ends_the_connection() {
    let mut rig = Rig::new();
    let length = u32::try_from(frame::MAX_REQUEST + 1).unwrap();
    rig.client.write_all(&length.to_le_bytes()).await.unwrap();
    let (NO_REQUEST, ClientReply::Failed(code, text)) = rig.hear().await else {
        panic!("it was answered");
    };
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.contains(&frame::MAX_REQUEST.to_string()), "{text}");
    assert!(rig.served.await.unwrap().is_err());
}
