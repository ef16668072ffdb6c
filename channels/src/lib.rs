//! FIFO channels in pools and what is built on the same cells
