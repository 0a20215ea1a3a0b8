//! Bytes that are known to belong to one stream and one place in it: a foreign byte is known at once.

/// The bytes of one direction of one stream.
#[derive(Clone, Debug)]
pub struct Bytes {
    seed: u64,
    at: u64,
}

impl Bytes {
    /// The bytes that `seed` stands for, from the first.
    pub fn new(seed: u64) -> Bytes {
        Bytes { seed, at: 0 }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(n + 8);
        while bytes.len() < n {
            let word = self.word().to_le_bytes();
            let rest = &word[(self.at & 7) as usize..];
            let now = rest.len().min(n - bytes.len());
            bytes.extend_from_slice(&rest[..now]);
            self.at += now as u64;
        }
        bytes
    }

    /// Checks that `bytes` are the next ones.
    ///
    /// # Panics
    /// When they are not: a byte was lost, or belongs to another stream.
    pub fn check(&mut self, bytes: &[u8]) {
        let from = self.at;
        let expected = self.take(bytes.len());
        if let Some(wrong) = expected.iter().zip(bytes).position(|(a, b)| a != b) {
            panic!("byte {} of stream {:#x} is not its own", from + wrong as u64, self.seed);
        }
    }

    /// How many bytes there were.
    pub fn count(&self) -> u64 {
        self.at
    }

    /// The eight bytes around where we are.
    fn word(&self) -> u64 {
        let mut x = self.seed ^ (self.at >> 3).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}
