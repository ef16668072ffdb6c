//! Names and the node's key-value store, as clients ask for them.

use std::collections::HashMap;

use dragon_protocol::control::{ClientReply, PeerMessage};
use dragon_protocol::names::{
    Lasts, NameMessage, NameOp, NameRequest, Outcome, StoreRequest, Value, check_name, check_value,
};
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId};
use tokio::sync::oneshot;

use super::Daemon;
use crate::names::Output;
use crate::store::{Store, StoreAnswer};

/// Clients who wait, and the store.
#[derive(Default)]
pub(super) struct NameClients {
    /// By the number of their request to global services.
    asked: HashMap<u64, oneshot::Sender<ClientReply>>,
    /// Channels on which a client waits for a name or a key.
    waits: HashMap<ObjectId, SlotId>,
    store: Store,
}

impl Daemon {
    /// A daemon says something about names.
    pub(super) fn name_says(&mut self, node: NodeIndex, message: NameMessage) {
        let answers = self.cluster.answers();
        self.names.says(node, message, answers);
        self.names_act();
    }

    /// A client asks something about names.
    pub(super) fn name_request(
        &mut self,
        slot: Option<SlotId>,
        request: NameRequest,
        reply: oneshot::Sender<ClientReply>,
    ) {
        let refuse = |reply: oneshot::Sender<ClientReply>, code, text: String| {
            // The client may be gone.
            drop(reply.send(ClientReply::Failed(code, text)));
        };
        let (op, wake) = match (request, slot) {
            (NameRequest::Forget(channel), _) => {
                self.names.forget(channel);
                self.name_clients.waits.remove(&channel);
                return drop(reply.send(ClientReply::Done));
            }
            (NameRequest::LookUp { name, wake }, slot) => {
                let wake = wake
                    .filter(|channel| channel.node == self.job.node)
                    .zip(slot);
                if let Some((channel, slot)) = wake {
                    self.name_clients.waits.insert(channel, slot);
                }
                let wake = wake.map(|(channel, _)| channel);
                (NameOp::LookUp(name, wake.is_some()), wake)
            }
            (NameRequest::List(begin), _) => (NameOp::List(begin), None),
            (_, None) => {
                let why = "only an attached process can publish names and take them back";
                return refuse(reply, Code::Refused, why.to_owned());
            }
            (NameRequest::Publish { name, value, lasts }, Some(slot)) => {
                let publisher = (lasts == Lasts::WithPublisher).then_some(slot);
                (NameOp::Publish(name, value, publisher), None)
            }
            (NameRequest::Unpublish(name), Some(_)) => (NameOp::Unpublish(name, None), None),
            _ => {
                let why = "this release does not know the request";
                return refuse(reply, Code::Unsupported, why.to_owned());
            }
        };
        if let Err((code, text)) = check(&op) {
            return refuse(reply, code, text);
        }
        let request = self.names.ask(op, wake, self.cluster.answers());
        self.name_clients.asked.insert(request, reply);
        self.names_act();
    }

    /// Does what the names want done.
    pub(super) fn names_act(&mut self) {
        self.names.flush(self.cluster.answers());
        for output in self.names.take() {
            match output {
                Output::Send(to, message) => self.tell(to, PeerMessage::Name(message)),
                Output::Answer(request, outcome) => {
                    if let Some(reply) = self.name_clients.asked.remove(&request) {
                        // The client may be gone.
                        drop(reply.send(reply_of(outcome)));
                    }
                }
                Output::Wake(channel) => self.wake(channel),
            }
        }
    }

    fn wake(&mut self, channel: ObjectId) {
        if self.name_clients.waits.remove(&channel).is_some() {
            self.node.notify(channel, &[1]);
        }
    }

    /// A client asks something of the node's store.
    pub(super) fn store_request(
        &mut self,
        slot: Option<SlotId>,
        request: StoreRequest,
    ) -> ClientReply {
        let Some(slot) = slot else {
            let why = "only an attached process can use the store of its node";
            return ClientReply::Failed(Code::Refused, why.to_owned());
        };
        let wake = match &request {
            StoreRequest::Get { wake, .. } => *wake,
            StoreRequest::Forget(channel) => {
                self.name_clients.waits.remove(channel);
                None
            }
            _ => None,
        };
        let (answer, woken) = self.name_clients.store.handle(request);
        // Whoever got the value waits no longer.
        if let (Some(channel), StoreAnswer::Value(None)) = (wake, &answer) {
            self.name_clients.waits.insert(channel, slot);
        }
        for channel in woken {
            self.wake(channel);
        }
        match answer {
            StoreAnswer::Value(value) => ClientReply::Value(value.map(Value::Bytes)),
            StoreAnswer::Keys(keys) => ClientReply::Keys(keys),
            StoreAnswer::Failed(code, text) => ClientReply::Failed(code, text),
        }
    }

    /// A slot is nobody's any more: its names that last with it go, and nobody waits.
    pub(super) fn names_without(&mut self, slot: SlotId) {
        let waits = self.name_clients.waits.extract_if(|_, of| *of == slot);
        for (channel, _) in waits.collect::<Vec<_>>() {
            self.names.forget(channel);
            self.name_clients.store.forget(channel);
        }
        self.names.slot_gone(slot, self.cluster.answers());
        self.names_act();
    }
}

fn check(op: &NameOp) -> Result<(), (Code, String)> {
    let (NameOp::Publish(name, ..) | NameOp::LookUp(name, _) | NameOp::Unpublish(name, _)) = op
    else {
        return Ok(());
    };
    check_name(name).map_err(|text| (Code::InvalidArgument, text))?;
    match op {
        NameOp::Publish(_, Value::Bytes(bytes), _) => {
            check_value(bytes).map_err(|text| (Code::TooLarge, text))
        }
        _ => Ok(()),
    }
}

fn reply_of(outcome: Outcome) -> ClientReply {
    match outcome {
        Outcome::Done(value) => ClientReply::Value(value),
        Outcome::Names(names) => {
            ClientReply::Keys(names.into_iter().map(String::into_bytes).collect())
        }
        Outcome::Failed(code, text) => ClientReply::Failed(code, text),
    }
}
