//! Records once: the facts of an RPC become metrics.
