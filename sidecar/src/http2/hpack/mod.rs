//! HPACK (RFC 7541) over interned fields.
