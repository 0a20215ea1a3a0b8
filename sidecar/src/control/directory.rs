//! What is followed, and the newest that is known of it: each subject once, however many want it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::settings::Settings;
use super::wire::{self, Refused};
use crate::route::{Known, Policy, Subject};

/// How often is looked for what nobody wants any more.
const SWEEP: Duration = Duration::from_secs(1);

/// Why a subject cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{max} names and addresses are followed already, the most that is allowed")]
pub struct Full {
    /// How many may be.
    pub max: usize,
}

/// Where services live: a handle that any thread may use.
#[derive(Clone)]
pub struct Directory(Arc<Shared>);

struct Shared {
    max_subjects: usize,
    max_endpoints: usize,
    linger: Duration,
    followed: Mutex<Followed>,
    news: Notify,
}

#[derive(Default)]
struct Followed {
    subjects: HashMap<Subject, One>,
    /// How many endpoints are known in all.
    endpoints: usize,
    /// While there is a stream: what began or ended to be followed and control was not told yet.
    untold: Option<HashSet<Subject>>,
}

struct One {
    known: watch::Sender<Arc<Known>>,
    /// Since when nobody wants it.
    idle: Option<Instant>,
    /// Why the newest answer was not taken.
    refused: Option<Refused>,
}

/// What came of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It is something else than before.
    News,
    /// It is what was known.
    Same,
    /// Nobody follows this, or not any more.
    NotFollowed,
    /// It cannot be taken; what was known stays. Nothing when that is what was said of the answer before.
    Refused(Option<Refused>),
}

/// What control is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Subscribe(Subject),
    Unsubscribe(Subject),
}

impl Directory {
    pub(super) fn new(settings: &Settings) -> Directory {
        Directory(Arc::new(Shared {
            max_subjects: settings.max_subjects,
            max_endpoints: settings.max_endpoints,
            linger: settings.linger,
            followed: Mutex::default(),
            news: Notify::new(),
        }))
    }

    /// Follows a subject from now on, until the last receiver is gone and some seconds have passed. The receiver has what
    /// is known already; [`Known::Pending`] when nobody followed it yet. What no mesh can know, such as a name of more than
    /// 253 bytes, is outside of it, and control is not asked.
    ///
    /// # Errors
    /// When as much is followed as may be.
    pub fn follow(&self, subject: Subject) -> Result<watch::Receiver<Arc<Known>>, Full> {
        let Some(subject) = wire::askable(subject) else {
            let outside = Known::Outside(Arc::new(Policy::default()));
            return Ok(watch::channel(Arc::new(outside)).1);
        };
        let mut followed = self.0.followed.lock();
        if let Some(one) = followed.subjects.get_mut(&subject) {
            one.idle = None;
            return Ok(one.known.subscribe());
        }
        let max = self.0.max_subjects;
        if followed.subjects.len() >= max {
            return Err(Full { max });
        }
        let (known, receiver) = watch::channel(Arc::default());
        let one = One {
            known,
            idle: None,
            refused: None,
        };
        followed.subjects.insert(subject.clone(), one);
        if let Some(untold) = &mut followed.untold {
            untold.insert(subject);
            self.0.news.notify_one();
        }
        Ok(receiver)
    }

    /// How many subjects are followed.
    pub fn len(&self) -> usize {
        self.0.followed.lock().subjects.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A stream begins: everything that is followed. From now on changes are noted.
    pub(super) fn begin(&self) -> HashSet<Subject> {
        let mut followed = self.0.followed.lock();
        followed.untold = Some(HashSet::new());
        followed.subjects.keys().cloned().collect()
    }

    /// The stream ended.
    pub(super) fn end(&self) {
        self.0.followed.lock().untold = None;
    }

    /// Waits until there is something to tell.
    pub(super) async fn news(&self) {
        self.0.news.notified().await;
    }

    /// What control is to be told, who was told that we follow `told`. What is given up comes first: control bounds how much
    /// one sidecar follows, at any moment.
    pub(super) fn to_tell(&self, told: &mut HashSet<Subject>) -> Vec<Tell> {
        let mut followed = self.0.followed.lock();
        let Followed { subjects, untold, .. } = &mut *followed;
        let changed = untold.as_mut().map(std::mem::take).unwrap_or_default();
        let tell = |subject: Subject| match (subjects.contains_key(&subject), told.contains(&subject)) {
            (true, false) => {
                told.insert(subject.clone());
                Some(Tell::Subscribe(subject))
            }
            (false, true) => {
                told.remove(&subject);
                Some(Tell::Unsubscribe(subject))
            }
            // What control said of it was forgotten in between, or had no room: it is told once more.
            (true, true) => Some(Tell::Subscribe(subject)),
            (false, false) => None,
        };
        let mut tells: Vec<_> = changed.into_iter().filter_map(tell).collect();
        tells.sort_by_key(|tell| matches!(tell, Tell::Subscribe(_)));
        tells
    }

    /// Takes an answer, whole or not at all. Where it is the first and cannot be taken, whoever waits for it is told why.
    pub(super) fn learn(&self, subject: &Subject, answer: Result<Known, Refused>) -> Learned {
        let mut followed = self.0.followed.lock();
        let Followed {
            subjects, endpoints, ..
        } = &mut *followed;
        let Some(one) = subjects.get_mut(subject) else {
            return Learned::NotFollowed;
        };
        let others = *endpoints - wire::weight(&one.known.borrow());
        let max = self.0.max_endpoints;
        let answer = answer.and_then(|known| match wire::weight(&known) {
            found if others + found > max => Err(Refused::TooManyInAll { found, most: max }),
            _ => Ok(known),
        });
        match answer {
            Ok(known) => {
                one.refused = None;
                *endpoints = others + wire::weight(&known);
                let is_less = wire::weight(&known) < wire::weight(&one.known.borrow());
                let is_news = one.known.send_if_modified(|before| {
                    let is_news = **before != known;
                    if is_news {
                        *before = Arc::new(known);
                    }
                    is_news
                });
                if is_less {
                    self.ask_for_what_had_no_room(&mut followed);
                }
                if is_news { Learned::News } else { Learned::Same }
            }
            Err(why) if one.refused.as_ref() == Some(&why) => Learned::Refused(None),
            Err(why) => {
                one.known.send_if_modified(|before| {
                    let is_first = !before.is_known();
                    if is_first {
                        *before = Arc::new(Known::Unusable(why.to_string().into()));
                    }
                    is_first
                });
                one.refused = Some(why.clone());
                Learned::Refused(Some(why))
            }
        }
    }

    /// There is more room than before: control is asked again for as much of what was refused as there is room for. While
    /// there is no stream nobody is: the next one asks for everything.
    fn ask_for_what_had_no_room(&self, followed: &mut Followed) {
        let Some(untold) = &mut followed.untold else { return };
        let mut room = self.0.max_endpoints.saturating_sub(followed.endpoints);
        for (subject, one) in &mut followed.subjects {
            let Some(Refused::TooManyInAll { found, .. }) = one.refused else {
                continue;
            };
            let more = found.saturating_sub(wire::weight(&one.known.borrow()));
            if more <= room {
                room -= more;
                one.refused = None;
                untold.insert(subject.clone());
                self.0.news.notify_one();
            }
        }
    }

    /// Ends what nobody has wanted for a while.
    pub(super) async fn forget_what_nobody_follows(self) {
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.sweep(Instant::now());
        }
    }

    fn sweep(&self, now: Instant) {
        let linger = self.0.linger;
        let mut followed = self.0.followed.lock();
        let Followed {
            subjects,
            endpoints,
            untold,
        } = &mut *followed;
        // Under the lock that `follow` takes, so that nobody can begin to want it in between.
        let over = |_: &Subject, one: &mut One| {
            if one.known.receiver_count() > 0 {
                one.idle = None;
                return false;
            }
            now.duration_since(*one.idle.get_or_insert(now)) >= linger
        };
        let mut is_less = false;
        for (subject, one) in subjects.extract_if(over) {
            is_less = true;
            *endpoints -= wire::weight(&one.known.borrow());
            if let Some(untold) = untold {
                untold.insert(subject);
                self.0.news.notify_one();
            }
        }
        if is_less {
            self.ask_for_what_had_no_room(&mut followed);
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("followed", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use portunus_proto::SpiffeId;

    use super::*;
    use crate::route::{Endpoint, View};

    fn directory(max_subjects: usize, max_endpoints: usize) -> Directory {
        let identity = SpiffeId::parse("spiffe://mesh.test/control").expect("it is one");
        Directory::new(&Settings {
            max_subjects,
            max_endpoints,
            ..Settings::new(vec![], identity, vec![])
        })
    }

    fn name(host: &str) -> Subject {
        Subject::Name {
            host: host.to_owned(),
            port: 80,
        }
    }

    fn service(endpoints: u16) -> Known {
        let endpoint = |port| Endpoint {
            addr: ([10, 0, 0, 1], port).into(),
            identity: None,
            zone: String::new(),
            weight: 1,
            is_ready: true,
            workload: String::new(),
        };
        Known::Service(Arc::new(View {
            name: "a".to_owned(),
            addresses: vec![],
            endpoints: (1..=endpoints).map(endpoint).collect(),
            policy: Policy::default(),
        }))
    }

    #[test]
    fn a_subject_that_several_want_is_followed_once() {
        let directory = directory(2, 10);
        let first = directory.follow(name("a")).expect("there is room");
        let second = directory.follow(name("a")).expect("it is followed already");
        assert_eq!(directory.len(), 1);
        assert_eq!(directory.learn(&name("a"), Ok(service(1))), Learned::News);
        assert_eq!(directory.learn(&name("a"), Ok(service(1))), Learned::Same);
        assert_eq!((&**first.borrow(), &**second.borrow()), (&service(1), &service(1)));
        let _other = directory.follow(name("b")).expect("there is room");
        assert_eq!(directory.follow(name("c")).expect_err("there is none"), Full { max: 2 });
        assert_eq!(directory.learn(&name("c"), Ok(service(1))), Learned::NotFollowed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_is_given_up_after_a_while_and_not_before() {
        let directory = directory(2, 10);
        let mut told = directory.begin();
        let receiver = directory.follow(name("a")).expect("there is room");
        assert_eq!(directory.to_tell(&mut told), [Tell::Subscribe(name("a"))]);
        directory.learn(&name("a"), Ok(service(10)));
        drop(receiver);
        let start = Instant::now();
        directory.sweep(start);
        directory.sweep(start + Duration::from_secs(9));
        assert_eq!(directory.len(), 1);
        let again = directory.follow(name("a")).expect("it is followed still");
        assert_eq!(**again.borrow(), service(10), "and what is known is there");
        drop(again);
        directory.sweep(start + Duration::from_secs(11));
        assert_eq!(directory.len(), 1, "somebody wanted it since");
        directory.sweep(start + Duration::from_secs(21));
        assert!(directory.is_empty());
        assert_eq!(directory.to_tell(&mut told), [Tell::Unsubscribe(name("a"))]);
        let _other = directory.follow(name("b"));
        assert_eq!(
            directory.learn(&name("b"), Ok(service(10))),
            Learned::News,
            "its endpoints are forgotten too"
        );
    }

    #[test]
    fn a_wrong_answer_leaves_the_last_good_one_and_is_told_once() {
        let directory = directory(2, 10);
        let receiver = directory.follow(name("a")).expect("there is room");
        directory.learn(&name("a"), Ok(service(6)));
        let wrong = || Err(Refused::Port(0));
        assert_eq!(
            directory.learn(&name("a"), wrong()),
            Learned::Refused(Some(Refused::Port(0)))
        );
        assert_eq!(directory.learn(&name("a"), wrong()), Learned::Refused(None));
        assert_eq!(**receiver.borrow(), service(6));
        let _other = directory.follow(name("b"));
        let refused = directory.learn(&name("b"), Ok(service(5)));
        assert_eq!(
            refused,
            Learned::Refused(Some(Refused::TooManyInAll { found: 5, most: 10 }))
        );
        assert_eq!(directory.learn(&name("a"), Ok(service(5))), Learned::News);
        assert_eq!(
            directory.learn(&name("b"), Ok(service(5))),
            Learned::News,
            "now there is room"
        );
    }

    #[test]
    fn whoever_waits_is_told_why_the_first_answer_is_not_taken() {
        let directory = directory(3, 10);
        let [mut first, mut second] = ["a", "b"].map(|host| directory.follow(name(host)).expect("there is room"));
        let unusable = |why: Refused| Known::Unusable(why.to_string().into());
        directory.learn(&name("a"), Err(Refused::Port(0)));
        assert!(first.has_changed().expect("it is followed"), "nobody is told");
        assert_eq!(**first.borrow_and_update(), unusable(Refused::Port(0)));
        directory.learn(&name("a"), Err(Refused::Port(0)));
        assert!(!first.has_changed().expect("it is followed"), "it is told twice");
        let too_many = Refused::TooManyInAll { found: 11, most: 10 };
        directory.learn(&name("b"), Ok(service(11)));
        assert_eq!(**second.borrow_and_update(), unusable(too_many));
        // Another reason is as good as none; an answer is better than both.
        directory.learn(&name("b"), Err(Refused::Port(0)));
        assert_eq!(**second.borrow(), unusable(Refused::Port(0)));
        assert_eq!(directory.learn(&name("b"), Ok(service(10))), Learned::News);
        assert_eq!(**second.borrow(), service(10));
        directory.learn(&name("b"), Err(Refused::Port(0)));
        assert_eq!(**second.borrow(), service(10), "what is known stays");
    }

    #[test]
    fn what_had_no_room_is_asked_for_again_when_there_is_room() {
        let mut directory = directory(10, 10);
        Arc::get_mut(&mut directory.0).expect("nobody else has it").linger = Duration::ZERO;
        let mut told = directory.begin();
        let [big, _small, _other] =
            ["big", "small", "other"].map(|host| directory.follow(name(host)).expect("there is room"));
        directory.to_tell(&mut told);
        assert_eq!(directory.learn(&name("big"), Ok(service(9))), Learned::News);
        for host in ["small", "other"] {
            let refused = directory.learn(&name(host), Ok(service(4)));
            assert!(matches!(refused, Learned::Refused(Some(_))), "{refused:?}");
        }
        assert_eq!(directory.to_tell(&mut told), [], "there is no room yet");
        directory.learn(&name("big"), Ok(service(5)));
        let tells = directory.to_tell(&mut told);
        let [Tell::Subscribe(again)] = &tells[..] else {
            panic!("there is room for one: {tells:?}")
        };
        assert_eq!(directory.learn(again, Ok(service(4))), Learned::News);
        drop(big);
        directory.sweep(Instant::now());
        let tells = directory.to_tell(&mut told);
        assert_eq!(tells.len(), 2, "big is given up, the other is asked for: {tells:?}");
        assert_eq!(tells[0], Tell::Unsubscribe(name("big")));
    }

    #[test]
    fn what_is_given_up_and_wanted_again_between_two_words_to_control_is_asked_for_again() {
        let mut directory = directory(10, 10);
        Arc::get_mut(&mut directory.0).expect("nobody else has it").linger = Duration::ZERO;
        let first = directory.follow(name("a"));
        let mut told = directory.begin();
        directory.learn(&name("a"), Ok(service(1)));
        drop(first);
        directory.sweep(Instant::now());
        let again = directory.follow(name("a")).expect("there is room");
        assert_eq!(**again.borrow(), Known::Pending);
        assert_eq!(directory.to_tell(&mut told), [Tell::Subscribe(name("a"))]);
    }

    #[test]
    fn what_no_mesh_can_know_is_outside_and_nobody_is_asked() {
        let directory = directory(10, 10);
        let mut told = directory.begin();
        let no_port = Subject::Name {
            host: "a".to_owned(),
            port: 0,
        };
        let address = |text: &str| Subject::Address(text.parse().expect("it is one"));
        for subject in [
            name(""),
            name(&"a".repeat(254)),
            no_port,
            address("0.0.0.0:80"),
            address("[ff02::1]:80"),
            address("10.0.0.1:0"),
        ] {
            let known = directory.follow(subject).expect("it takes no room");
            assert!(matches!(**known.borrow(), Known::Outside(_)));
        }
        assert_eq!(directory.to_tell(&mut told), []);
        let _mapped = directory
            .follow(address("[::ffff:10.0.0.1]:80"))
            .expect("there is room");
        assert_eq!(directory.to_tell(&mut told), [Tell::Subscribe(address("10.0.0.1:80"))]);
    }

    #[test]
    fn control_is_told_what_is_given_up_before_what_is_new() {
        let mut directory = directory(100, 10);
        Arc::get_mut(&mut directory.0).expect("nobody else has it").linger = Duration::ZERO;
        let all = |letter: &str| (0..50).map(|n| name(&format!("{letter}{n}"))).collect::<Vec<_>>();
        let old: Vec<_> = all("old")
            .into_iter()
            .map(|subject| directory.follow(subject))
            .collect();
        let mut told = directory.begin();
        drop(old);
        let _new: Vec<_> = all("new")
            .into_iter()
            .map(|subject| directory.follow(subject))
            .collect();
        directory.sweep(Instant::now());
        let tells = directory.to_tell(&mut told);
        assert!(tells[..50].iter().all(|tell| matches!(tell, Tell::Unsubscribe(_))));
        assert!(tells[50..].iter().all(|tell| matches!(tell, Tell::Subscribe(_))));
    }

    #[test]
    fn what_comes_and_goes_between_two_words_to_control_is_not_told() {
        let mut directory = directory(10, 10);
        Arc::get_mut(&mut directory.0).expect("nobody else has it").linger = Duration::ZERO;
        let _kept = directory.follow(name("kept"));
        let mut told = directory.begin();
        assert_eq!(told, HashSet::from([name("kept")]));
        drop(directory.follow(name("gone")));
        directory.sweep(Instant::now());
        assert_eq!(directory.to_tell(&mut told), []);
        directory.end();
        let _new = directory.follow(name("new"));
        assert_eq!(directory.to_tell(&mut told), [], "a new stream begins with all of them");
        assert_eq!(directory.begin().len(), 2);
    }
}
