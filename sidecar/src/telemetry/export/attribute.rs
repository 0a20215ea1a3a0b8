//! Attributes: a key, and a text or a number, in the list that is the field of this number.

use std::net::{IpAddr, SocketAddr};

use super::field::{any_value, key_value};
use super::protobuf::Writer;

/// A text.
pub(super) fn string(list: u32, key: &str, value: &str, to: &mut Writer) {
    pair(list, key, to, |to| to.bytes(any_value::STRING, value.as_bytes()));
}

/// A number.
pub(super) fn int(list: u32, key: &str, value: i64, to: &mut Writer) {
    pair(list, key, to, |to| to.varint(any_value::INT, value as u64));
}

/// An address without its port.
pub(super) fn ip(list: u32, key: &str, value: IpAddr, to: &mut Writer) {
    pair(list, key, to, |to| {
        to.message(any_value::STRING, |to| put_ip(value, to))
    });
}

/// An address and its port.
pub(super) fn address(list: u32, key: &str, value: &SocketAddr, to: &mut Writer) {
    pair(list, key, to, |to| {
        to.message(any_value::STRING, |to| put_address(value, to))
    });
}

#[inline]
fn pair(list: u32, key: &str, to: &mut Writer, value: impl FnOnce(&mut Writer)) {
    to.message(list, |to| {
        to.bytes(key_value::KEY, key.as_bytes());
        to.message(key_value::VALUE, value);
    });
}

fn put_address(addr: &SocketAddr, to: &mut Writer) {
    match addr {
        SocketAddr::V4(_) => {
            put_ip(addr.ip(), to);
            to.text(b":");
            put_decimal(addr.port(), to);
        }
        SocketAddr::V6(addr) => to.display(addr),
    }
}

/// As the standard library shows it. For the usual kind that would cost more than the rest of a span.
fn put_ip(ip: IpAddr, to: &mut Writer) {
    match ip {
        IpAddr::V4(ip) => {
            let [first, rest @ ..] = ip.octets();
            put_decimal(first.into(), to);
            for octet in rest {
                to.text(b".");
                put_decimal(octet.into(), to);
            }
        }
        IpAddr::V6(ip) => to.display(ip),
    }
}

fn put_decimal(number: u16, to: &mut Writer) {
    let mut digits = [0; 5];
    let (mut begins, mut rest) = (digits.len(), number);
    loop {
        begins -= 1;
        digits[begins] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    to.text(&digits[begins..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_is_written_as_the_standard_library_shows_it(addr: SocketAddr) {
            let mut writer = Writer::default();
            put_address(&addr, &mut writer);
            writer.text(b" ");
            put_ip(addr.ip(), &mut writer);
            let expected = format!("{addr} {}", addr.ip());
            prop_assert_eq!(writer.into_bytes(), expected.into_bytes());
        }
    }
}
