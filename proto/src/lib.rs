//! What both ends of a Portunus mesh must agree on, and nothing else: the ports, the user id and the names that the
//! webhook writes and the sidecar reads.

/// Where the pod's outbound connections are redirected to.
pub const OUTBOUND_PORT: u16 = 4140;
/// Where connections from the network are redirected to.
pub const INBOUND_PORT: u16 = 4143;
/// The admin port: `/live`, `/ready`, `/metrics` and, on loopback alone, `/config`, `/endpoints`, `/drain`.
pub const ADMIN_PORT: u16 = 4191;
/// The user id that the sidecar runs as; its own connections are exempt from the redirect.
pub const PROXY_UID: u32 = 2102;
