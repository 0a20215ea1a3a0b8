//! Destinations that are left alone, as an operator writes them: `10.0.0.0/8,fd00::/8,192.0.2.7`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The subnet of these leading bits of the address; the others are cleared. `None` where the address has no so
    /// many bits.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask_v4(prefix))),
            IpAddr::V6(v6) if prefix <= 128 => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask_v6(prefix))),
            _ => return None,
        };
        Some(Subnet { address, prefix })
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits all addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the subnet is a single address.
    pub fn is_single(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether the address is one of the subnet's.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => ours.to_bits() == other.to_bits() & mask_v4(self.prefix),
            (IpAddr::V6(ours), IpAddr::V6(other)) => ours.to_bits() == other.to_bits() & mask_v6(self.prefix),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// The bits that all addresses share, as a mask over the address's bytes.
    pub(super) fn mask(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(_) => mask_v4(self.prefix).to_be_bytes().to_vec(),
            IpAddr::V6(_) => mask_v6(self.prefix).to_be_bytes().to_vec(),
        }
    }
}

impl FromStr for Subnet {
    type Err = SubnetMistake;

    /// Reads `address/bits`, or an address alone.
    fn from_str(item: &str) -> Result<Self, SubnetMistake> {
        let wrong = || {
            SubnetMistake(format!(
                "`{item}` is neither a subnet such as 10.0.0.0/8 or fd00::/8 nor an address"
            ))
        };
        let (address, prefix) = item
            .split_once('/')
            .map_or((item, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
            None if address.is_ipv4() => 32,
            None => 128,
        };
        let subnet = Subnet::new(address, prefix).ok_or_else(wrong)?;
        if subnet.address != address {
            return Err(SubnetMistake(format!(
                "`{item}` has bits set behind its prefix: write {subnet}"
            )));
        }
        if let IpAddr::V6(v6) = address
            && v6.to_ipv4_mapped().is_some()
        {
            // Such a connection travels as IPv4: a rule for IPv6 would never meet it.
            return Err(SubnetMistake(format!(
                "`{item}` is IPv4 in IPv6's clothes: write it as IPv4"
            )));
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

/// Subnets in the order in which they were written, without those that lie within another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subnets(Vec<Subnet>);

impl Subnets {
    /// The subnets, none within another.
    pub fn iter(&self) -> impl Iterator<Item = Subnet> {
        self.0.iter().copied()
    }

    /// Whether the address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|subnet| subnet.contains(address))
    }
}

impl FromIterator<Subnet> for Subnets {
    fn from_iter<I: IntoIterator<Item = Subnet>>(subnets: I) -> Self {
        let mut kept: Vec<Subnet> = Vec::new();
        for subnet in subnets {
            let within = |inner: &Subnet, outer: &Subnet| outer.prefix <= inner.prefix && outer.contains(inner.address);
            if !kept.iter().any(|other| within(&subnet, other)) {
                kept.retain(|other| !within(other, &subnet));
                kept.push(subnet);
            }
        }
        Subnets(kept)
    }
}

impl FromStr for Subnets {
    type Err = SubnetMistake;

    /// Reads subnets and addresses between commas; blanks around them and an empty list are fine.
    fn from_str(text: &str) -> Result<Self, SubnetMistake> {
        if text.trim().is_empty() {
            return Ok(Subnets::default());
        }
        let (mut subnets, mut mistakes) = (Vec::new(), Vec::new());
        for item in text.split(',') {
            match item.trim().parse::<Subnet>() {
                Ok(subnet) => subnets.push(subnet),
                Err(SubnetMistake(mistake)) => mistakes.push(mistake),
            }
        }
        if !mistakes.is_empty() {
            return Err(SubnetMistake(mistakes.join("; ")));
        }
        if subnets.len() > MOST_SUBNETS {
            return Err(SubnetMistake(format!(
                "{} subnets are more than the {MOST_SUBNETS} that the rules hold: join some of them",
                subnets.len()
            )));
        }
        Ok(subnets.into_iter().collect())
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, subnet) in self.0.iter().enumerate() {
            write!(f, "{}{subnet}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A list of subnets that is none; the sentence names every item that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SubnetMistake(String);

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

/// As many as `Ports` has ranges, and for the same reason.
const MOST_SUBNETS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_and_addresses_of_both_families_are_read() {
        let subnets: Subnets = " 10.0.0.0/8, fc00::/7,192.0.2.7,2001:db8::1,0.0.0.0/0 "
            .parse()
            .expect("a list");
        assert_eq!(
            subnets.to_string(),
            "fc00::/7,2001:db8::1,0.0.0.0/0",
            "what lies within another is gone"
        );
        assert!(subnets.contains("8.8.8.8".parse().expect("an address")));
        assert!(subnets.contains("fdff::1".parse().expect("an address")));
        assert!(!subnets.contains("2001:db8::2".parse().expect("an address")));
        assert_eq!("".parse(), Ok(Subnets::default()));
    }

    #[test]
    fn every_wrong_item_is_named() {
        let text = "10.1.2.3/8,10.0.0.0/33,::/129,there,10.0.0.0/+8,10.0.0.0/,::ffff:10.0.0.0/104,,1.2.3.4";
        let sentence = text.parse::<Subnets>().expect_err("wrong").to_string();
        for item in [
            "`10.1.2.3/8` has bits set behind its prefix: write 10.0.0.0/8",
            "`10.0.0.0/33`",
            "`::/129`",
            "`there`",
            "`10.0.0.0/+8`",
            "`10.0.0.0/`",
            "`::ffff:10.0.0.0/104` is IPv4",
            "``",
        ] {
            assert!(sentence.contains(item), "{item} is not in: {sentence}");
        }
        assert!(!sentence.contains("1.2.3.4"));
    }

    #[test]
    fn masks_are_right_at_both_ends() {
        let mask = |text: &str| text.parse::<Subnet>().expect("a subnet").mask();
        assert_eq!(mask("0.0.0.0/0"), [0; 4]);
        assert_eq!(mask("10.0.0.0/9"), [255, 128, 0, 0]);
        assert_eq!(mask("1.2.3.4"), [255; 4]);
        assert_eq!(mask("::/0"), [0; 16]);
        assert_eq!(mask("::1"), [255; 16]);
    }
}
