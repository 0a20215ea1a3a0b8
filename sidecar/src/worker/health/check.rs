//! Checks one endpoint, again and again, by calls of the sidecar's own.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use rand::{Rng, RngExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Checked;
use crate::balance::EndpointKey;
use crate::balance::health::{Finding, Lack};
use crate::connect::local::{Caller, Error, Heard};
use crate::health::{Ended, Mode, Pieces, Rpc, Settings};
use crate::http2::Reason;
use crate::route::ServiceKey;
use crate::worker::local::Local;
use crate::worker::run::Message;

/// Checks one endpoint, until it is stopped.
pub(super) struct Checker {
    pub(super) local: Local,
    /// One is held while an answer is waited for.
    pub(super) permits: Rc<Semaphore>,
    pub(super) service: ServiceKey,
    pub(super) endpoint: EndpointKey,
    pub(super) addr: SocketAddr,
    pub(super) authority: Authority,
    pub(super) settings: Arc<Settings>,
}

/// How far apart a server is heard that goes on talking: nobody reads it but us, so its own reader's pace holds it back by
/// nothing. What it said meanwhile comes as one piece, of which the last word counts.
const APART: Duration = Duration::from_millis(50);

/// The worker itself ended the call, since its connection drains. (A server's own REFUSED_STREAM does not come through.)
const TAKEN_BACK: Error = Error::Reset(Reason::REFUSED_STREAM);

/// How a `Watch` ended.
enum Watched {
    /// It is not served.
    Unimplemented,
    /// Of itself, or because nothing came.
    Ended {
        /// What that says.
        ended: Ended,
        /// Whether the stream had said something before.
        had_begun: bool,
    },
}

impl Checker {
    pub(super) async fn run(self) {
        let mut caller = self.local.checks(self.service, self.addr);
        let mut watches = self.settings.mode == Mode::Watch;
        // Those that came into use together are not checked together.
        tokio::time::sleep(before_the_first(self.settings.interval, &mut rand::rng())).await;
        loop {
            let began = tokio::time::Instant::now();
            if !caller.is_open() {
                caller = self.local.checks(self.service, self.addr);
            }
            let (ended, had_begun) = if watches {
                match self.watch(&caller).await {
                    Watched::Unimplemented => {
                        watches = false;
                        continue;
                    }
                    Watched::Ended { ended, had_begun } => (ended, had_begun),
                }
            } else {
                let _permit = self.permits.acquire().await;
                let asked = tokio::time::timeout(self.settings.timeout, self.check(&caller));
                let asked = asked.await.unwrap_or(Ended::Found(Finding::Failed(Lack::Silent)));
                (asked, false)
            };
            if let Ended::Found(found) = ended {
                self.tell(found);
            }
            let pause = until_the_next(self.settings.interval, &mut rand::rng());
            if had_begun || watches && matches!(ended, Ended::NotAsked) {
                // What a stream would have said since is not known: it is opened again soon.
                tokio::time::sleep(pause.min(Duration::from_secs(1))).await;
            } else {
                tokio::time::sleep_until(began + pause).await;
            }
        }
    }

    fn tell(&self, found: Finding) {
        self.local.tell(Message::Checked(Checked {
            service: self.service,
            endpoint: self.endpoint,
            found,
        }));
    }

    /// One question, one answer.
    async fn check(&self, caller: &Caller) -> Ended {
        let mut said = None;
        let mut pieces = Pieces::default();
        let answer = self.ask(caller, Rpc::Check, &mut pieces, |found| said = Some(found));
        match answer.await {
            Ok(()) => pieces.ended(said),
            Err(Error::Draining | Error::AfterEnd | TAKEN_BACK) => Ended::NotAsked,
            Err(Error::Reset(_) | Error::Closed) => Ended::Found(Finding::Failed(Lack::Failed)),
        }
    }

    /// Tells all that the stream says, until it ends, or does not begin in time.
    async fn watch(&self, caller: &Caller) -> Watched {
        let mut permit = self.permits.acquire().await.ok();
        let begun = CancellationToken::new();
        let mut pieces = Pieces::default();
        let answer = self.ask(caller, Rpc::Watch, &mut pieces, |found| {
            permit.take();
            begun.cancel();
            self.tell(found);
        });
        let late = async {
            tokio::time::sleep(self.settings.timeout).await;
            if begun.is_cancelled() {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            answer = answer => match answer {
                Ok(()) if pieces.is_unimplemented() => return Watched::Unimplemented,
                // It was served, and is not any more: what it said last is old.
                Ok(()) => match pieces.ended(None) {
                    Ended::Found(Finding::Alive) if begun.is_cancelled() => Ended::Found(Finding::Failed(Lack::Failed)),
                    ended => ended,
                },
                Err(Error::Draining | Error::AfterEnd | TAKEN_BACK) => Ended::NotAsked,
                Err(Error::Reset(_) | Error::Closed) => Ended::Found(Finding::Failed(Lack::Failed)),
            },
            () = late => Ended::Found(Finding::Failed(Lack::Silent)),
        };
        Watched::Ended {
            ended,
            had_begun: begun.is_cancelled(),
        }
    }

    /// Asks, and listens to the end of the answer.
    async fn ask(
        &self,
        caller: &Caller,
        rpc: Rpc,
        pieces: &mut Pieces,
        mut says: impl FnMut(Finding),
    ) -> Result<(), Error> {
        let head = rpc.head(&self.authority, self.settings.timeout);
        let call = caller.call(head, false).await?;
        match call.send(&self.settings.question(), true).await {
            // The answer may be there already.
            Ok(()) | Err(Error::AfterEnd | Error::Reset(_)) => {}
            Err(why) => return Err(why),
        }
        while let Some(heard) = call.next().await? {
            match heard {
                Heard::Head(head) => pieces.head(&head),
                Heard::Data(data) => {
                    if let Some(found) = pieces.data(&data) {
                        says(found);
                    }
                    if rpc == Rpc::Watch || pieces.is_odd() {
                        tokio::time::sleep(APART).await;
                    }
                }
                Heard::Trailers(trailers) => pieces.trailers(&trailers),
            }
        }
        Ok(())
    }
}

/// How long the first check waits.
fn before_the_first(interval: Duration, rng: &mut impl Rng) -> Duration {
    interval
        .min(Duration::from_secs(1))
        .mul_f64(rng.random_range(0.0..=0.25))
}

/// The time from one check to the next: the interval at most, or an endpoint that does not serve would be called for longer.
fn until_the_next(interval: Duration, rng: &mut impl Rng) -> Duration {
    interval.mul_f64(rng.random_range(0.9..=1.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn checks_are_never_further_apart_than_the_interval_and_not_in_step() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        for interval in [Duration::from_millis(100), Duration::from_secs(5)] {
            let mut pauses: Vec<_> = (0..1_000).map(|_| until_the_next(interval, &mut rng)).collect();
            pauses.sort_unstable();
            let (shortest, longest) = (pauses[0], pauses[999]);
            assert!(
                shortest >= interval * 9 / 10 && longest <= interval,
                "{shortest:?} to {longest:?}"
            );
            assert!(longest - shortest > interval / 11, "{shortest:?} to {longest:?}");
            let first = (0..1_000).map(|_| before_the_first(interval, &mut rng)).max();
            assert!(first.is_some_and(|first| first <= interval.min(Duration::from_secs(1)) / 4));
        }
    }
}
