//! The transport agent: the same call on every node
