//! How many streams one workload may follow by: what each of them follows is kept for it.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cluster::Name;

/// Streams that one workload may have. A sidecar has one, and for a while a second after it lost the first; with one more the
/// oldest ends.
const MOST_STREAMS: usize = 8;

/// Who follows.
#[derive(Debug, Default)]
pub struct Followers(Mutex<HashMap<Name, VecDeque<Stream>>>);

#[derive(Debug)]
struct Stream {
    id: u64,
    room: CancellationToken,
}

/// A stream, counted until it is dropped.
#[derive(Debug)]
pub struct Place<'f> {
    followers: &'f Followers,
    workload: Name,
    id: u64,
    /// Cancelled when it must make room.
    pub room: CancellationToken,
}

impl Followers {
    /// One more stream of a workload begins.
    pub fn begin(&self, workload: &Name) -> Place<'_> {
        let mut all = self.0.lock();
        let streams = all.entry(workload.clone()).or_default();
        let id = streams.back().map_or(0, |last| last.id + 1);
        if streams.len() >= MOST_STREAMS
            && let Some(oldest) = streams.pop_front()
        {
            oldest.room.cancel();
        }
        let room = CancellationToken::new();
        streams.push_back(Stream { id, room: room.clone() });
        Place {
            followers: self,
            workload: workload.clone(),
            id,
            room,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.followers.0.lock();
        if let Some(streams) = all.get_mut(&self.workload) {
            // A number comes again where nobody has it any more.
            streams.retain(|stream| stream.id != self.id || self.room.is_cancelled());
            if streams.is_empty() {
                all.remove(&self.workload);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_too_many_streams_of_one_workload_ends() {
        let followers = Followers::default();
        let (greedy, other) = (Name::new("shop", "greedy"), Name::new("shop", "other"));
        let alone = followers.begin(&other);
        let many: Vec<_> = (0..12).map(|_| followers.begin(&greedy)).collect();
        let ended = many.iter().filter(|place| place.room.is_cancelled()).count();
        assert_eq!(ended, 12 - MOST_STREAMS);
        assert!(
            many[..ended].iter().all(|place| place.room.is_cancelled()),
            "the oldest end"
        );
        assert!(!alone.room.is_cancelled());
        drop((many, alone));
        assert!(followers.0.lock().is_empty());
    }
}
