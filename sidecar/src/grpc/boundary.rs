//! Where one message ends and the next begins: five bytes say how long each is (gRPC's `doc/PROTOCOL-HTTP2.md`).

/// How far one direction of a call is through its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Payload bytes of the message that are still to come.
    left: u32,
    /// How many of a prefix's five bytes came.
    prefix: u8,
    /// The length, as far as its bytes came.
    length: u32,
    messages: u32,
}

impl Boundary {
    /// A number that is another one, as good as always, once more bytes were followed.
    pub fn mark(&self) -> u64 {
        u64::from(self.messages) << 32 | u64::from(self.left ^ self.length << 3 ^ u32::from(self.prefix) << 29)
    }

    /// Follows `bytes` of the stream.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = bytes.len().min(self.left as usize);
                self.left -= n as u32;
                bytes = &bytes[n..];
                continue;
            }
            if self.prefix == 0
                && let Some((prefix, rest)) = bytes.split_first_chunk::<5>()
            {
                self.left = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
                self.messages = self.messages.saturating_add(1);
                bytes = rest;
                continue;
            }
            if self.prefix > 0 {
                self.length = self.length << 8 | bytes[0] as u32;
            }
            self.prefix += 1;
            bytes = &bytes[1..];
            if self.prefix == 5 {
                self.left = std::mem::take(&mut self.length);
                self.prefix = 0;
                self.messages = self.messages.saturating_add(1);
            }
        }
    }

    /// Whether the next byte would begin a message.
    pub fn is_between_messages(&self) -> bool {
        self.left == 0 && self.prefix == 0
    }

    /// Whether a message is whole.
    pub fn has_whole(&self) -> bool {
        self.messages > 1 || (self.messages == 1 && self.is_between_messages())
    }

    /// Messages that began.
    pub fn messages(&self) -> u32 {
        self.messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let mut stream = Vec::new();
        for len in [0u32, 1, 300, 70_000] {
            stream.push(0);
            stream.extend_from_slice(&len.to_be_bytes());
            stream.resize(stream.len() + len as usize, 7);
        }
        for cut in [1, 2, 3, 4, 5, 6, 7, 1_000, stream.len()] {
            let mut boundary = Boundary::default();
            let mut ends = 0;
            for piece in stream.chunks(cut) {
                boundary.follow(piece);
                ends += boundary.is_between_messages() as usize;
            }
            assert_eq!(boundary.messages(), 4, "cut every {cut}");
            assert!(boundary.is_between_messages() && ends > 0);
        }
    }

    #[test]
    fn inside_a_prefix_or_a_message_is_not_between() {
        let mut boundary = Boundary::default();
        boundary.follow(&[0, 0, 0]);
        assert!(!boundary.is_between_messages());
        boundary.follow(&[0, 2, 9]);
        assert!(!boundary.is_between_messages());
        boundary.follow(&[9]);
        assert!(boundary.is_between_messages());
    }
}
