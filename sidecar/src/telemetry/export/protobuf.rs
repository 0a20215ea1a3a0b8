//! Protobuf's wire form, written in one pass into one buffer.
//!
//! A message within another stands behind its length, which is known once it is written. A byte is kept for it, which is
//! enough for what is shorter than 128 bytes; what is longer moves up. No length is counted beforehand, and nothing is
//! allocated but the buffer. See <https://protobuf.dev/programming-guides/encoding/>.

/// Messages that are being written.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

/// How the value behind a tag is written.
#[derive(Clone, Copy)]
enum Form {
    Varint = 0,
    Fixed64 = 1,
    /// A length, and as many bytes.
    Len = 2,
    Fixed32 = 5,
}

/// From here on, a varint takes a second byte.
const TWO_BYTES: usize = 0x80;

impl Writer {
    /// One with room for so many bytes before it has to grow.
    pub(super) fn with_capacity(bytes: usize) -> Writer {
        Writer(Vec::with_capacity(bytes))
    }

    /// What was written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A field of type `uint32`, `uint64`, `int32`, `int64` or of an enum: a negative value is its two's complement.
    #[inline]
    pub(super) fn varint(&mut self, field: u32, value: u64) {
        self.tag(field, Form::Varint);
        self.put_varint(value);
    }

    /// A field of type `fixed32`.
    #[inline]
    pub(super) fn fixed32(&mut self, field: u32, value: u32) {
        self.tag(field, Form::Fixed32);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A field of type `fixed64`.
    #[inline]
    pub(super) fn fixed64(&mut self, field: u32, value: u64) {
        self.tag(field, Form::Fixed64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A field of type `bytes` or `string`, or a message that is encoded already.
    #[inline]
    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.tag(field, Form::Len);
        self.put_varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A field whose message, or text, is what `write` writes.
    #[inline]
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer)) {
        self.tag(field, Form::Len);
        self.0.push(0);
        let begins = self.0.len();
        write(self);
        let len = self.0.len() - begins;
        if len < TWO_BYTES {
            self.0[begins - 1] = len as u8;
        } else {
            self.widen(begins, len);
        }
    }

    /// Text of a field that [`message`](Self::message) began.
    #[inline]
    pub(super) fn text(&mut self, text: &[u8]) {
        self.0.extend_from_slice(text);
    }

    /// The same of what writes itself.
    pub(super) fn display(&mut self, what: impl std::fmt::Display) {
        use std::io::Write as _;
        // A vector takes all.
        let _ = write!(self.0, "{what}");
    }

    /// Moves the `len` bytes at `begins`, which have one byte for their length, so that it has as many as it needs.
    fn widen(&mut self, begins: usize, len: usize) {
        let end = self.0.len();
        self.put_varint(len as u64);
        let mut varint = [0; 10];
        let wide = self.0.len() - end;
        varint[..wide].copy_from_slice(&self.0[end..]);
        // What stood in the last bytes is in `varint`; one of them is for the byte that was kept.
        self.0.truncate(end + wide - 1);
        self.0.copy_within(begins..end, begins + wide - 1);
        self.0[begins - 1..][..wide].copy_from_slice(&varint[..wide]);
    }

    #[inline(always)]
    fn tag(&mut self, field: u32, form: Form) {
        self.put_varint(u64::from(field << 3 | form as u32));
    }

    #[inline(always)]
    fn put_varint(&mut self, mut value: u64) {
        while value >= TWO_BYTES as u64 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// Every form, as prost reads it.
    #[derive(Clone, PartialEq, Message)]
    struct Judge {
        #[prost(uint64, tag = "1")]
        varint: u64,
        #[prost(int64, tag = "2")]
        signed: i64,
        #[prost(fixed32, tag = "16")]
        fixed32: u32,
        #[prost(fixed64, tag = "17")]
        fixed64: u64,
        #[prost(bytes = "vec", tag = "2047")]
        bytes: Vec<u8>,
        #[prost(string, tag = "2048")]
        text: String,
        #[prost(message, repeated, tag = "3")]
        inner: Vec<Judge>,
    }

    fn write(judge: &Judge, to: &mut Writer) {
        to.varint(1, judge.varint);
        to.varint(2, judge.signed as u64);
        to.fixed32(16, judge.fixed32);
        to.fixed64(17, judge.fixed64);
        to.bytes(2047, &judge.bytes);
        to.message(2048, |to| to.display(&judge.text));
        for inner in &judge.inner {
            to.message(3, |to| write(inner, to));
        }
    }

    fn leaf() -> impl Strategy<Value = Judge> {
        let bytes = prop::collection::vec(any::<u8>(), 0..300);
        (any::<(u64, i64, u32, u64)>(), bytes, ".{0,80}").prop_map(
            |((varint, signed, fixed32, fixed64), bytes, text)| Judge {
                varint,
                signed,
                fixed32,
                fixed64,
                bytes,
                text,
                inner: Vec::new(),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_another_reads(judge in leaf().prop_recursive(4, 32, 4, |inner| {
            (leaf(), prop::collection::vec(inner, 0..4)).prop_map(|(judge, inner)| Judge { inner, ..judge })
        })) {
            let mut writer = Writer::default();
            write(&judge, &mut writer);
            prop_assert_eq!(Judge::decode(&*writer.into_bytes()), Ok(judge));
        }
    }

    #[test]
    fn a_length_takes_as_few_bytes_as_it_may() {
        for len in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let judge = Judge {
                bytes: vec![7; len],
                ..Judge::default()
            };
            let mut writer = Writer::default();
            writer.message(2047, |to| to.text(&judge.bytes));
            let expected = if len == 0 {
                vec![0xfa, 0x7f, 0]
            } else {
                judge.encode_to_vec()
            };
            assert!(writer.into_bytes() == expected, "{len}");
        }
    }
}
