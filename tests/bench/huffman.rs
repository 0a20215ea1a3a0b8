//! The Huffman code of HPACK (RFC 7541, appendix B), rebuilt from its lengths: the code is canonical.

use std::sync::LazyLock;

/// Appends `text` in Huffman code, padded with the first bits of EOS.
pub(crate) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let code = &*CODE;
    let (mut bits, mut held) = (0u64, 0u32);
    for &byte in text {
        let length = u32::from(LENGTHS[usize::from(byte)]);
        bits = (bits << length) | u64::from(code.words[usize::from(byte)]);
        held += length;
        while held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    if held > 0 {
        out.push(((bits << (8 - held)) as u8) | (0xff >> held));
    }
}

/// How many bytes `text` takes in Huffman code.
pub(crate) fn encoded_len(text: &[u8]) -> usize {
    text.iter()
        .map(|&byte| usize::from(LENGTHS[usize::from(byte)]))
        .sum::<usize>()
        .div_ceil(8)
}

/// Appends the text that `coded` stands for, or says that it stands for none.
pub(crate) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let code = &*CODE;
    let (mut bits, mut held, mut rest) = (0u64, 0u32, coded.iter());
    loop {
        while held <= 56 {
            let Some(&byte) = rest.next() else { break };
            bits |= u64::from(byte) << (56 - held);
            held += 8;
        }
        if held == 0 {
            return Some(());
        }
        let (symbol, length) = code.short[(bits >> 56) as usize];
        if length != 0 && u32::from(length) <= held {
            out.push(symbol);
            bits <<= length;
            held -= u32::from(length);
            continue;
        }
        let Some((symbol, length)) = code.long(bits).filter(|(_, length)| *length <= held) else {
            // What is left must be less than a byte of ones.
            return (held < 8 && (bits >> (64 - held)) + 1 == 1 << held).then_some(());
        };
        out.push(u8::try_from(symbol).ok()?);
        bits <<= length;
        held -= length;
    }
}

struct Code {
    words: [u32; 257],
    /// Symbol and length of the code that the next eight bits begin with, if it is that short.
    short: [(u8, u8); 256],
    /// For each length: its first word, how many words it has, and where its symbols begin in `ordered`.
    lengths: [(u32, u32, usize); 31],
    ordered: Vec<u16>,
}

impl Code {
    fn new() -> Code {
        let mut ordered: Vec<u16> = (0..257).collect();
        ordered.sort_by_key(|&symbol| (LENGTHS[usize::from(symbol)], symbol));
        let (mut words, mut short, mut lengths) = ([0; 257], [(0, 0); 256], [(0, 0, 0); 31]);
        let (mut word, mut last) = (0u32, LENGTHS[usize::from(ordered[0])]);
        for (place, &symbol) in ordered.iter().enumerate() {
            let length = LENGTHS[usize::from(symbol)];
            word <<= length - last;
            last = length;
            words[usize::from(symbol)] = word;
            let of_length = &mut lengths[usize::from(length)];
            if of_length.1 == 0 {
                *of_length = (word, 0, place);
            }
            of_length.1 += 1;
            if length <= 8 {
                let first = (word << (8 - length)) as usize;
                short[first..first + (1 << (8 - length))].fill((symbol as u8, length));
            }
            word += 1;
        }
        Code {
            words,
            short,
            lengths,
            ordered,
        }
    }

    fn long(&self, bits: u64) -> Option<(u16, u32)> {
        (5u32..=30).find_map(|length| {
            let (first, count, place) = self.lengths[length as usize];
            let nth = ((bits >> (64 - length)) as u32).checked_sub(first)?;
            (nth < count).then(|| (self.ordered[place + nth as usize], length))
        })
    }
}

static CODE: LazyLock<Code> = LazyLock::new(Code::new);

#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_come_out_and_go_back() {
        let coded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        let mut out = Vec::new();
        encode(b"www.example.com", &mut out);
        assert_eq!(out, coded);
        assert_eq!(encoded_len(b"www.example.com"), coded.len());
        let mut text = Vec::new();
        decode(&coded, &mut text).expect("the RFC's own example");
        assert_eq!(text, b"www.example.com");
    }

    #[test]
    fn every_byte_survives_the_way_there_and_back() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        let (mut coded, mut text) = (Vec::new(), Vec::new());
        encode(&all, &mut coded);
        decode(&coded, &mut text).expect("own encoding");
        assert_eq!(text, all);
    }

    #[test]
    fn padding_that_is_not_eos_is_refused() {
        assert!(decode(&[0x00], &mut Vec::new()).is_none());
    }
}
