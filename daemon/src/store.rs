//! The key-value store of a node: for its own processes, asked of no other node, gone with the runtime.

use std::collections::{BTreeMap, HashMap, HashSet};

use dragon_protocol::names::{COUNT_LIMIT, StoreRequest, check_key, check_value};
use dragon_protocol::{Code, ObjectId};

/// How many bytes keys and values may have together.
const BYTES_LIMIT: usize = 64 << 20;

/// The answer to a [`StoreRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAnswer {
    /// Done, with the value that there is or was.
    Value(Option<Vec<u8>>),
    /// Keys, in order.
    Keys(Vec<Vec<u8>>),
    /// Not done.
    Failed(Code, String),
}

/// The store.
#[derive(Debug, Default)]
pub struct Store {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
    waits: HashMap<Vec<u8>, HashSet<ObjectId>>,
}

impl Store {
    /// Does what is asked. Also returns the channels of those who waited for a key that is there now.
    pub fn handle(&mut self, request: StoreRequest) -> (StoreAnswer, Vec<ObjectId>) {
        match self.answer(request) {
            Ok(done) => done,
            Err((code, text)) => (StoreAnswer::Failed(code, text), Vec::new()),
        }
    }

    /// Nobody waits at a channel any more.
    pub fn forget(&mut self, channel: ObjectId) {
        self.waits.retain(|_, channels| {
            channels.remove(&channel);
            !channels.is_empty()
        });
    }

    fn answer(
        &mut self,
        request: StoreRequest,
    ) -> Result<(StoreAnswer, Vec<ObjectId>), (Code, String)> {
        let mut woken = Vec::new();
        let answer = match request {
            StoreRequest::Put(key, value) => {
                woken = self.put(key, Some(value))?;
                StoreAnswer::Value(None)
            }
            StoreRequest::Get { key, wake } => {
                checked(&key)?;
                let value = self.values.get(&key).cloned();
                if let Some(channel) = wake.filter(|_| value.is_none()) {
                    self.waits.entry(key).or_default().insert(channel);
                }
                StoreAnswer::Value(value)
            }
            StoreRequest::Forget(channel) => {
                self.forget(channel);
                StoreAnswer::Value(None)
            }
            StoreRequest::Delete(key) => {
                let value = self.values.get(&key).cloned();
                self.put(key, None)?;
                StoreAnswer::Value(value)
            }
            StoreRequest::List(begin) => {
                let keys = self.values.range(begin.clone()..).map(|(key, _)| key);
                let keys = keys.take_while(|key| key.starts_with(&begin));
                StoreAnswer::Keys(keys.cloned().collect())
            }
            StoreRequest::CompareAndSet {
                key,
                expected,
                value,
            } => {
                let present = self.values.get(&key);
                if present != expected.as_ref() {
                    let has = present.map_or("no value".to_owned(), |value| {
                        format!("another value, of {} bytes", value.len())
                    });
                    let text = format!("the key has {has}; get it, and try again");
                    return Err((Code::Changed, text));
                }
                woken = self.put(key, value)?;
                StoreAnswer::Value(None)
            }
            _ => {
                let text = "this release does not know the request".to_owned();
                return Err((Code::Unsupported, text));
            }
        };
        Ok((answer, woken))
    }

    /// Gives a key a value, or none. Returns who waited for it.
    fn put(
        &mut self,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    ) -> Result<Vec<ObjectId>, (Code, String)> {
        checked(&key)?;
        let before = self
            .values
            .get(&key)
            .map_or(0, |value| key.len() + value.len());
        let Some(value) = value else {
            self.values.remove(&key);
            self.bytes -= before;
            return Ok(Vec::new());
        };
        check_value(&value).map_err(|text| (Code::TooLarge, text))?;
        let bytes = self.bytes - before + key.len() + value.len();
        if bytes > BYTES_LIMIT || before == 0 && self.values.len() >= COUNT_LIMIT {
            let text = format!(
                "the store of the node would have {bytes} bytes under {} keys, the limits are {BYTES_LIMIT} and {COUNT_LIMIT}; delete keys that nobody needs",
                self.values.len() + usize::from(before == 0)
            );
            return Err((Code::TableFull, text));
        }
        self.bytes = bytes;
        let woken = self.waits.remove(&key).unwrap_or_default();
        self.values.insert(key, value);
        Ok(woken.into_iter().collect())
    }
}

fn checked(key: &[u8]) -> Result<(), (Code, String)> {
    check_key(key).map_err(|text| (Code::InvalidArgument, text))
}

#[cfg(test)]
mod tests {
    use dragon_protocol::names::VALUE_LIMIT;
    use dragon_protocol::{NodeIndex, ObjectKind};

    use super::*;

    fn channel(index: u32) -> ObjectId {
        ObjectId {
            node: NodeIndex::FIRST,
            kind: ObjectKind::Channel,
            index,
            generation: 1,
        }
    }

    fn bytes(text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }

    fn put(store: &mut Store, key: &str, value: &str) -> Vec<ObjectId> {
        let (answer, woken) = store.handle(StoreRequest::Put(bytes(key), bytes(value)));
        assert_eq!(answer, StoreAnswer::Value(None));
        woken
    }

    fn get(store: &mut Store, key: &str, wake: Option<ObjectId>) -> Option<Vec<u8>> {
        let request = StoreRequest::Get {
            key: bytes(key),
            wake,
        };
        match store.handle(request).0 {
            StoreAnswer::Value(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_are_put_got_listed_and_deleted() {
        let mut store = Store::default();
        put(&mut store, "a1", "one");
        put(&mut store, "b", "two");
        put(&mut store, "a2", "three");
        put(&mut store, "a1", "four");
        assert_eq!(get(&mut store, "a1", None), Some(bytes("four")));
        let (keys, _) = store.handle(StoreRequest::List(bytes("a")));
        assert_eq!(keys, StoreAnswer::Keys(vec![bytes("a1"), bytes("a2")]));
        let (was, _) = store.handle(StoreRequest::Delete(bytes("a1")));
        assert_eq!(was, StoreAnswer::Value(Some(bytes("four"))));
        assert_eq!(get(&mut store, "a1", None), None);
        store.handle(StoreRequest::Delete(bytes("a2")));
        store.handle(StoreRequest::Delete(bytes("b")));
        assert_eq!(store.bytes, 0);
    }

    #[test]
    fn who_waits_is_woken_once() {
        let mut store = Store::default();
        assert_eq!(get(&mut store, "k", Some(channel(1))), None);
        assert_eq!(get(&mut store, "k", Some(channel(2))), None);
        store.handle(StoreRequest::Forget(channel(2)));
        assert_eq!(put(&mut store, "k", "v"), [channel(1)]);
        assert_eq!(put(&mut store, "k", "v"), []);
    }

    #[test]
    fn a_value_is_only_replaced_when_it_is_the_expected_one() {
        let mut store = Store::default();
        let mut set = |expected: Option<&str>, value: Option<&str>| {
            let request = StoreRequest::CompareAndSet {
                key: bytes("k"),
                expected: expected.map(bytes),
                value: value.map(bytes),
            };
            match store.handle(request).0 {
                StoreAnswer::Failed(code, _) => code,
                _ => Code::Ok,
            }
        };
        assert_eq!(set(Some("x"), Some("a")), Code::Changed);
        assert_eq!(set(None, Some("a")), Code::Ok);
        assert_eq!(set(None, Some("b")), Code::Changed);
        assert_eq!(set(Some("a"), Some("b")), Code::Ok);
        assert_eq!(set(Some("b"), None), Code::Ok);
        assert_eq!(set(None, Some("c")), Code::Ok);
    }

    #[test]
    fn limits_are_named() {
        let mut store = Store::default();
        let failed = |(answer, _): (StoreAnswer, _)| match answer {
            StoreAnswer::Failed(code, text) => (code, text),
            other => panic!("{other:?}"),
        };
        let (code, text) = failed(store.handle(StoreRequest::Put(vec![0; 256], vec![])));
        assert!(code == Code::InvalidArgument && text.contains("256") && text.contains("255"));
        let long = vec![0; VALUE_LIMIT + 1];
        let (code, text) = failed(store.handle(StoreRequest::Put(vec![1], long)));
        assert!(code == Code::TooLarge && text.contains("65537") && text.contains("65536"));
        let count = BYTES_LIMIT / VALUE_LIMIT;
        for key in 0..count - 1 {
            let key = key.to_le_bytes().to_vec();
            let (answer, _) = store.handle(StoreRequest::Put(key, vec![0; VALUE_LIMIT]));
            assert_eq!(answer, StoreAnswer::Value(None));
        }
        let key = count.to_le_bytes().to_vec();
        let (code, text) = failed(store.handle(StoreRequest::Put(key, vec![0; VALUE_LIMIT])));
        assert!(
            code == Code::TableFull && text.contains("67108864"),
            "{text}"
        );
    }
}
