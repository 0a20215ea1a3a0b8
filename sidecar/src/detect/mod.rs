//! Peeks at the first bytes: HTTP/2, HTTP/1, somebody's TLS, or anything else.
