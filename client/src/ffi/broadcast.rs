//! Broadcasts.

use std::ffi::c_void;

use dragon_channels::{BroadcastOptions, Trigger};
use dragon_shmem::Deadline;

use super::channel::DragonMessage;
use super::function::{Out, Wanted, functions, object};
use super::{check_size, many, or_default};
use crate::error::Result;
use crate::sync::Broadcast;

/// `dragon_broadcast_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonBroadcastOptions {
    /// Bytes of this structure, as the caller knows it.
    pub size: usize,
    /// A number of the caller's choice.
    pub user: u64,
    /// How many can wait at once; 0: the default.
    pub waiters: u32,
    /// Bytes of a payload that lies in the broadcast itself; 0: the default.
    pub inline_bytes: u32,
    /// Payloads on their way at once; 0: the default.
    pub payloads: u32,
    /// 0.
    pub reserved: u32,
}

impl DragonBroadcastOptions {
    fn read(&self) -> Result<BroadcastOptions> {
        check_size::<Self>("dragon_broadcast_options", self.size)?;
        let default = BroadcastOptions::default();
        Ok(BroadcastOptions {
            waiters: or_default(self.waiters, default.waiters),
            inline: or_default(self.inline_bytes, default.inline),
            payloads: or_default(self.payloads, default.payloads),
            user: self.user,
        })
    }
}

object! {
    Broadcast broadcast {
        attach: dragon_broadcast_attach,
        close: dragon_broadcast_close,
        descriptor: dragon_broadcast_descriptor,
        export: dragon_broadcast_export,
        destroy: dragon_broadcast_destroy,
        set_wait_mode: dragon_broadcast_set_wait_mode,
    }
}

functions! {
    fn dragon_broadcast_create(options: Option<&DragonBroadcastOptions>, broadcast: Out<*mut Broadcast>) {
        let options = options.map(DragonBroadcastOptions::read).transpose()?;
        broadcast.give(Broadcast::create(&options.unwrap_or_default())?);
        Ok(())
    }

    fn dragon_broadcast_wait(broadcast: &Broadcast, timeout: Deadline, message: Out<DragonMessage>) {
        let (broadcast, session) = broadcast.below()?;
        DragonMessage::show(broadcast.wait(timeout), session, message)
    }

    fn dragon_broadcast_trigger(
        broadcast: &Broadcast,
        count: u32,
        after: u32,
        payload: *const c_void,
        length: usize,
        timeout: Deadline,
        woken: Wanted<u32>,
    ) {
        // SAFETY: the caller's promise.
        let payload = unsafe { many(payload.cast::<u8>(), length, "payload") }?;
        let trigger = Trigger::some(count).after(after);
        woken.put(broadcast.trigger(trigger, payload, timeout)?);
        Ok(())
    }

    fn dragon_broadcast_waiting(broadcast: &Broadcast, waiting: Out<u32>) {
        waiting.put(broadcast.waiting()?);
        Ok(())
    }
}
