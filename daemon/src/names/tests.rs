use dragon_protocol::control::PeerMessage;
use dragon_protocol::names::{NAME_LIMIT, VALUE_LIMIT};
use dragon_protocol::{ObjectKind, SlotId, frame};

use super::*;

/// Names of a runtime of one node.
fn names() -> Names {
    Names::new(NodeIndex::FIRST, View::first(1))
}

/// The answer to a request, which there is at once.
fn ask(names: &mut Names, op: NameOp) -> Outcome {
    let request = names.ask(op, None, true);
    let mut outputs = names.take().into_iter();
    let answer = outputs.find_map(|output| match output {
        Output::Answer(number, outcome) if number == request => Some(outcome),
        _ => None,
    });
    answer.unwrap()
}

fn publish(names: &mut Names, name: &str, bytes: usize) -> Outcome {
    let value = Value::Bytes(vec![7; bytes]);
    ask(names, NameOp::Publish(name.to_owned(), value, None))
}

#[test]
fn all_names_together_have_a_limit_and_fit_into_each_message() {
    let mut names = names();
    let mut count = 0;
    let refusal = loop {
        match publish(&mut names, &format!("name {count}"), VALUE_LIMIT) {
            Outcome::Done(None) => count += 1,
            Outcome::Failed(code, text) => break (code, text),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal.0, Code::TableFull);
    assert!(
        refusal.1.contains(&NAMES_LIMIT.to_string()),
        "{}",
        refusal.1
    );
    assert!(count > 400, "{count}");
    // Small ones find room until it is full; the longest message there is fits into a frame.
    let mut small = 0;
    while publish(&mut names, &format!("small {small}"), 0) == Outcome::Done(None) {
        small += 1;
    }
    let (version, entries) = (names.version, names.entries());
    let told = NameMessage::Told(9, Some((version, entries.clone())), entries);
    frame::encode(&PeerMessage::Name(told), &mut Vec::new()).unwrap();
    // What is taken back leaves room for another.
    let op = NameOp::Unpublish("name 0".to_owned(), None);
    assert!(matches!(ask(&mut names, op), Outcome::Done(Some(_))));
    assert_eq!(
        publish(&mut names, "another", VALUE_LIMIT),
        Outcome::Done(None)
    );
    let cost: usize = names
        .table
        .iter()
        .map(|(name, entry)| entry.cost(name))
        .sum();
    assert_eq!(names.cost, cost);
}

#[test]
fn a_name_takes_no_more_of_a_message_than_is_counted() {
    let most = NodeIndex::new(NodeIndex::MAX).unwrap();
    let object = ObjectId {
        node: most,
        kind: ObjectKind::Process,
        index: u32::MAX,
        generation: u32::MAX,
    };
    let values = [
        Value::Object(object, u64::MAX),
        Value::Bytes(vec![1; VALUE_LIMIT]),
    ];
    for value in values {
        let entry = Entry {
            value,
            origin: (most, u64::MAX),
            publisher: Some(SlotId {
                index: u32::MAX,
                generation: u32::MAX,
            }),
        };
        let name = "n".repeat(NAME_LIMIT);
        let cost = entry.cost(&name);
        let mut bytes = Vec::new();
        frame::encode(&(name, entry), &mut bytes).unwrap();
        assert!(bytes.len() - 4 <= cost, "{} {cost}", bytes.len());
    }
}
