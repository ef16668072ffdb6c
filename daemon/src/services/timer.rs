//! Something that the loop hears after a time, unless nobody waits for it any more.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Event;

/// An event to come. Dropped, it does not come, and nothing is left of it.
#[derive(Debug)]
pub(super) struct Timer(AbortHandle);

impl Timer {
    pub(super) fn new(events: &mpsc::Sender<Event>, time: Duration, event: Event) -> Self {
        let events = events.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let _ = events.send(event).await;
        });
        Self(task.abort_handle())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}
