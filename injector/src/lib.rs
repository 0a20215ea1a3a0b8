//! Puts into workloads what the mesh needs there: into pods, a sidecar; into sidecars, an identity, endpoints and rules.
//!
//! Its rooms come with the issues that need them; see `docs/architecture.md`.
