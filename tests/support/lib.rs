//! A small vocabulary for tests on real components.
