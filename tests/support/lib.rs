//! A small vocabulary for tests on real components: pods, programs in them, sidecars, a DNS server, peers.
//!
//! ```no_run
//! use support::{Mesh, Peer, Stack};
//!
//! support::test(|mesh| {
//!     let dns = mesh.dns()?;
//!     let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
//!     let _sidecars = (client.sidecar()?, server.sidecar()?);
//!     dns.set("server.test", &server.addresses(), 5)?;
//!     let _app = Peer::start(&server, Stack::Python, 10000)?;
//!     support::interop::run(&client, Stack::Tonic, "server.test:10000", &["empty_unary", "large_unary"])
//! });
//! ```
//!
//! A pod is a network namespace on a bridge of its own mesh: nothing of it appears in the machine's own network, and
//! two meshes with the same addresses do not know of each other. Whatever a test starts ends when its handle drops.

pub mod anybody;
pub mod build;
pub mod cache;
pub mod capture;
pub mod conformance;
pub mod control;
pub mod crowd;
pub mod distance;
pub mod dns;
pub mod http;
pub mod interop;
pub mod interrupt;
pub mod jaeger;
pub mod members;
pub mod mesh;
pub mod metrics;
pub mod needs;
pub mod netns;
pub mod nghttpd;
pub mod pauses;
pub mod peer;
pub mod pki;
pub mod place;
pub mod pod;
pub mod program;
pub mod relay;
pub mod sidecar;
pub mod tools;
pub mod traffic;
pub mod unread;
pub mod wait;
pub mod way_in;

pub use anybody::Anybody;
pub use capture::Capture;
pub use conformance::Conformance;
pub use control::{Control, Member, Token};
pub use crowd::crowd;
pub use distance::Distance;
pub use dns::Dns;
pub use jaeger::Jaeger;
pub use members::Members;
pub use mesh::{Mesh, test};
pub use metrics::Metrics;
pub use netns::in_netns;
pub use pauses::Pauses;
pub use peer::{Peer, Stack};
pub use place::Place;
pub use pod::{Family, PATH, Pod, User, lent};
pub use program::Program;
pub use sidecar::Sidecar;
pub use wait::wait_until;
pub use way_in::WayIn;
