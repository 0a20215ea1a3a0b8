//! How the streams that ended lately ended: what judges a frame that comes late (RFC 9113, 5.1, "closed").

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Both sides said END_STREAM.
    EndStream,
    /// The peer reset it.
    TheirReset,
    /// We reset it: what was under way is to be ignored.
    OurReset,
}

/// Streams remembered. Who asks for an older one is answered as if we had reset it, which harms nobody.
const REMEMBERED: usize = 32;

/// The last streams that ended.
#[derive(Default)]
pub(crate) struct Closed {
    ring: Vec<(u32, How)>,
    next: u8,
    /// Whether some were forgotten.
    forgot: bool,
}

impl Closed {
    #[inline(always)]
    pub(crate) fn remember(&mut self, id: u32, how: How) {
        if self.ring.len() < REMEMBERED {
            self.ring.push((id, how));
            return;
        }
        self.forgot = true;
        if let Some(oldest) = self.ring.get_mut(usize::from(self.next)) {
            *oldest = (id, how);
        }
        self.next += 1;
        if usize::from(self.next) == REMEMBERED {
            self.next = 0;
        }
    }

    /// How `id` ended; `None` if it never was a stream.
    pub(crate) fn how(&self, id: u32) -> Option<How> {
        let remembered = self.ring.iter().find(|(closed, _)| *closed == id).map(|(_, how)| *how);
        remembered.or(self.forgot.then_some(How::OurReset))
    }
}
