//! The static table (RFC 7541, appendix A).

use super::{
    fields::Item,
    intern::FieldId,
    name::{self, Class},
};

/// How many entries the static table has: the dynamic table's indices begin behind it.
pub(super) const LEN: u32 = 61;

/// Names and values; the entry with index 1 stands first.
#[rustfmt::skip]
pub(super) const ENTRIES: [(&[u8], &[u8]); LEN as usize] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),];

/// What the name of each entry is, by its index; nothing has index 0.
static CLASSES: [Class; LEN as usize + 1] = {
    let mut classes = [Class::OTHER; LEN as usize + 1];
    let mut at = 0;
    while at < LEN as usize {
        classes[at + 1] = name::known_or_other(ENTRIES[at].0);
        at += 1;
    }
    classes
};

/// The entries as fields of a list, by index; nothing has index 0.
pub(super) static ITEMS: [Item; LEN as usize + 1] = {
    let mut items = [Item::Interned {
        name: Class::OTHER.name,
        id: FieldId(0),
    }; LEN as usize + 1];
    let mut index = 1;
    while index <= LEN as usize {
        items[index] = Item::Interned {
            name: CLASSES[index].name,
            id: FieldId(index as u32),
        };
        index += 1;
    }
    items
};

/// What the name of the entry `index` (1 to 61) is.
#[inline]
pub(super) fn class(index: u32) -> Class {
    CLASSES[index as usize]
}

/// The entry with this value among those of one name, of which `first` is the first (0: a name that is not here).
#[inline(always)]
pub(super) fn find(first: u8, value: &[u8]) -> Option<u32> {
    // No value of the table is longer.
    if first == 0 || value.len() > LONGEST_VALUE {
        return None;
    }
    let first = u32::from(first);
    let last = match first {
        2 | 4 | 6 => first + 1,
        8 => 14,
        _ => first,
    };
    (first..=last).find(|&index| ENTRIES[index as usize - 1].1 == value)
}

const LONGEST_VALUE: usize = 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_by_its_name_and_value() {
        for (index, (name_text, value)) in (1..).zip(ENTRIES) {
            let class = class(index);
            assert_eq!(class, name::judge(name_text).0);
            assert_eq!(ENTRIES[usize::from(class.static_index) - 1].0, name_text);
            assert_eq!(find(class.static_index, value), Some(index));
            assert!(value.len() <= LONGEST_VALUE);
        }
        assert_eq!(find(8, b"201"), None);
        assert_eq!(find(0, b""), None);
    }
}
