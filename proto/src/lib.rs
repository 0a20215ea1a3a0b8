//! What both ends of a Portunus mesh must agree on, and nothing else: the ports, the user id, the names of identities,
//! the words for a port's protocol, what proves an identity, the form of join tokens, how keys are exchanged, the protocol
//! between sidecars and control, and how much may be said in it.

mod declared;
mod exchanges;
pub mod limits;
mod spiffe;
pub mod svid;
pub mod token;

pub use declared::{Declared, PROTOCOLS, UnknownProtocol};
pub use exchanges::key_exchanges;
pub use spiffe::{Invalid, SpiffeId, TrustDomain};

/// The protocol between sidecars and control, generated from `proto/mesh`.
#[allow(missing_docs, clippy::all)]
pub mod mesh {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("portunus.mesh.v1");
    }
}

/// Where the pod's outbound connections are redirected to.
pub const OUTBOUND_PORT: u16 = 4140;
/// Where connections from the network are redirected to.
pub const INBOUND_PORT: u16 = 4143;
/// The admin port: `/live`, `/ready`, `/metrics` and, on loopback alone, `/config`, `/endpoints`, `/drain`.
pub const ADMIN_PORT: u16 = 4191;
/// The namespace of control's own SPIFFE id, if control is not told another.
pub const CONTROL_NAMESPACE: &str = "portunus";
/// The service account of control's own SPIFFE id: no workload of that namespace may have it.
pub const CONTROL_ACCOUNT: &str = "control";
/// Where control serves sidecars, in mTLS.
pub const CONTROL_PORT: u16 = 8080;
/// Control's admin port.
pub const CONTROL_ADMIN_PORT: u16 = 9995;
/// The user id that the sidecar runs as; its own connections are exempt from the redirect.
pub const PROXY_UID: u32 = 2102;
/// The ALPN protocol of calls between sidecars: HTTP/2 inside the mesh's TLS.
pub const ALPN_H2: &[u8] = b"portunus/h2";
/// The ALPN protocol of anything else between sidecars: bytes inside the mesh's TLS.
pub const ALPN_TCP: &[u8] = b"portunus/tcp";
