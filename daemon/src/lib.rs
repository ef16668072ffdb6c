//! dragond and the dragon command
