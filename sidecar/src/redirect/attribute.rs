//! Netlink attributes: a tree that is written into a message, and looked for in an answer.

use nix::libc;

/// A typed value, or a nest of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Value(u16, Vec<u8>),
    Nest(u16, Vec<Attribute>),
}

impl Attribute {
    /// A text, with the zero byte that ends it.
    pub(super) fn text(kind: u16, text: &str) -> Self {
        Attribute::Value(kind, [text.as_bytes(), &[0]].concat())
    }

    /// A number in network order, as nftables wants its numbers.
    pub(super) fn number(kind: u16, number: u32) -> Self {
        Attribute::Value(kind, number.to_be_bytes().to_vec())
    }

    fn kind(&self) -> u16 {
        match self {
            Attribute::Value(kind, _) | Attribute::Nest(kind, _) => *kind,
        }
    }

    /// Writes the attribute behind what is there, padded as netlink wants it.
    pub(super) fn append_to(&self, message: &mut Vec<u8>) {
        let start = message.len();
        message.extend([0; HEADER]);
        let kind = match self {
            Attribute::Value(kind, value) => {
                message.extend(value);
                *kind
            }
            Attribute::Nest(kind, inside) => {
                inside.iter().for_each(|attribute| attribute.append_to(message));
                *kind | NESTED
            }
        };
        let length = u16::try_from(message.len() - start).expect("an attribute of ours is far below 64 KiB");
        message[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message[start + 2..start + HEADER].copy_from_slice(&kind.to_ne_bytes());
        message.resize(message.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// Whether what was read holds all of what is expected: each kind as often, in the same order among its like. The
/// kernel may say more than it was told (handles, counters, defaults); what it says instead is a difference.
pub(super) fn holds(read: &[u8], expected: &[Attribute]) -> bool {
    expected.iter().all(|attribute| {
        let kind = attribute.kind();
        let read: Vec<&[u8]> = each(read)
            .filter(|(other, _)| *other == kind)
            .map(|(_, value)| value)
            .collect();
        let expected: Vec<&Attribute> = expected.iter().filter(|other| other.kind() == kind).collect();
        read.len() == expected.len()
            && expected.iter().zip(read).all(|(expected, read)| match expected {
                Attribute::Value(_, value) => value == read,
                Attribute::Nest(_, inside) => holds(read, inside),
            })
    })
}

/// The attributes one after the other, up to the end or to where they stop making sense.
pub(super) fn each(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND;
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of the kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    each(bytes).find(|(other, _)| *other == kind).map(|(_, value)| value)
}

/// A text without the zero byte that ends it.
pub(super) fn as_text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// A number in network order.
pub(super) fn as_number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

const HEADER: usize = 4;
const ALIGNMENT: usize = libc::NLA_ALIGNTO as usize;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const KIND: u16 = libc::NLA_TYPE_MASK as u16;

#[cfg(test)]
mod tests {
    use super::*;

    fn written(attributes: &[Attribute]) -> Vec<u8> {
        let mut bytes = Vec::new();
        attributes.iter().for_each(|attribute| attribute.append_to(&mut bytes));
        bytes
    }

    fn sample() -> Vec<Attribute> {
        let inside = |number| Attribute::Nest(1, vec![Attribute::text(1, "cmp"), Attribute::number(2, number)]);
        vec![
            Attribute::text(3, "outbound"),
            Attribute::Nest(4, vec![inside(1), inside(2)]),
        ]
    }

    #[test]
    fn what_was_written_is_found_again() {
        let bytes = written(&sample());
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(find(&bytes, 3).and_then(as_text), Some("outbound"));
        assert_eq!(each(find(&bytes, 4).expect("the nest")).count(), 2);
        assert!(holds(&bytes, &sample()));
    }

    #[test]
    fn what_the_kernel_adds_is_no_difference_and_what_it_changes_is_one() {
        let mut more = sample();
        more.push(Attribute::number(9, 7));
        assert!(holds(&written(&more), &sample()));
        assert!(!holds(&written(&sample()), &more));

        let Attribute::Nest(4, mut list) = sample().remove(1) else {
            panic!("the nest")
        };
        list.reverse();
        assert!(
            !holds(
                &written(&[sample().remove(0), Attribute::Nest(4, list.clone())]),
                &sample()
            ),
            "another order"
        );
        list.reverse();
        list.push(list[0].clone());
        assert!(
            !holds(&written(&[sample().remove(0), Attribute::Nest(4, list)]), &sample()),
            "one more in the list"
        );
    }

    #[test]
    fn bytes_that_make_no_sense_end_the_reading() {
        for bytes in [
            &[][..],
            &[1],
            &[0, 0, 1, 0],
            &[3, 0, 1, 0],
            &[200, 0, 1, 0, 9],
            &[255, 255, 255, 255],
        ] {
            assert_eq!(each(bytes).count(), 0, "{bytes:?}");
        }
        assert_eq!(
            each(&[5, 0, 1, 0, 9]).collect::<Vec<_>>(),
            [(1, &[9][..])],
            "the last one may lack its padding"
        );
    }
}
