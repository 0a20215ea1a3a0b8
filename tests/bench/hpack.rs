//! HPACK (RFC 7541) for the two ends of the benchmark: a decoder that checks everything, an encoder that indexes as grpc-go does.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail, ensure};

use super::huffman;

/// The decoder of one direction of a connection.
pub(crate) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    limit: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

struct Entry {
    name_len: usize,
    text: Box<[u8]>,
}

impl Entry {
    fn parts(&self) -> (&[u8], &[u8]) {
        self.text.split_at(self.name_len)
    }
}

impl Decoder {
    pub(crate) fn new() -> Decoder {
        Decoder {
            entries: VecDeque::new(),
            bytes: 0,
            limit: TABLE_BYTES,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Reads a whole header block and shows each of its fields.
    pub(crate) fn decode(&mut self, mut block: &[u8], mut see: impl FnMut(&[u8], &[u8])) -> Result<()> {
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.entry(index)?;
                see(name, value);
            } else if first & 0xe0 == 0x20 {
                let limit = integer(&mut block, 5)?;
                ensure!(limit <= TABLE_BYTES, "a table of {limit} bytes was never allowed");
                self.limit = limit;
                self.evict(0);
            } else {
                let indexed = first & 0x40 != 0;
                let index = integer(&mut block, if indexed { 6 } else { 4 })?;
                let mut name = std::mem::take(&mut self.name);
                name.clear();
                if index == 0 {
                    string(&mut block, &mut name)?;
                } else {
                    name.extend_from_slice(self.entry(index)?.0);
                }
                self.value.clear();
                string(&mut block, &mut self.value)?;
                see(&name, &self.value);
                if indexed {
                    self.insert(&name);
                }
                self.name = name;
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8])> {
        match index {
            0 => bail!("a header field of index 0"),
            1..=61 => Ok((STATIC[index - 1].0.as_bytes(), STATIC[index - 1].1.as_bytes())),
            _ => {
                let entry = self.entries.get(index - 62);
                Ok(entry
                    .with_context(|| format!("no header field of index {index}"))?
                    .parts())
            }
        }
    }

    fn insert(&mut self, name: &[u8]) {
        let size = name.len() + self.value.len() + 32;
        self.evict(size);
        if size <= self.limit {
            let text = [name, &self.value].concat().into_boxed_slice();
            self.entries.push_front(Entry {
                name_len: name.len(),
                text,
            });
            self.bytes += size;
        }
    }

    fn evict(&mut self, coming: usize) {
        while self.bytes + coming > self.limit {
            let Some(gone) = self.entries.pop_back() else { break };
            self.bytes -= gone.text.len() + 32;
        }
    }
}

/// A field that is sent again and again, with its text ready for the wire.
pub(crate) struct Field {
    id: u64,
    name_id: u64,
    size: usize,
    in_static: Option<usize>,
    name_in_static: Option<usize>,
    coded_name: Vec<u8>,
    coded_value: Vec<u8>,
}

impl Field {
    pub(crate) fn new(name: &str, value: &str) -> Field {
        let at = |wanted: &dyn Fn(&(&str, &str)) -> bool| STATIC.iter().position(wanted).map(|place| place + 1);
        let (mut coded_name, mut coded_value) = (Vec::new(), Vec::new());
        append_string(name.as_bytes(), &mut coded_name);
        append_string(value.as_bytes(), &mut coded_value);
        Field {
            id: fingerprint(&[name.as_bytes(), b"\0", value.as_bytes()]),
            name_id: fingerprint(&[name.as_bytes()]),
            size: name.len() + value.len() + 32,
            in_static: at(&|entry| *entry == (name, value)),
            name_in_static: at(&|entry| entry.0 == name),
            coded_name,
            coded_value,
        }
    }
}

/// The encoder of one direction of a connection. Like Go's, it indexes every field that fits the table.
pub(crate) struct Encoder {
    /// The newest first: fingerprints of the field and of its name, and the size.
    entries: VecDeque<(u64, u64, usize)>,
    bytes: usize,
    limit: usize,
    /// The smallest table that the peer asked for since the last block (RFC 7541, 4.2).
    lowest: Option<usize>,
}

impl Encoder {
    pub(crate) fn new() -> Encoder {
        Encoder {
            entries: VecDeque::new(),
            bytes: 0,
            limit: TABLE_BYTES,
            lowest: None,
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE; more than the default is not used.
    pub(crate) fn resize(&mut self, limit: usize) {
        let limit = limit.min(TABLE_BYTES);
        if limit != self.limit {
            self.lowest = Some(self.lowest.unwrap_or(limit).min(limit));
        }
        self.limit = limit;
        self.evict(0);
    }

    /// To be called before the first field of a block.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        let Some(lowest) = self.lowest.take() else { return };
        append_integer(lowest, 5, 0x20, out);
        if lowest != self.limit {
            append_integer(self.limit, 5, 0x20, out);
        }
    }

    pub(crate) fn field(&mut self, field: &Field, out: &mut Vec<u8>) {
        if let Some(index) = field.in_static {
            return append_integer(index, 7, 0x80, out);
        }
        if let Some(place) = self.entries.iter().position(|entry| entry.0 == field.id) {
            return append_integer(place + 62, 7, 0x80, out);
        }
        self.literal(field, field.id, &field.coded_value, field.size, out);
    }

    /// A field whose value no other request has: `name` gives the name, its own value is not looked at.
    pub(crate) fn unique(&mut self, name: &Field, value: &[u8], out: &mut Vec<u8>) {
        let mut coded = Vec::with_capacity(64);
        append_string(value, &mut coded);
        self.literal(name, UNIQUE, &coded, name.size + value.len(), out);
    }

    fn literal(&mut self, field: &Field, id: u64, coded_value: &[u8], size: usize, out: &mut Vec<u8>) {
        let fits = size <= self.limit;
        let (bits, flag) = if fits { (6, 0x40) } else { (4, 0) };
        let in_table = || {
            self.entries
                .iter()
                .position(|entry| entry.1 == field.name_id)
                .map(|place| place + 62)
        };
        match field.name_in_static.or_else(in_table) {
            Some(index) => append_integer(index, bits, flag, out),
            None => {
                out.push(flag);
                out.extend_from_slice(&field.coded_name);
            }
        }
        out.extend_from_slice(coded_value);
        if fits {
            self.evict(size);
            self.entries.push_front((id, field.name_id, size));
            self.bytes += size;
        }
    }

    fn evict(&mut self, coming: usize) {
        while self.bytes + coming > self.limit {
            let Some((_, _, size)) = self.entries.pop_back() else {
                break;
            };
            self.bytes -= size;
        }
    }
}

fn integer(block: &mut &[u8], bits: u32) -> Result<usize> {
    let most = (1usize << bits) - 1;
    let mut take = || {
        let (&byte, rest) = block
            .split_first()
            .context("a header block that ends inside a number")?;
        *block = rest;
        Ok::<_, anyhow::Error>(usize::from(byte))
    };
    let mut value = take()? & most;
    if value == most {
        let mut shift = 0;
        loop {
            let byte = take()?;
            ensure!(shift <= 21, "a number of a header block is too large");
            value += (byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    Ok(value)
}

fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<()> {
    let coded = block.first().context("a header block that ends before a string")? & 0x80 != 0;
    let len = integer(block, 7)?;
    ensure!(len <= block.len(), "a header block that ends inside a string");
    let (text, rest) = block.split_at(len);
    *block = rest;
    if coded {
        huffman::decode(text, out).context("a string that is no Huffman code")?;
    } else {
        out.extend_from_slice(text);
    }
    Ok(())
}

fn append_integer(value: usize, bits: u32, flag: u8, out: &mut Vec<u8>) {
    let most = (1usize << bits) - 1;
    if value < most {
        return out.push(flag | value as u8);
    }
    out.push(flag | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn append_string(text: &[u8], out: &mut Vec<u8>) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        append_integer(coded, 7, 0x80, out);
        huffman::encode(text, out);
    } else {
        append_integer(text.len(), 7, 0, out);
        out.extend_from_slice(text);
    }
}

/// FNV-1a: fields of the benchmark are few and its own.
fn fingerprint(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// What both sides may use until SETTINGS say otherwise; the decoder never asks for another.
const TABLE_BYTES: usize = 4_096;
/// Stands for a field that is never looked up.
const UNIQUE: u64 = 0;

#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""),
    ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""),
    ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""),
    ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""),
    ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""), ("retry-after", ""),
    ("server", ""), ("set-cookie", ""), ("strict-transport-security", ""), ("transfer-encoding", ""),
    ("user-agent", ""), ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder
            .decode(block, |name, value| fields.push((text(name), text(value))))
            .expect("a legal block");
        fields
    }

    #[test]
    fn the_requests_of_the_rfc_are_understood() {
        // RFC 7541, C.4.1 and C.4.2.
        let mut decoder = Decoder::new();
        let first = [
            0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        let fields = decoded(&mut decoder, &first);
        assert_eq!(fields[0], (":method".into(), "GET".into()));
        assert_eq!(fields[3], (":authority".into(), "www.example.com".into()));
        let fields = decoded(
            &mut decoder,
            &[0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf],
        );
        assert_eq!(fields[3], (":authority".into(), "www.example.com".into()));
        assert_eq!(fields[4], ("cache-control".into(), "no-cache".into()));
    }

    #[test]
    fn thousands_of_blocks_with_evictions_and_resizing_stay_in_step() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let token = "x".repeat(400);
        let fields: Vec<Field> = (0..200).map(|n| Field::new(":path", &format!("/a.B/M{n}"))).collect();
        let token_field = Field::new("authorization", &token);
        let trace = Field::new("traceparent", "");
        for n in 0..5_000usize {
            if n % 700 == 699 {
                encoder.resize([0, 4_096, 1_000][n / 700 % 3]);
                encoder.resize([700, 4_096, 4_096][n / 700 % 3]);
            }
            let mut block = Vec::new();
            encoder.begin(&mut block);
            encoder.field(&fields[n % 200], &mut block);
            encoder.field(&token_field, &mut block);
            encoder.unique(&trace, format!("00-{n:032x}-{n:016x}-01").as_bytes(), &mut block);
            let got = decoded(&mut decoder, &block);
            assert_eq!(got[0].1, format!("/a.B/M{}", n % 200));
            assert_eq!(got[1].1, token);
            assert_eq!(got[2].1, format!("00-{n:032x}-{n:016x}-01"));
        }
    }

    #[test]
    fn a_repeated_field_takes_one_byte() {
        let (mut encoder, field) = (Encoder::new(), Field::new("te", "trailers"));
        let mut block = Vec::new();
        encoder.field(&field, &mut block);
        block.clear();
        encoder.field(&field, &mut block);
        assert_eq!(block, [0xbe]);
    }
}
