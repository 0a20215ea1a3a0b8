//! Whether all is as it must be, and if not, what is missing: conditions, each with a sentence.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The conditions of something: of being ready, or of being alive. It is so when each is met.
#[derive(Debug, Default)]
pub struct Conditions {
    /// For each condition, what is missing.
    conditions: Mutex<BTreeMap<&'static str, Option<String>>>,
}

impl Conditions {
    /// None, so that all are met until somebody names one.
    pub fn new() -> Arc<Conditions> {
        Arc::default()
    }

    /// Names a condition, which `missing` describes in a sentence for as long as it is not met.
    pub fn condition(self: &Arc<Self>, name: &'static str, missing: impl Into<String>) -> Condition {
        let condition = Condition { of: self.clone(), name };
        condition.unmet(missing);
        condition
    }

    /// What is missing; nothing when all are met.
    pub fn missing(&self) -> Vec<String> {
        self.conditions.lock().values().flatten().cloned().collect()
    }
}

/// One condition, for whoever knows whether it is met.
#[derive(Clone, Debug)]
pub struct Condition {
    of: Arc<Conditions>,
    name: &'static str,
}

impl Condition {
    /// The condition is met.
    pub fn met(&self) {
        self.of.conditions.lock().insert(self.name, None);
    }

    /// The condition is not met, or no longer.
    pub fn unmet(&self, missing: impl Into<String>) {
        self.of.conditions.lock().insert(self.name, Some(missing.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_is_missing_and_what_is_missing_is_said() {
        let readiness = Conditions::new();
        assert!(readiness.missing().is_empty());
        let rules = readiness.condition("redirect", "the redirect rules are missing");
        let workers = readiness.condition("workers", "the workers do not listen yet");
        assert_eq!(
            readiness.missing(),
            ["the redirect rules are missing", "the workers do not listen yet"]
        );
        workers.met();
        rules.unmet("the redirect rules lead elsewhere");
        assert_eq!(readiness.missing(), ["the redirect rules lead elsewhere"]);
        rules.met();
        assert!(readiness.missing().is_empty());
    }
}
