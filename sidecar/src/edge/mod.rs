//! Where the mesh meets what is not HTTP/2 between sidecars.

pub mod client_cert;
