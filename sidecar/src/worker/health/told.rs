//! What the log says once of a service, by whichever worker sees it first.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

/// The most services that are remembered for one sentence. Of those beyond, it is not said.
const MOST: usize = 10_000;

/// What has been said, and of whom.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<&'static str, HashSet<String>>>);

impl Told {
    /// Whether `what` is to be said of the service: it never was before.
    pub(super) fn first(&self, service: &str, what: &'static str) -> bool {
        let mut told = self.0.lock();
        let services = told.entry(what).or_default();
        services.len() < MOST && !services.contains(service) && services.insert(service.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sentence_is_said_once_of_each_service() {
        let told = Told::default();
        assert!(told.first("a:1", "it lives") && told.first("b:1", "it lives") && told.first("a:1", "it is gone"));
        assert!(!told.first("a:1", "it lives") && !told.first("a:1", "it is gone"));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let told = Told::default();
        let said = (0..MOST + 10).filter(|number| told.first(&number.to_string(), "it lives"));
        assert_eq!(said.count(), MOST);
    }
}
