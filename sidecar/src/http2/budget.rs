//! The budget: how much memory the connections of one worker may take.

/// What one worker may keep for its connections, in bytes.
///
/// Credit cannot be taken back, so it is reserved when it is given; the memory of what is held is counted while it is: not
/// its bytes, or a peer could make each stream hold one byte more than fits a chunk. Credit may take half at most:
/// connections that were busy once and hold nothing must not keep new calls out.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: u64,
    reserved: u64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Budget {
        Budget {
            limit,
            used: 0,
            reserved: 0,
        }
    }

    /// Reserves `n` bytes for credit, if they fit.
    pub fn reserve(&mut self, n: u64) -> bool {
        let fits = self.used + n <= self.limit && self.reserved + n <= self.limit / 2;
        if fits {
            self.used += n;
            self.reserved += n;
        }
        fits
    }

    /// Gives `n` reserved bytes back: the credit was used.
    pub fn unreserve(&mut self, n: u64) {
        debug_assert!(n <= self.reserved, "more given back than reserved");
        self.reserved = self.reserved.saturating_sub(n);
        self.release(n);
    }

    /// Counts `n` bytes that are here already, whether they fit or not.
    pub fn add(&mut self, n: u64) {
        self.used += n;
    }

    /// Gives `n` bytes back.
    pub fn release(&mut self, n: u64) {
        debug_assert!(n <= self.used, "more given back than taken");
        self.used = self.used.saturating_sub(n);
    }

    /// Whether nothing more fits.
    pub fn is_spent(&self) -> bool {
        self.used >= self.limit
    }

    /// Whether so much is in use that somebody has to go. (Of streams that are open already, more may come than fits.)
    pub fn is_overdrawn(&self) -> bool {
        self.used > self.limit + self.limit / 8
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that may be in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_reserves_nothing() {
        let mut budget = Budget::new(100);
        budget.add(60);
        assert!(budget.reserve(30));
        assert!(!budget.reserve(11));
        budget.add(10);
        assert!(budget.is_spent() && !budget.is_overdrawn());
        budget.add(20);
        assert!(budget.is_overdrawn());
        budget.release(90);
        budget.unreserve(30);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn credit_never_takes_more_than_half() {
        let mut budget = Budget::new(100);
        assert!(budget.reserve(50));
        assert!(!budget.reserve(1));
        budget.unreserve(10);
        assert!(budget.reserve(10));
    }
}
