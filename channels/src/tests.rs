//! Tests of whole operations: by threads, and by processes that are killed in the middle of them.

#![expect(
    clippy::unwrap_used,
    reason = "part of the tests, outside their functions"
)]

mod channels;
mod death;
mod growth;
mod idle;
mod memory;
mod objects;
mod operations;
mod pools;
mod pumps;
mod references;
mod sets;
mod stream_ends;
mod streams;
mod untaken;
mod waiting;

use crate::fixture::Role;

/// What a child process does.
pub(crate) fn play(name: &str, role: &Role) {
    match name {
        "references" => references::play(role),
        other
            if growth::play(other, role)
                || idle::play(other, role)
                || memory::play(other, role) => {}
        other
            if sets::play(other, role)
                || objects::play(other, role)
                || streams::play(other, role) => {}
        other => death::play(other, role),
    }
}
