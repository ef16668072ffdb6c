//! What the daemon does for processes of other nodes: each has a proxy slot on this node, which holds its references and its
//! blocks, and is recovered like any other.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use dragon_protocol::{ObjectId, SlotId};

use super::{Member, Registry, not_allocated};
use crate::error::{Error, Result};
use crate::held::State;
use crate::object::ObjectEntry;
use crate::reference::Change;

impl Member {
    /// Takes a reference for the process of another node: recorded in its proxy slot. For the daemon only.
    ///
    /// # Errors
    /// When there is no such object (any more), or the slot's held table is full.
    pub fn hold_for(&self, slot: SlotId, id: ObjectId, adopt: bool) -> Result<()> {
        let mut proxies = self.proxies();
        let registry = proxies.entry(slot.index).or_default();
        let place = registry.place(self.control.slot(slot.index)?)?;
        let change = if adopt { Change::Adopt } else { Change::Take };
        if let Err(error) = self.control.change(slot, place, id, change) {
            registry.free.push(place);
            return Err(error);
        }
        registry.further.entry(id).or_default().push(place);
        Ok(())
    }

    /// Gives a reference of [`Member::hold_for`] back, as [`Member::detach_with`].
    ///
    /// # Errors
    /// When the slot has no such reference.
    pub fn give_for(
        &self,
        slot: SlotId,
        id: ObjectId,
        contents: impl FnOnce(&ObjectEntry),
    ) -> Result<()> {
        let mut proxies = self.proxies();
        let registry = proxies.entry(slot.index).or_default();
        let places = registry
            .further
            .get_mut(&id)
            .ok_or(Error::NoSuchObject(id))?;
        let place = places.pop().ok_or(Error::NoSuchObject(id))?;
        if places.is_empty() {
            registry.further.remove(&id);
        }
        drop(proxies);
        let outcome = self.control.change(slot, place, id, Change::Give);
        let disposed = match outcome {
            Ok(State::Last) => self.dispose(id, contents),
            other => other.map(drop),
        };
        self.control.held_entry(slot.index, place)?.clear();
        if let Some(registry) = self.proxies().get_mut(&slot.index) {
            registry.free.push(place);
        }
        self.tell_of_pool(id);
        disposed
    }

    /// Records a shared block for the process of another node, in its proxy slot: it is freed with the process. For the
    /// daemon only.
    ///
    /// # Errors
    /// When the slot's held table is full; the block stays the caller's then.
    pub fn hold_block_for(&self, slot: SlotId, address: u64) -> Result<()> {
        let mut proxies = self.proxies();
        let registry = proxies.entry(slot.index).or_default();
        let place = registry.place(self.control.slot(slot.index)?)?;
        self.control
            .held_entry(slot.index, place)?
            .set_block(address);
        registry.blocks.insert(address, place);
        Ok(())
    }

    /// Whether the slot has a reference to the object that [`Member::hold_for`] counted.
    #[must_use]
    pub fn holds_for(&self, slot: SlotId, id: ObjectId) -> bool {
        let proxies = self.proxies();
        let registry = proxies.get(&slot.index);
        registry.is_some_and(|registry| registry.further.contains_key(&id))
    }

    /// Whether [`Member::hold_block_for`] recorded the block for that slot, and it was not freed since.
    #[must_use]
    pub fn holds_block_for(&self, slot: SlotId, address: u64) -> bool {
        let proxies = self.proxies();
        let registry = proxies.get(&slot.index);
        registry.is_some_and(|registry| registry.blocks.contains_key(&address))
    }

    /// Frees a block of [`Member::hold_block_for`].
    ///
    /// # Errors
    /// When the slot has no such block.
    pub fn free_block_for(&self, slot: SlotId, address: u64) -> Result<()> {
        let place = {
            let mut proxies = self.proxies();
            let registry = proxies.get_mut(&slot.index);
            let place = registry.and_then(|registry| registry.blocks.remove(&address));
            place.ok_or_else(|| not_allocated(address))?
        };
        let freed = self.free(address);
        self.control.held_entry(slot.index, place)?.clear();
        if let Some(registry) = self.proxies().get_mut(&slot.index) {
            registry.free.push(place);
        }
        freed
    }

    /// Forgets what the daemon knows of a proxy slot whose process is gone. Its held table is recovered apart from that.
    pub fn forget_proxy(&self, slot: SlotId) {
        self.proxies().remove(&slot.index);
    }

    fn proxies(&self) -> MutexGuard<'_, HashMap<u32, Registry>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
