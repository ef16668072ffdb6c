//! Mapped regions, pools, futex waits, slots and recovery
