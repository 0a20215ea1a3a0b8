//! Who calls, and who is called, is proven in mTLS, or nothing is said: shown on whole sidecars.

#[cfg(test)]
#[path = "../../sidecar/src/tls/tests/authority.rs"]
mod authority;
mod behind;
mod certificates;
#[cfg(test)]
#[path = "../../sidecar/src/tls/tests/draft.rs"]
mod draft;
mod early;
mod ending;
mod ends;
mod floods;
mod hellos;
mod judges;
mod log;
mod modes;
#[cfg(test)]
#[path = "../../sidecar/src/tls/tests/plain.rs"]
mod plain;
mod scan;
mod server_first;
#[cfg(test)]
#[path = "../../sidecar/src/tls/tests/shapes.rs"]
mod shapes;
mod spoofs;
mod strange;
mod testssl;
mod tunnels;
mod updates;

use support::relay::{raw, world};

#[path = "../tunnels/wire.rs"]
#[allow(dead_code, reason = "a pair of this file's own has what those of the tunnels' have")]
mod wire;
