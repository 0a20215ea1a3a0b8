//! The operator's door: live, ready, metrics, configuration, drain.
