//! Who calls, and who is called, is proven in mTLS, or nothing is said: shown on whole sidecars.

#[path = "../../sidecar/src/tls/tests/authority.rs"]
mod authority;
mod certificates;
mod ending;
mod ends;
mod log;
mod modes;
#[path = "../../sidecar/src/tls/tests/plain.rs"]
mod plain;
#[path = "../../sidecar/src/tls/tests/shapes.rs"]
mod shapes;
mod spoofs;

use support::relay::{raw, world};
