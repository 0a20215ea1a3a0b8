//! One RPC: two stream ends, and what happens between them.
