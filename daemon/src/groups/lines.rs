//! What is said to each neighbour arrives once and in order, also when connections end and others take their place.

use std::collections::{BTreeMap, VecDeque};

use dragon_protocol::NodeIndex;
use dragon_protocol::group::{GroupLetter, GroupMessage};

use super::Action;

/// So many messages are taken before that is said without a message to say it by.
const UNSAID: u32 = 8;

/// The neighbours that something was said to or heard of.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: BTreeMap<NodeIndex, Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// Number of the last letter to the neighbour.
    last: u64,
    /// Those that it has not confirmed.
    open: VecDeque<GroupLetter>,
    /// All of its letters up to this one have come.
    taken: u64,
    /// Those that came before others that are still on their way.
    early: BTreeMap<u64, (u64, GroupMessage)>,
    /// How many came since it was told last what was taken.
    unsaid: u32,
    /// It could not be reached: what was said then is lost.
    cut: bool,
}

impl Lines {
    /// A message to a neighbour, along the tree of a view.
    pub(super) fn tell(&mut self, to: NodeIndex, view: u64, message: GroupMessage) -> Action {
        let line = self.lines.entry(to).or_default();
        line.last += 1;
        line.unsaid = 0;
        let letter = GroupLetter {
            number: line.last,
            taken: line.taken,
            view,
            message: Some(message),
        };
        line.open.push_back(letter.clone());
        Action::Tell(to, letter)
    }

    /// Takes a letter: what there is to handle now, each with its view, and what is to be said at once.
    pub(super) fn take(
        &mut self,
        from: NodeIndex,
        letter: GroupLetter,
    ) -> (Vec<(u64, GroupMessage)>, Option<Action>) {
        let line = self.lines.entry(from).or_default();
        let confirmed = |open: &GroupLetter| open.number <= letter.taken;
        while line.open.front().is_some_and(confirmed) {
            line.open.pop_front();
        }
        let mut came = Vec::new();
        let Some(message) = letter.message else {
            return (came, None);
        };
        if letter.number > line.taken {
            line.early.insert(letter.number, (letter.view, message));
        }
        while let Some(next) = line.early.remove(&(line.taken + 1)) {
            line.taken += 1;
            came.push(next);
        }
        line.unsaid += 1;
        let confirm = (line.unsaid >= UNSAID).then(|| {
            line.unsaid = 0;
            let letter = GroupLetter {
                number: 0,
                taken: line.taken,
                view: 0,
                message: None,
            };
            Action::Tell(from, letter)
        });
        (came, confirm)
    }

    /// A connection with a neighbour has ended: all that it has not confirmed is said again.
    pub(super) fn again(&mut self, node: NodeIndex) -> Vec<Action> {
        let Some(line) = self.lines.get_mut(&node) else {
            return Vec::new();
        };
        let taken = line.taken;
        let open = line.open.iter().cloned();
        let again = open.map(|letter| Action::Tell(node, GroupLetter { taken, ..letter }));
        again.collect()
    }

    /// A neighbour could not be reached.
    pub(super) fn cut(&mut self, node: NodeIndex) {
        if let Some(line) = self.lines.get_mut(&node) {
            line.cut = true;
        }
    }

    /// A connection with a neighbour stands: what was said while it could not be reached is said again.
    pub(super) fn connected(&mut self, node: NodeIndex) -> Vec<Action> {
        let line = self.lines.get_mut(&node);
        match line.is_some_and(|line| std::mem::take(&mut line.cut)) {
            true => self.again(node),
            false => Vec::new(),
        }
    }

    /// A node is lost.
    pub(super) fn forget(&mut self, node: NodeIndex) {
        self.lines.remove(&node);
    }

    /// How many letters nobody has confirmed.
    #[cfg(test)]
    pub(super) fn unconfirmed(&self) -> usize {
        self.lines.values().map(|line| line.open.len()).sum()
    }
}
