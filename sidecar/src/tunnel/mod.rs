//! Carries bytes that are not HTTP/2: opaque TCP, HTTP/1, foreign TLS.
