//! One execution of the registry, and what decides its places in the sorted sets.

use cc_executor_actors::client::ClientName;

use crate::backend::output_buffer::RetainedOutput;

/// One execution.
#[derive(Debug)]
pub struct RegistryEntry<T> {
    /// Unique over all entries, also over those with the same id.
    pub number: u64,
    /// The client that it belongs to. The name is shared between its entries.
    pub owner: ClientName,
    /// The value of the caller.
    pub value: T,
    pub(super) state: EntryState,
    /// Its output on disk.
    pub(super) stored: RetainedOutput,
    /// How long it is remembered after its end, in milliseconds.
    pub(super) retention_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryState {
    Live,
    Ended { since_ms: u64, output: RetainedOutput },
}

impl<T> RegistryEntry<T> {
    /// Whether it has ended and a consumer reads its output.
    pub fn is_followed(&self) -> bool {
        matches!(self.state, EntryState::Ended { output, .. } if output.is_followed())
    }

    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        match self.state {
            EntryState::Ended { since_ms, output } if !output.is_followed() => {
                since_ms.saturating_add(self.retention_ms) <= now_ms
            }
            _ => false,
        }
    }
}

/// What decides the places of an entry in the sorted sets.
pub(super) struct EntryKeys {
    pub(super) number: u64,
    pub(super) owner: ClientName,
    pub(super) state: EntryState,
    pub(super) stored: RetainedOutput,
    pub(super) retention_ms: u64,
}

impl EntryKeys {
    pub(super) fn of<T>(entry: &RegistryEntry<T>) -> EntryKeys {
        EntryKeys {
            number: entry.number,
            owner: entry.owner.clone(),
            state: entry.state,
            stored: entry.stored,
            retention_ms: entry.retention_ms,
        }
    }
}
