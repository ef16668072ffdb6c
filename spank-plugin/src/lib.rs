//! The SPANK plugin: registers --dragon and swaps argv[0]
