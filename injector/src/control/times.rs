//! Times: as people read them, and as they pass.

use std::time::{Instant, SystemTime};

/// A time of the wall clock, for people.
pub fn date(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "never".to_owned(), |time| time.to_string())
}

/// Now, by a clock that nobody turns but tests.
pub fn moment() -> Instant {
    tokio::time::Instant::now().into_std()
}
