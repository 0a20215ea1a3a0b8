//! Where one RPC has been already.

use super::EndpointKey;

/// The endpoints that one RPC has tried already. Nothing is allocated for one that has tried none.
#[derive(Debug, Clone, Default)]
pub struct Tried(Vec<EndpointKey>);

impl Tried {
    /// None.
    pub const NONE: Tried = Tried(Vec::new());

    /// Remembers that `key` has been tried.
    pub fn insert(&mut self, key: EndpointKey) {
        if !self.contains(key) {
            self.0.push(key);
        }
    }

    /// Whether `key` has been tried.
    pub fn contains(&self, key: EndpointKey) -> bool {
        self.0.contains(&key)
    }

    /// How many have been tried.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing has been tried yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
