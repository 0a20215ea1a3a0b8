//! Huffman coding of strings (RFC 7541, 5.2 and appendix B).
//!
//! Most symbols of a header have codes of 5 to 7 bits. So decoding looks at 12 bits at once and mostly finds two symbols
//! there; a code longer than that is found by its length, since the code is canonical.

use super::{Error, huffman_codes::CODES};

const WINDOW_BITS: u32 = 12;
const LONGEST: usize = 30;

/// Appends what `src` stands for, and says whether that is plain: every control byte has a long code, so where none was
/// met there is no control byte. On an error nothing has been appended.
pub fn decode(src: &[u8], out: &mut Vec<u8>) -> Result<Plain, Error> {
    let start = out.len();
    // The shortest code has 5 bits; and eight bytes are written at a time, also where only the first counts.
    out.resize(start + src.len() * 8 / 5 + 8, 0);
    let decoded = decode_into(src, &mut out[start..]);
    let len = decoded.as_ref().map_or(0, |(len, _)| *len);
    out.truncate(start + len);
    decoded.map(|(_, plain)| plain)
}

/// Whether a text is known to have no control byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plain {
    /// It has none.
    Yes,
    /// It may have some.
    Unknown,
}

/// Appends `src`, coded.
pub fn encode(src: &[u8], out: &mut Vec<u8>) {
    let mut bits = 0u64;
    let mut count = 0u32;
    for &byte in src {
        let (code, length) = CODES[usize::from(byte)];
        bits = bits << length | u64::from(code);
        count += u32::from(length);
        if count >= 32 {
            count -= 32;
            out.extend_from_slice(&((bits >> count) as u32).to_be_bytes());
        }
    }
    if count > 0 {
        // Padding is the beginning of EOS: ones.
        let last = (bits << 32 | u64::from(u32::MAX)) >> count;
        out.extend_from_slice(&(last as u32).to_be_bytes()[..count.div_ceil(8) as usize]);
    }
}

/// How many bytes [`encode`] would append.
pub fn encoded_len(src: &[u8]) -> usize {
    let bits: usize = src.iter().map(|&byte| usize::from(CODES[usize::from(byte)].1)).sum();
    bits.div_ceil(8)
}

fn decode_into(src: &[u8], out: &mut [u8]) -> Result<(usize, Plain), Error> {
    // Bits that are decoded, and bytes that are written.
    let (mut used, mut len) = (0, 0);
    let mut plain = Plain::Yes;
    loop {
        // At least 57 bits.
        let word = match eight_bytes(src, used / 8) {
            Some(word) => word << (used % 8),
            None => match last_bits(src, used) {
                Some(word) => word,
                None => break,
            },
        };
        // Four windows of 12 bits are less than 57. Where a longer code begins, no window takes anything any more.
        let mut bits = word;
        let windows = [(); 4].map(|()| {
            let window = WINDOWS[(bits >> (64 - WINDOW_BITS)) as usize];
            bits <<= window.bits();
            window
        });
        let text = &mut out[len..][..8];
        if let Some((pairs, taken)) = pairs(windows) {
            // Digits and most small letters.
            text.copy_from_slice(&u64::to_le_bytes(pairs));
            (used, len) = (used + taken, len + 8);
            continue;
        }
        let (found, taken) = one_after_another(windows);
        text.copy_from_slice(&u64::to_le_bytes(found));
        used += taken.bits();
        len += taken.symbols();
        if taken.bits() > 0 {
            continue;
        }
        let (symbol, length) = long_code(word);
        if length as usize > src.len() * 8 - used {
            return Err(Error::HuffmanPadding);
        }
        out[len] = u8::try_from(symbol).map_err(|_| Error::HuffmanEos)?;
        len += 1;
        used += length as usize;
        plain = Plain::Unknown;
    }
    // Ones never make a symbol, so a symbol that reaches behind the end had begun with wrong padding.
    if used <= src.len() * 8 {
        Ok((len, plain))
    } else {
        Err(Error::HuffmanPadding)
    }
}

/// What four windows stand for where each is two symbols, and how many bits that takes.
#[inline(always)]
fn pairs([a, b, c, d]: [Window; 4]) -> Option<(u64, usize)> {
    if (a.0 & b.0 & c.0 & d.0) & Window::PAIR == 0 {
        return None;
    }
    let text = |a: Window, b: Window| a.0 >> 16 | b.0 & 0xffff_0000;
    // What stands above the bits is of no interest.
    let bits = [b, c, d].iter().fold(a.0, |bits, window| bits.wrapping_add(window.0)) & 0xff;
    Some((u64::from(text(c, d)) << 32 | u64::from(text(a, b)), bits as usize))
}

/// The same where some are one symbol, or none.
#[inline(always)]
fn one_after_another(windows: [Window; 4]) -> (u64, Taken) {
    let (mut text, mut taken) = (0, Taken(0));
    for window in windows {
        text |= window.text() << taken.text_bits();
        taken.add(window);
    }
    (text, taken)
}

/// Eight bytes from there on, as a number, if there are so many.
#[inline(always)]
fn eight_bytes(src: &[u8], at: usize) -> Option<u64> {
    let bytes = src.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*bytes))
}

/// The bits behind those that are used, where less than eight bytes are left; behind the end, ones, as if padding went on
/// for ever. Nothing if none are left, or padding alone.
#[inline(always)]
fn last_bits(src: &[u8], used: usize) -> Option<u64> {
    let rest = (src.len() * 8).checked_sub(used).filter(|rest| *rest > 0)?;
    let last = match src.last_chunk::<8>() {
        Some(last) => u64::from_be_bytes(*last),
        None => few_bytes(src),
    };
    let word = last << (64 - rest) | u64::MAX >> rest;
    (rest >= 8 || word != u64::MAX).then_some(word)
}

/// Less than eight bytes, as a number.
#[inline(never)]
fn few_bytes(src: &[u8]) -> u64 {
    src.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Finds the code of more than [`WINDOW_BITS`] bits that `word` begins with, and its length.
#[cold]
fn long_code(word: u64) -> (u16, u32) {
    for (run, length) in LENGTHS.iter().zip(0..).skip(WINDOW_BITS as usize + 1) {
        let code = (word >> (64 - length)) as u32;
        let offset = code.wrapping_sub(run.first);
        if offset < run.count {
            return (SYMBOLS[(run.symbols_at + offset) as usize], length);
        }
    }
    unreachable!("the code is complete: 30 bits always begin with a code")
}

/// What stands in the next 12 bits: two whole symbols, one, or none (the beginning of a longer code; all zeros).
///
/// From the lowest byte: how many bits they take, how many bits of text they are, and that text. Four bytes a window keep
/// the table in the cache.
#[derive(Clone, Copy)]
struct Window(u32);

impl Window {
    /// Set where it is two symbols.
    const PAIR: u32 = 2 << 11;

    const fn new(text: [u8; 2], symbols: u32, bits: u32) -> Window {
        Window((u16::from_le_bytes(text) as u32) << 16 | symbols << 11 | bits)
    }

    #[inline]
    const fn text(self) -> u64 {
        (self.0 >> 16) as u64
    }

    #[inline]
    const fn bits(self) -> u32 {
        self.0 & 0xff
    }
}

/// What some windows took together: counted as each of them counts, in one number.
#[derive(Clone, Copy)]
struct Taken(u32);

impl Taken {
    #[inline]
    fn add(&mut self, window: Window) {
        self.0 += window.0 & 0xffff;
    }

    #[inline]
    fn bits(self) -> usize {
        self.0 as usize & 0xff
    }

    #[inline]
    fn symbols(self) -> usize {
        self.0 as usize >> 11
    }

    #[inline]
    fn text_bits(self) -> u32 {
        (self.0 >> 8) & 0x3f
    }
}

static WINDOWS: [Window; 1 << WINDOW_BITS] = windows();

const fn windows() -> [Window; 1 << WINDOW_BITS] {
    let mut single = [Window(0); 1 << WINDOW_BITS];
    let mut symbol = 0;
    while symbol < 256 {
        let (code, length) = CODES[symbol];
        if length as u32 <= WINDOW_BITS {
            let free = WINDOW_BITS - length as u32;
            let mut fill = 0;
            while fill < 1 << free {
                single[((code << free) | fill) as usize] = Window::new([symbol as u8, 0], 1, length as u32);
                fill += 1;
            }
        }
        symbol += 1;
    }
    let mut windows = single;
    let mut at = 0;
    while at < 1 << WINDOW_BITS {
        let first = single[at];
        let second = single[(at << first.bits()) & ((1 << WINDOW_BITS) - 1)];
        let bits = first.bits() + second.bits();
        if first.0 != 0 && second.0 != 0 && bits <= WINDOW_BITS {
            windows[at] = Window::new([first.text() as u8, second.text() as u8], 2, bits);
        }
        at += 1;
    }
    windows
}

/// The codes of one length: a run of numbers from `first`, for the symbols from `symbols_at` in [`SYMBOLS`].
#[derive(Clone, Copy)]
struct Lengths {
    first: u32,
    count: u32,
    symbols_at: u32,
}

static LENGTHS: [Lengths; LONGEST + 1] = CANON.0;
static SYMBOLS: [u16; 257] = CANON.1;

const CANON: ([Lengths; LONGEST + 1], [u16; 257]) = {
    let mut lengths = [Lengths {
        first: 0,
        count: 0,
        symbols_at: 0,
    }; LONGEST + 1];
    let mut symbols = [0; 257];
    let mut at = 0;
    let mut length = 1;
    while length <= LONGEST {
        lengths[length].symbols_at = at as u32;
        let mut symbol = 0;
        while symbol < 257 {
            let (code, its_length) = CODES[symbol];
            if its_length as usize == length {
                let run = &mut lengths[length];
                if run.count == 0 {
                    run.first = code;
                }
                assert!(code == run.first + run.count, "within a length, codes ascend by one");
                run.count += 1;
                symbols[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    (lengths, symbols)
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(src: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = b"before".to_vec();
        let result = decode(src, &mut out);
        if result == Ok(Plain::Yes) {
            assert!(!out.iter().any(u8::is_ascii_control), "plain text has no control byte");
        }
        assert!(out.starts_with(b"before"));
        assert!(result.is_ok() || out.len() == 6, "an error leaves nothing behind");
        result.map(|_| out.split_off(6))
    }

    fn encoded(src: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(src, &mut out);
        assert_eq!(out.len(), encoded_len(src));
        out
    }

    /// Bits written out, padded with ones.
    fn bytes(bits: &str) -> Vec<u8> {
        let bits: Vec<u8> = bits.bytes().filter(|bit| *bit != b' ').map(|bit| bit - b'0').collect();
        bits.chunks(8)
            .map(|byte| (0..8).fold(0, |all, at| all << 1 | byte.get(at).unwrap_or(&1)))
            .collect()
    }

    #[test]
    fn every_pair_of_symbols_is_read_back() {
        for first in 0..=255 {
            for second in 0..=255 {
                let text = [first, second];
                assert_eq!(decoded(&encoded(&text)), Ok(text.to_vec()));
                let text = [b"a long run before".as_slice(), &text, b"and one after it"].concat();
                assert_eq!(decoded(&encoded(&text)), Ok(text));
            }
        }
    }

    #[test]
    fn the_examples_of_appendix_c_4() {
        let text = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(encoded(b"www.example.com"), text);
        assert_eq!(encoded(b"no-cache"), [0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]);
        assert!(encoded(b"").is_empty());
    }

    #[test]
    fn padding_is_at_most_seven_ones() {
        assert_eq!(decoded(&[]), Ok(vec![]));
        assert_eq!(decoded(&bytes("00011")), Ok(b"a".to_vec()));
        assert_eq!(decoded(&bytes("00011 110")), Err(Error::HuffmanPadding));
        assert_eq!(decoded(&bytes("00011 000")), Err(Error::HuffmanPadding));
        assert_eq!(decoded(&bytes("00011 111 11111111")), Err(Error::HuffmanPadding));
        assert_eq!(decoded(&[0xff]), Err(Error::HuffmanPadding));
        assert_eq!(decoded(&[0xff; 3]), Err(Error::HuffmanPadding));
        assert_eq!(
            decoded(&[&encoded(b"a run of text before the padding"), [0xff].as_slice()].concat()),
            Err(Error::HuffmanPadding)
        );
    }

    #[test]
    fn the_end_symbol_is_an_error_wherever_it_stands() {
        assert_eq!(decoded(&[0xff; 4]), Err(Error::HuffmanEos));
        assert_eq!(decoded(&[0xff; 64]), Err(Error::HuffmanEos));
        let eos = "111111111111111111111111111111";
        assert_eq!(decoded(&bytes(&format!("00011 {eos} 00011"))), Err(Error::HuffmanEos));
        assert_eq!(
            decoded(&bytes(&format!("{}{eos}{}", "00011".repeat(30), "00011".repeat(30)))),
            Err(Error::HuffmanEos)
        );
    }

    proptest! {
        #[test]
        fn text_is_read_back(text in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decoded(&encoded(&text)), Ok(text));
        }

        #[test]
        fn plain_text_is_read_back(text in "[ -~]{0,200}") {
            prop_assert_eq!(decoded(&encoded(text.as_bytes())), Ok(text.into_bytes()));
        }

        #[test]
        fn what_is_accepted_is_what_encoding_gives(src in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(text) = decoded(&src) {
                prop_assert_eq!(encoded(&text), src);
            }
        }
    }
}
