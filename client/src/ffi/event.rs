//! Events.

use dragon_shmem::Deadline;

use super::function::{Out, functions, object};
use crate::sync::Event;

object! {
    Event event {
        attach: dragon_event_attach,
        close: dragon_event_close,
        descriptor: dragon_event_descriptor,
        export: dragon_event_export,
        destroy: dragon_event_destroy,
        set_wait_mode: dragon_event_set_wait_mode,
    }
}

functions! {
    fn dragon_event_create(user: u64, event: Out<*mut Event>) {
        event.give(Event::create(user)?);
        Ok(())
    }

    fn dragon_event_set(event: &Event) {
        event.set()
    }

    fn dragon_event_clear(event: &Event) {
        event.clear()
    }

    fn dragon_event_wait(event: &Event, timeout: Deadline) {
        event.wait(timeout)
    }

    fn dragon_event_is_set(event: &Event, set: Out<i32>) {
        set.put(event.is_set()?.into());
        Ok(())
    }
}
