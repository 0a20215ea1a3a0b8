//! Takes a connection and learns where it was going.
