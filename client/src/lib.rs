//! The client core of a process
