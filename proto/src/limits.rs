//! How much control may say, and a sidecar takes: one sets it, the other refuses what is more, so both must mean the same.

use std::net::IpAddr;

/// The most endpoints of one port of a service.
pub const MOST_ENDPOINTS: usize = 10_000;
/// The most addresses of a service's own.
pub const MOST_ADDRESSES: usize = 64;
/// The most ports of a workload with a mode, or a protocol, of their own.
pub const MOST_PORTS: usize = 1_000;
/// The most roots of a trust bundle.
pub const MOST_ROOTS: usize = 32;
/// The most certificates of a chain, the leaf among them.
pub const MOST_CHAIN: usize = 8;
/// The most issuers that a peer may show beside its own certificate. Honest ones have one or two.
pub const MOST_ISSUERS: usize = 8;
/// The most of these that may have one name. Whoever builds a path tries each of them at each step: eight that lead to one
/// another are 30,000 paths, and a fifth of a second for 4 KB. Honest ones have one, or an old one beside a new one.
pub const MOST_NAMESAKES: usize = 2;
/// The longest certificate, in bytes.
pub const LONGEST_CERTIFICATE: usize = 16 << 10;
/// The longest name of DNS, in bytes (RFC 1035, 2.3.4).
pub const LONGEST_HOST: usize = 253;

/// Whether a workload can be called at this address, which is canonical (no IPv4 address that is mapped into IPv6).
pub fn can_be_called(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}
