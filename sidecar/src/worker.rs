//! One thread and everything it owns.
