//! Frames that a thread sends together. While it works through what lies before it, it holds them: they queue on their links,
//! and leave in few calls to the network when it is through.

use std::cell::RefCell;
use std::sync::Arc;

use crate::fabric::{Frame, Link};

thread_local! {
    /// While this thread holds frames: the links that have some.
    static HELD: RefCell<Option<Vec<Arc<dyn Link>>>> = const { RefCell::new(None) };
}

/// From here on this thread holds what it submits, until [`send`].
pub(super) fn hold() {
    HELD.with_borrow_mut(|held| {
        held.get_or_insert_default();
    });
}

/// Sends what was held. To be called before the thread sleeps.
pub(super) fn send() {
    for link in HELD.take().into_iter().flatten() {
        link.flush();
    }
}

/// Gives a frame to a link: at once, or with others.
#[expect(
    clippy::result_large_err,
    reason = "the frame comes back to be sent again, and boxes cost every frame an allocation"
)]
pub(super) fn submit(link: &Arc<dyn Link>, frame: Frame) -> Result<(), Frame> {
    HELD.with_borrow_mut(|held| {
        let Some(links) = held else {
            return link.submit(frame);
        };
        link.queue(frame)?;
        if !links.iter().any(|other| other.id() == link.id()) {
            links.push(Arc::clone(link));
        }
        Ok(())
    })
}
