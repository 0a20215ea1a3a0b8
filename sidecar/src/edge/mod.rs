//! What enters a pod and is no gRPC, but is understood all the same: HTTP/1, and the words in which an application is
//! told who has called it.

pub mod client_cert;
pub mod first_line;
pub mod http1;
