//! Our certificates: asked for by the join token at first, by the certificate that we have later, before it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use rand::RngExt;
use tokio::time::{Instant, sleep};
use tonic::Code;
use tracing::{info, warn};

use super::Wall;
use super::ask::{Certified, Failed, Proof, ask};
use super::holder::{Current, Holder, Source, serves};
use super::pace::{Came, Pace};
use super::reach::{Controls, Nobody};
use super::settings::Settings;
use super::status::{Certificate, Shown};
use super::token::{NoToken, Token};
use crate::identity::{Next, Renewal};
use crate::words::words;

/// How often the clock, the file of the token, and what there is to do are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The same while there is no certificate and no token.
const LOOK_FOR_TOKEN: Duration = Duration::from_millis(500);
/// From one certificate to the next question, whatever its life is.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// After so much time without a word of disbelief the next one is a new one.
const BELIEVED: Duration = Duration::from_secs(5 * 60);
/// So much more or less than went by on the steady clock means that the wall clock was set.
const SET: Duration = Duration::from_secs(5);

words! {
    /// What came of asking for a certificate.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Outcome, as_str {
        /// There is one.
        Certified = "certified",
        /// There is no join token to ask with. Counted once, until that changes.
        NoToken = "no_token",
        /// What is in the token's file is no join token. Counted once, until that changes.
        BadToken = "bad_token",
        /// Control cannot be reached. Counted once, until that changes.
        Unreachable = "unreachable",
        /// The token, or the certificate, proves nothing (UNAUTHENTICATED).
        Unproven = "unproven",
        /// The workload is gone, or is somebody else (PERMISSION_DENIED).
        Denied = "denied",
        /// Too many attempts (RESOURCE_EXHAUSTED).
        Limited = "limited",
        /// Control failed in another way, or not in time, or the connection broke.
        Failed = "failed",
        /// The answer cannot be used.
        Unusable = "unusable",
    }
}

impl Outcome {
    fn of(failed: &Failed) -> Outcome {
        match (failed, failed.code()) {
            (Failed::NoToken(NoToken::NotAToken(_)), _) => Outcome::BadToken,
            (Failed::NoToken(NoToken::NotGiven | NoToken::Unreadable { .. } | NoToken::NotAFile(_)), _) => {
                Outcome::NoToken
            }
            (Failed::Unreached(_) | Failed::Resting, _) => Outcome::Unreachable,
            (_, Some(Code::Unauthenticated)) => Outcome::Unproven,
            (_, Some(Code::PermissionDenied)) => Outcome::Denied,
            (_, Some(Code::ResourceExhausted)) => Outcome::Limited,
            (Failed::Status(_) | Failed::Late(_) | Failed::Key(_), _) => Outcome::Failed,
            (Failed::Answer(_) | Failed::Unusable(_) | Failed::Clock, _) => Outcome::Unusable,
        }
    }
}

/// How often what came of it.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; Outcome::ALL.len()]);

impl Counts {
    fn add(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL
            .into_iter()
            .zip(self.0.iter().map(|count| count.load(Relaxed)))
    }
}

/// The task.
pub(super) struct Certifying {
    pub(super) controls: Controls,
    pub(super) settings: Arc<Settings>,
    pub(super) holder: Arc<Holder>,
    pub(super) status: Shown,
    pub(super) counts: Arc<Counts>,
    pub(super) wall: Wall,
}

impl Certifying {
    /// Certifies for as long as the process lives.
    pub(super) async fn run(mut self) {
        let mut renewal = Renewal::of_none(luck());
        let mut clock = Clock::new((self.wall)());
        // Control may have lost its belief in the certificate that we have; then the token must do.
        let mut by_token = false;
        let mut urged = Urged::new();
        loop {
            let wall = (self.wall)();
            clock.look(wall);
            self.show(wall, Why::Same);
            let next = if urged.may(Instant::now()) && self.holder.take_disbelief() {
                warn!("control does not believe our certificate any more; asking by the join token");
                by_token = true;
                urged.asks(Instant::now());
                Next::Ask
            } else {
                renewal.next(self.within_life(wall), Instant::now().into_std())
            };
            let wait = match next {
                Next::LookAgain(wait) => wait.min(LOOK),
                Next::Ask => match self.certify(by_token).await {
                    Ok(certified) => {
                        let next = self.take(certified);
                        renewal.renewed(next, self.within_life((self.wall)()), Instant::now().into_std());
                        by_token = false;
                        // Whatever life it has: nobody is asked without end.
                        LEAST_PAUSE
                    }
                    Err(failed) => {
                        by_token = match (Outcome::of(&failed), failed.code()) {
                            (_, Some(Code::Unavailable)) => by_token,
                            (Outcome::Unreachable | Outcome::Limited, _) => by_token,
                            (Outcome::NoToken | Outcome::BadToken | Outcome::Certified, _) => false,
                            (Outcome::Unproven | Outcome::Denied | Outcome::Failed | Outcome::Unusable, _) => !by_token,
                        };
                        self.failed(failed, &mut renewal)
                    }
                },
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.holder.disbelief(), if urged.may(Instant::now()) => {}
            }
        }
    }

    /// One attempt, by the certificate that we have where that serves; and once more by the token, where control does not
    /// believe it.
    async fn certify(&mut self, by_token: bool) -> Result<Certified, Failed> {
        let wall = (self.wall)();
        let held = self
            .holder
            .held()
            .filter(|held| !by_token && serves(&held.credential, wall));
        let Some(held) = held else {
            let token = Token::read(self.settings.join_token.as_deref())?;
            return self.request(Proof::Token(token), None).await;
        };
        let renewed = self
            .request(Proof::Certificate(held.workload.clone()), Some(&held))
            .await;
        match renewed {
            Err(failed) if matches!(failed.code(), Some(Code::Unauthenticated | Code::PermissionDenied)) => {
                let Ok(token) = Token::read(self.settings.join_token.as_deref()) else {
                    return Err(failed);
                };
                warn!(why = %failed, "the certificate is not renewed; asking by the join token");
                self.counts.add(Outcome::of(&failed));
                self.controls.forgive();
                self.request(Proof::Token(token), None).await
            }
            other => other,
        }
    }

    async fn request(&mut self, proof: Proof, held: Option<&Current>) -> Result<Certified, Failed> {
        let trust = self.holder.trust().bundle;
        let until = Instant::now() + LOOK;
        let credential = held.map(|held| &held.credential);
        let reached = self.controls.reach(&trust, credential, until).await;
        let reached = reached.map_err(|nobody| match nobody {
            Nobody::Because(why) => Failed::Unreached(why),
            Nobody::Resting => Failed::Resting,
        })?;
        let within = self.settings.answer_timeout;
        let (asked, trust) = (Instant::now(), self.holder.trust());
        let certified = match ask(reached.channel, proof, &trust, within).await {
            Ok(certified) if !serves(&certified.credential, (self.wall)()) => {
                // It is kept: once the clock is right, it serves.
                self.take(certified);
                Err(Failed::Clock)
            }
            other => other,
        };
        let came = match &certified {
            Ok(_) => Came::Left,
            Err(failed) => {
                self.controls.says_no(reached.addr, failed.to_string());
                failed.came(asked.elapsed(), held.is_none())
            }
        };
        self.controls.came(reached.addr, came);
        certified
    }

    /// Uses what was certified from now on, unless it does not serve and what is held does.
    fn take(&mut self, certified: Certified) -> Renewal {
        let wall = (self.wall)();
        let Certified {
            credential,
            roots,
            bundle,
            brought,
            workload,
        } = certified;
        let renewal = Renewal::of(credential.not_before(), credential.not_after(), luck());
        if serves(&credential, wall) {
            self.counts.add(Outcome::Certified);
            let seconds = credential
                .not_after()
                .duration_since(wall)
                .unwrap_or_default()
                .as_secs();
            info!(identity = %credential.id(), workload = ?workload, seconds, "certified");
        }
        // By a clock that is wrong, here or there, one that serves would be given away for one that does not.
        let held_serves = self.holder.held().is_some_and(|held| serves(&held.credential, wall));
        match self.holder.believe(roots, bundle, Source::Answer { brought }, wall) {
            Ok(true) => info!("the trust bundle changed"),
            Ok(false) => {}
            Err(why) => warn!(%why, "the trust bundle cannot be used"),
        }
        if (serves(&credential, wall) || !held_serves)
            && let Err(why) = self.holder.hold(credential, workload, wall)
        {
            warn!(%why, "the certificate cannot be used");
        }
        self.show(wall, Why::Gone);
        renewal
    }

    /// Says so, and how long to wait.
    fn failed(&mut self, failed: Failed, renewal: &mut Renewal) -> Duration {
        let wall = (self.wall)();
        let outcome = Outcome::of(&failed);
        if let Failed::Resting = failed {
            // That took its time already, and the reason is known.
            return Duration::ZERO;
        }
        let is_news = self.show(wall, Why::New(&failed.to_string()));
        let is_request = !matches!(outcome, Outcome::NoToken | Outcome::BadToken | Outcome::Unreachable);
        if is_request || is_news {
            self.counts.add(outcome);
        }
        if is_news {
            warn!(why = %failed, "there is no new certificate");
        }
        match outcome {
            Outcome::NoToken | Outcome::BadToken => LOOK_FOR_TOKEN,
            // That took its time already.
            Outcome::Unreachable => Duration::ZERO,
            // Control says by its pace when to ask again: our `Workload` may be about to be written.
            Outcome::Unproven if !self.holder.held().is_some_and(|held| serves(&held.credential, wall)) => {
                LOOK_FOR_TOKEN
            }
            _ => {
                renewal.failed(Instant::now().into_std());
                LOOK_FOR_TOKEN
            }
        }
    }

    /// The wall clock, where our certificate serves by it moved into the certificate's life: an issuer's clock that is a
    /// moment ahead is no reason to ask again at once.
    fn within_life(&self, wall: SystemTime) -> SystemTime {
        match self.holder.held().map(|held| held.credential) {
            Some(held) if serves(&held, wall) => wall.max(held.not_before()).min(held.not_after()),
            _ => wall,
        }
    }

    /// Shows how things stand. Whether that is news.
    fn show(&self, wall: SystemTime, why: Why<'_>) -> bool {
        let why: Option<Arc<str>> = match (why, self.status.now().certificate) {
            (Why::New(why), _) => Some(why.into()),
            (Why::Gone, _) => None,
            (Why::Same, Certificate::None { why } | Certificate::Over { why, .. }) => Some(why),
            (Why::Same, Certificate::Valid { overdue, .. }) => overdue,
        };
        self.holder.look(wall);
        let held = self.holder.held();
        let unsaid = || "its life ended before another came".into();
        let certificate = match held {
            None => Certificate::None {
                why: why.unwrap_or_else(|| "none was asked for yet".into()),
            },
            Some(held) => {
                let (id, expires) = (held.credential.id().clone(), held.credential.not_after());
                if serves(&held.credential, wall) {
                    let overdue = why;
                    Certificate::Valid { id, expires, overdue }
                } else {
                    let why = why.unwrap_or_else(unsaid);
                    Certificate::Over { id, expires, why }
                }
            }
        };
        self.status.certificate(certificate)
    }
}

/// When control, which does not believe our certificate, may be asked for another before that is due.
struct Urged(Pace);

impl Urged {
    fn new() -> Urged {
        Urged(Pace::new(Instant::now()))
    }

    fn may(&self, now: Instant) -> bool {
        self.0.not_before() <= now
    }

    /// Those who are believed for a while, and then not, are not those who never are.
    fn asks(&mut self, now: Instant) {
        if now.duration_since(self.0.not_before()) > BELIEVED {
            self.0 = Pace::new(now);
        }
        self.0.came(Came::Failed, now);
    }
}

/// Why there is no new certificate.
enum Why<'a> {
    /// For the reason that was shown before, if there is one.
    Same,
    /// For no reason: there is one.
    Gone,
    /// For this reason.
    New(&'a str),
}

/// From -1 to 1: when exactly a certificate is renewed.
fn luck() -> f64 {
    rand::rng().random_range(-1.0..1.0)
}

/// The wall clock beside the steady one.
struct Clock {
    wall: SystemTime,
    steady: Instant,
}

impl Clock {
    fn new(wall: SystemTime) -> Clock {
        Clock {
            wall,
            steady: Instant::now(),
        }
    }

    /// Says when the wall clock was set. Nothing else is done: everything here is decided anew at each look.
    fn look(&mut self, wall: SystemTime) {
        let before = std::mem::replace(self, Clock::new(wall));
        let went_by = self.steady - before.steady;
        match wall.duration_since(before.wall) {
            Ok(ahead) if ahead > went_by + SET => {
                warn!(seconds = (ahead - went_by).as_secs(), "the clock was set forward");
            }
            Ok(_) => {}
            Err(back) if back.duration() > SET => {
                warn!(seconds = back.duration().as_secs(), "the clock was set back");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luck_is_spread_over_all_that_it_may_be() {
        let drawn: Vec<_> = (0..400).map(|_| luck()).collect();
        assert!(drawn.iter().all(|luck| (-1.0..=1.0).contains(luck)), "{drawn:?}");
        // That a quarter of all that it may be is never drawn is as good as impossible.
        for from in [-1.0, -0.5, 0.0, 0.5] {
            let is_within = |luck: &f64| (from..from + 0.5).contains(luck);
            assert!(drawn.iter().any(is_within), "none from {from} on: {drawn:?}");
        }
    }
}
