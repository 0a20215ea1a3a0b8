//! Picks an endpoint for a call.
