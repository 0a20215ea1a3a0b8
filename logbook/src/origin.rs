//! Addresses as strangers have them: who is counted as one.

use std::net::{IpAddr, Ipv6Addr};

/// Whom an address is counted for: itself if it is of IPv4, also where it is written as one of IPv6. A host of IPv6 has a
/// whole network of 2⁶⁴ addresses: it is counted as its /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_whichever_of_its_addresses_it_comes_from() {
        for (address, network_of_it) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("fd00::1", "fd00::"),
            ("fd00:0:0:1:ffff::1", "fd00:0:0:1::"),
        ] {
            let [address, expected] = [address, network_of_it].map(|text| text.parse().expect("an address"));
            assert_eq!(network(address), expected);
        }
    }
}
