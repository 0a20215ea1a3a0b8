//! Messages whose every byte follows from a number, so that a lost, foreign or repeated byte is known at once.

use std::sync::LazyLock;

/// Bytes of a unary message, as the benchmark's rows say.
pub(crate) const UNARY: usize = 100;
/// Bytes of a unary message on the wire: gRPC's prefix, then the message.
pub(crate) const UNARY_FRAMED: usize = PREFIX + UNARY;
/// Bytes of one message of a bulk stream.
pub(crate) const BULK: usize = 16 << 10;
/// Bytes of such a message on the wire.
pub(crate) const BULK_FRAMED: usize = PREFIX + BULK;

/// The unary message of this sequence number, framed.
pub(crate) fn unary(sequence: u64) -> [u8; UNARY_FRAMED] {
    let mut framed = [0; UNARY_FRAMED];
    framed[..PREFIX].copy_from_slice(&prefix(UNARY));
    framed[PREFIX..PREFIX + 8].copy_from_slice(&sequence.to_le_bytes());
    let mut state = sequence;
    for word in framed[PREFIX + 8..].chunks_mut(8) {
        state = mix(state);
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    framed
}

/// A message of the bytes given, framed.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&prefix(message.len()), message].concat()
}

/// A bulk stream is one long sequence of framed messages; this walks through it, to write it or to check it.
#[derive(Clone, Debug)]
pub(crate) struct BulkBytes {
    seed: u64,
    position: u64,
}

impl BulkBytes {
    pub(crate) fn new(seed: u64) -> BulkBytes {
        BulkBytes { seed, position: 0 }
    }

    /// How many bytes have been written or checked.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Appends the next `len` bytes of the stream.
    pub(crate) fn write(&mut self, len: usize, out: &mut Vec<u8>) {
        self.walk(len, |_, piece| {
            out.extend_from_slice(piece);
            true
        });
    }

    /// Whether these are the next bytes of the stream.
    pub(crate) fn check(&mut self, bytes: &[u8]) -> bool {
        self.walk(bytes.len(), |at, piece| &bytes[at..at + piece.len()] == piece)
    }

    /// Shows the next `len` bytes piece by piece, each with its place among them.
    fn walk(&mut self, len: usize, mut show: impl FnMut(usize, &[u8]) -> bool) -> bool {
        let mut done = 0;
        while done < len {
            let index = self.position / BULK_FRAMED as u64;
            let within = (self.position % BULK_FRAMED as u64) as usize;
            let mut head = [0; HEAD];
            head[..PREFIX].copy_from_slice(&prefix(BULK));
            head[PREFIX..PREFIX + 8].copy_from_slice(&self.seed.to_le_bytes());
            head[PREFIX + 8..].copy_from_slice(&index.to_le_bytes());
            let body = || {
                let from = (mix(self.seed ^ index) % SHIFTS as u64) as usize;
                &NOISE[from..from + BULK_FRAMED - HEAD]
            };
            let rest = if within < HEAD {
                &head[within..]
            } else {
                &body()[within - HEAD..]
            };
            let piece = &rest[..rest.len().min(len - done)];
            if !show(done, piece) {
                return false;
            }
            done += piece.len();
            self.position += piece.len() as u64;
        }
        true
    }
}

/// The finalizer of splitmix64.
pub(crate) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn prefix(len: usize) -> [u8; PREFIX] {
    let [a, b, c, d] = (len as u32).to_be_bytes();
    [0, a, b, c, d]
}

/// gRPC's: a flag and a length.
const PREFIX: usize = 5;
/// Prefix, seed and index of a bulk message; noise follows.
const HEAD: usize = PREFIX + 16;
/// In how many ways the noise of a message may be shifted.
const SHIFTS: usize = 4_096;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..((BULK + SHIFTS) / 8) as u64)
        .flat_map(|n| mix(n).to_le_bytes())
        .collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_checks_in_other_pieces_than_it_was_written_in() {
        let mut bytes = Vec::new();
        let mut writer = BulkBytes::new(7);
        for len in [1, 5, 16_384, 40_000, 3] {
            writer.write(len, &mut bytes);
        }
        let mut checker = BulkBytes::new(7);
        assert!(bytes.chunks(1_000).all(|piece| checker.check(piece)));
        assert_eq!(checker.position(), writer.position());
    }

    #[test]
    fn one_wrong_byte_or_another_stream_is_noticed() {
        let mut bytes = Vec::new();
        BulkBytes::new(7).write(40_000, &mut bytes);
        assert!(!BulkBytes::new(8).check(&bytes));
        for place in [0, 4, 6, 15, 30, 20_000, 39_999] {
            let mut wrong = bytes.clone();
            wrong[place] ^= 1;
            assert!(!BulkBytes::new(7).check(&wrong), "byte {place}");
        }
        assert_ne!(unary(1), unary(2));
    }
}
