//! Names of the runtime, and the key-value store of a node.
//!
//! A name stands for an object of any node, or for bytes. Every process of the runtime sees it; it survives the loss of any
//! node as long as a majority lives. A look-up is one request to global services, which on other nodes is one message there
//! and one back. A name keeps no object alive: publish what [`Channel::export`] and its like return to have it live on
//! without its publisher.
//!
//! All names of a runtime together, with the bytes that they stand for and 64 bytes for each, take at most 30 MiB.
//!
//! The store is the node's own: no other node is asked, and none sees it.
//!
//! ```no_run
//! use dragon::names::{self, Lasts, Value};
//! use dragon::{Channel, ChannelOptions, Deadline};
//!
//! let inbox = Channel::create(&ChannelOptions::default())?;
//! names::publish("inbox", Value::Object(inbox.descriptor()), Lasts::WithPublisher)?;
//! // Elsewhere:
//! if let Value::Object(descriptor) = names::wait_for("inbox", Deadline::Never)? {
//!     Channel::attach(descriptor, false)?.send(b"hello", 0, Deadline::Never)?;
//! }
//! # Ok::<(), dragon::Error>(())
//! ```

use dragon_protocol::control::{ClientReply, ClientRequest};
pub use dragon_protocol::names::Lasts;
use dragon_protocol::names::{self as protocol, NameRequest, StoreRequest};
use dragon_protocol::{Code, Descriptor, ObjectId};
use dragon_shmem::Deadline;

use crate::error::{Error, Result};
use crate::objects::Channel;
use crate::session::{Session, unexpected};
use crate::{ChannelOptions, objects};

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An object.
    Object(Descriptor),
    /// Bytes, at most 64 KiB.
    Bytes(Vec<u8>),
}

/// Lets a name stand for something: for all processes of the runtime, from when this returns.
///
/// # Errors
/// [`Code::NameTaken`] when it stands for something already; [`Code::TooLarge`] for bytes beyond the limit;
/// [`Code::TableFull`] when there is no room for the name.
pub fn publish(name: &str, value: Value, lasts: Lasts) -> Result<()> {
    let session = Session::attach_or_start()?;
    let value = match value {
        Value::Bytes(bytes) => protocol::Value::Bytes(bytes),
        Value::Object(descriptor) if descriptor.runtime == session.runtime() => {
            protocol::Value::Object(descriptor.object, descriptor.user)
        }
        Value::Object(descriptor) => {
            return Err(Error::InvalidArgument(format!(
                "'{descriptor}' is of runtime {}, this process belongs to runtime {}",
                descriptor.runtime,
                session.runtime()
            )));
        }
    };
    let name = name.to_owned();
    ask(session, NameRequest::Publish { name, value, lasts }).map(drop)
}

/// What a name stands for.
///
/// # Errors
/// [`Code::NoSuchName`] when it stands for nothing.
pub fn look_up(name: &str) -> Result<Value> {
    found(name, Session::attach_or_start()?, None)?.ok_or_else(|| nothing(name))
}

/// Waits until a name stands for something.
///
/// # Errors
/// [`Code::Timeout`] when the deadline passes first ([`Code::NoSuchName`] for [`Deadline::Now`]); [`Code::Interrupted`] after
/// a signal.
pub fn wait_for(name: &str, deadline: Deadline) -> Result<Value> {
    let session = Session::attach_or_start()?;
    let forget = |channel| ClientRequest::Name(NameRequest::Forget(channel));
    wait(
        deadline,
        |wake| found(name, session, wake),
        forget,
        || nothing(name),
    )
}

/// Takes a name back; returns what it stood for. A reference that was published with it may be adopted now.
///
/// # Errors
/// [`Code::NoSuchName`] when it stands for nothing.
pub fn unpublish(name: &str) -> Result<Value> {
    let session = Session::attach_or_start()?;
    let value = ask(session, NameRequest::Unpublish(name.to_owned()))?;
    // Whoever asked again after a failure of global services may have taken it back with the first request.
    Ok(value.unwrap_or(Value::Bytes(Vec::new())))
}

/// The names that begin so, in order.
///
/// # Errors
/// When the runtime has ended.
pub fn list(begin: &str) -> Result<Vec<String>> {
    let request = ClientRequest::Name(NameRequest::List(begin.to_owned()));
    match Session::attach_or_start()?.request(&request)? {
        ClientReply::Keys(keys) => Ok(keys
            .into_iter()
            .map(|key| String::from_utf8_lossy(&key).into_owned())
            .collect()),
        other => Err(unexpected("names", &other)),
    }
}

/// The key-value store of this node: keys of up to 255 bytes, values of up to 64 KiB, together at most 64 MiB.
pub mod store {
    use super::{
        ClientReply, ClientRequest, Code, Deadline, Error, ObjectId, Result, Session, StoreRequest,
        protocol, unexpected, wait,
    };

    /// Puts a value in, in the place of another.
    ///
    /// # Errors
    /// When key, value or store would exceed their limits; the text names them.
    pub fn put(key: &[u8], value: &[u8]) -> Result<()> {
        ask(StoreRequest::Put(key.to_vec(), value.to_vec())).map(drop)
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// When the key exceeds its limit.
    pub fn get(key: &[u8]) -> Result<Option<Vec<u8>>> {
        let key = key.to_vec();
        ask(StoreRequest::Get { key, wake: None })
    }

    /// Waits until a key has a value.
    ///
    /// # Errors
    /// [`Code::Timeout`] when the deadline passes first ([`Code::NoSuchName`] for [`Deadline::Now`]);
    /// [`Code::Interrupted`] after a signal.
    pub fn wait_for(key: &[u8], deadline: Deadline) -> Result<Vec<u8>> {
        let found = |wake: Option<ObjectId>| {
            let key = key.to_vec();
            ask(StoreRequest::Get { key, wake })
        };
        let forget = |channel| ClientRequest::Store(StoreRequest::Forget(channel));
        wait(deadline, found, forget, || Error::Daemon {
            code: Code::NoSuchName,
            text: format!("the key '{}' has no value", key.escape_ascii()),
        })
    }

    /// Takes a key out; returns its value, if it had one.
    ///
    /// # Errors
    /// When the key exceeds its limit.
    pub fn delete(key: &[u8]) -> Result<Option<Vec<u8>>> {
        ask(StoreRequest::Delete(key.to_vec()))
    }

    /// Puts a value in (`None`: takes the key out) if the present one is `expected` (`None`: the key has none).
    ///
    /// # Errors
    /// [`Code::Changed`] when it is another.
    pub fn compare_and_set(
        key: &[u8],
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<()> {
        ask(StoreRequest::CompareAndSet {
            key: key.to_vec(),
            expected: expected.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec),
        })
        .map(drop)
    }

    /// The keys that begin so, in order.
    ///
    /// # Errors
    /// When the runtime has ended.
    pub fn list(begin: &[u8]) -> Result<Vec<Vec<u8>>> {
        let request = ClientRequest::Store(StoreRequest::List(begin.to_vec()));
        match Session::attach_or_start()?.request(&request)? {
            ClientReply::Keys(keys) => Ok(keys),
            other => Err(unexpected("keys", &other)),
        }
    }

    fn ask(request: StoreRequest) -> Result<Option<Vec<u8>>> {
        let session = Session::attach_or_start()?;
        match session.request(&ClientRequest::Store(request))? {
            ClientReply::Value(None) => Ok(None),
            ClientReply::Value(Some(protocol::Value::Bytes(bytes))) => Ok(Some(bytes)),
            other => Err(unexpected("a value", &other)),
        }
    }
}

fn ask(session: &Session, request: NameRequest) -> Result<Option<Value>> {
    match session.request(&ClientRequest::Name(request))? {
        ClientReply::Value(value) => Ok(value.map(|value| match value {
            protocol::Value::Bytes(bytes) => Value::Bytes(bytes),
            protocol::Value::Object(object, user) => Value::Object(Descriptor {
                runtime: session.runtime(),
                object,
                user,
            }),
        })),
        other => Err(unexpected("what a name stands for", &other)),
    }
}

fn found(name: &str, session: &Session, wake: Option<ObjectId>) -> Result<Option<Value>> {
    let name = name.to_owned();
    ask(session, NameRequest::LookUp { name, wake })
}

fn nothing(name: &str) -> Error {
    Error::Daemon {
        code: Code::NoSuchName,
        text: format!("nothing is published as '{name}'"),
    }
}

/// Asks until there is something: the daemon sends a message into a channel when it may be worth while to ask again.
fn wait<T>(
    deadline: Deadline,
    found: impl Fn(Option<ObjectId>) -> Result<Option<T>>,
    forget: impl Fn(ObjectId) -> ClientRequest,
    nothing: impl Fn() -> Error,
) -> Result<T> {
    if let Some(value) = found(None)? {
        return Ok(value);
    }
    if deadline == Deadline::Now {
        return Err(nothing());
    }
    let options = ChannelOptions {
        capacity: 4,
        block: 64,
        ..ChannelOptions::default()
    };
    let channel: objects::Channel = Channel::create(&options)?;
    let id = channel.descriptor().object;
    loop {
        let waited = match found(Some(id)) {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => channel.receive(deadline).map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = waited {
            // It goes with the channel otherwise.
            let _ = Session::attach()?.request(&forget(id));
            return Err(error);
        }
    }
}
