//! Everything two processes of a runtime must agree on as bytes
