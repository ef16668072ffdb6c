//! Tests of whole operations: by threads, and by processes that are killed in the middle of them.

mod death;
mod operations;

use crate::fixture::Role;

/// What a child process does.
pub(crate) fn play(name: &str, role: &Role) {
    death::play(name, role);
}
