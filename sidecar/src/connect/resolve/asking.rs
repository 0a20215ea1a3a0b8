//! The one task that asks: it owns what is known of every question and tells the watchers of every name.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hickory_resolver::proto::rr::Name;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    Answer, Query, Shared, State, Target,
    evaluate::{self, Known, Met, View},
    hosts::{Hosts, HostsFile},
    question::{Cause, Found, Question, Record, Trouble},
    routes::Routes,
    servers::{ResolvConf, Servers},
};

/// A name that somebody began to watch.
pub(super) struct Wanted {
    pub(super) id: u64,
    pub(super) query: Query,
    pub(super) answers: watch::Sender<Arc<Answer>>,
}

/// A number for a watched name that no other ever had.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(super) struct Asking {
    shared: Arc<Shared>,
    conf: ResolvConf,
    servers: Arc<Servers>,
    hosts_file: HostsFile,
    hosts: Hosts,
    routes: Routes,
    questions: HashMap<Question, Asked>,
    names: HashMap<u64, Watched>,
    /// Questions by the time they are to be asked, those under way left out.
    due: BTreeSet<(Instant, Question)>,
    /// First answers that are complete enough by then.
    partial: BTreeSet<(Instant, u64)>,
    under_way: JoinSet<Result<Found, Trouble>>,
    asked_by: HashMap<task::Id, Question>,
}

/// A question and who needs it.
#[derive(Default)]
struct Asked {
    record: Record,
    needed_by: HashSet<u64>,
    under_way: bool,
    /// Since when nobody has needed it.
    idle: Option<Instant>,
}

/// A name and who it is told to.
struct Watched {
    query: Query,
    answers: watch::Sender<Arc<Answer>>,
    candidates: Vec<Name>,
    settled: Option<Name>,
    needs: HashSet<Question>,
    /// Removed addresses, and until when they count.
    lately: BTreeMap<IpAddr, Instant>,
    /// When a partial answer will do.
    partial_from: Option<Instant>,
    /// Since when nobody has watched it.
    idle: Option<Instant>,
}

impl Asking {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let conf = ResolvConf::read(&shared.settings.resolv_conf);
        let servers = Servers::new(&conf, &shared.settings).unwrap_or_else(|fault| {
            tracing::warn!(reason = fault, "no name can be resolved");
            Servers::none(&shared.settings, Some(fault))
        });
        let hosts_file = HostsFile::read(&shared.settings.hosts);
        let hosts = hosts_file.names().unwrap_or_else(|fault| {
            tracing::warn!(reason = fault, "going on without a hosts file");
            Hosts::default()
        });
        log_wrong_lines(&shared.settings.hosts, &[], &hosts.wrong);
        Self {
            shared,
            conf,
            servers: Arc::new(servers),
            hosts_file,
            hosts,
            routes: Routes::default(),
            questions: HashMap::new(),
            names: HashMap::new(),
            due: BTreeSet::new(),
            partial: BTreeSet::new(),
            under_way: JoinSet::new(),
            asked_by: HashMap::new(),
        }
    }

    /// Asks until told to stop.
    pub(super) async fn run(mut self, mut wants: mpsc::Receiver<Wanted>, stopped: CancellationToken) {
        let mut poll = time::interval(self.shared.settings.files_poll);
        poll.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            self.tell_partial(now);
            self.ask_due(now);
            let next = self.next_time();
            tokio::select! {
                () = stopped.cancelled() => return,
                Some(wanted) = wants.recv() => self.on_wanted(wanted),
                Some(done) = self.under_way.join_next_with_id() => {
                    self.on_done(done);
                }
                _ = poll.tick() => {
                    self.read_resolv_conf();
                    self.read_hosts();
                    self.sweep();
                }
                () = time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    fn on_wanted(&mut self, Wanted { id, query, answers }: Wanted) {
        let candidates = self.servers.search.candidates(query.name());
        let watched = Watched {
            query,
            answers,
            candidates,
            settled: None,
            needs: HashSet::new(),
            lately: BTreeMap::new(),
            partial_from: None,
            idle: None,
        };
        self.names.insert(id, watched);
        self.evaluate(id, Instant::now());
    }

    fn on_done(&mut self, done: Result<(task::Id, Result<Found, Trouble>), task::JoinError>) {
        let (id, answer) = match done {
            Ok(done) => done,
            // Bytes from the network have passed through a parser: should it ever panic, the name is asked again.
            Err(lost) => {
                tracing::error!(%lost, "a DNS question broke off");
                (
                    lost.id(),
                    Err(Trouble {
                        cause: Cause::Failed,
                        sentence: "the question broke off".into(),
                    }),
                )
            }
        };
        if let Some(question) = self.asked_by.remove(&id) {
            self.on_answer(question, answer);
        }
    }

    fn on_answer(&mut self, question: Question, answer: Result<Found, Trouble>) {
        let now = Instant::now();
        let Some(asked) = self.questions.get_mut(&question) else {
            return;
        };
        asked.under_way = false;
        let next = asked.record.on_answer(answer, &self.shared.settings, now);
        if asked.idle.is_none() {
            self.due.insert((next, question.clone()));
        }
        let needed_by: Vec<u64> = asked.needed_by.iter().copied().collect();
        for id in needed_by {
            self.evaluate(id, now);
        }
    }

    /// Puts the questions that are due under way, as many as may be at a time. First answers go before second ones.
    fn ask_due(&mut self, now: Instant) {
        while self.under_way.len() < self.shared.settings.max_in_flight.max(1) {
            let Some((_, question)) = self.due.first().filter(|(at, _)| *at <= now).cloned() else {
                return;
            };
            self.due.pop_first();
            let Some(asked) = self.questions.get_mut(&question) else {
                continue;
            };
            asked.under_way = true;
            asked.record.on_asked(now);
            let servers = self.servers.clone();
            let task = self.under_way.spawn(servers.ask(question.clone()));
            self.asked_by.insert(task.id(), question);
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let full = self.under_way.len() >= self.shared.settings.max_in_flight.max(1);
        let due = self.due.first().map(|(at, _)| *at).filter(|_| !full);
        let partial = self.partial.first().map(|(at, _)| *at);
        due.into_iter().chain(partial).min()
    }

    fn tell_partial(&mut self, now: Instant) {
        while let Some((_, id)) = self.partial.first().copied().filter(|(at, _)| *at <= now) {
            self.partial.pop_first();
            self.evaluate(id, now);
        }
    }

    /// Draws from the answers what they mean for one name, asks what that needs, and tells its watchers.
    fn evaluate(&mut self, id: u64, now: Instant) {
        let Some(watched) = self.names.get_mut(&id) else { return };
        let settings = &self.shared.settings;
        let questions = &self.questions;
        let known = |question: &Question| questions.get(question).map(|asked| &asked.record);
        let mut view = View::new(&self.hosts, &known);
        let met = evaluate::evaluate(
            &watched.query,
            &watched.candidates,
            &mut watched.settled,
            settings,
            &mut view,
        );
        let needed: HashSet<Question> = view.needed.into_iter().collect();
        let dropped: Vec<Question> = watched.needs.difference(&needed).cloned().collect();
        watched.needs = needed;

        let max = settings.max_names.saturating_mul(QUESTIONS_PER_NAME);
        let mut refused = None;
        let mut expires: Option<Instant> = None;
        for question in &watched.needs {
            if !self.questions.contains_key(question) && self.questions.len() >= max {
                refused = Some(format!(
                    "{max} questions are being asked already, the most that is allowed"
                ));
                continue;
            }
            let asked = self.questions.entry(question.clone()).or_default();
            asked.needed_by.insert(id);
            let returns = asked.idle.take().is_some() || asked.record.next.is_none();
            if returns && !asked.under_way {
                // What nobody needed for a while is still good until its time.
                let next = asked.record.ask_from(asked.record.next.unwrap_or(now), settings);
                self.due.insert((next, question.clone()));
            }
            let next = asked.record.next.unwrap_or(now);
            expires = Some(expires.map_or(next, |expires| expires.min(next)));
        }
        for question in dropped {
            self.release(&question, id, now);
        }
        let met = match refused {
            Some(sentence) if met == Met::Waiting => Met::Failed(Trouble {
                cause: Cause::Failed,
                sentence: sentence.into(),
            }),
            Some(_) | None => met,
        };
        self.tell(id, met, expires, now);
    }

    /// Gives the watchers what a name comes to now.
    fn tell(&mut self, id: u64, met: Met<Vec<Target>>, expires: Option<Instant>, now: Instant) {
        let Some(watched) = self.names.get_mut(&id) else { return };
        let before = watched.answers.borrow().clone();
        let (mut targets, state) = match met {
            Met::Waiting => return,
            Met::Found(Known { partial: true, .. })
                if before.targets.is_empty() && watched.partial_from.is_none_or(|from| now < from) =>
            {
                let wait = self.shared.settings.partial_wait;
                let from = *watched.partial_from.get_or_insert(now + wait);
                self.partial.insert((from, id));
                return;
            }
            Met::Found(Known { what, stale, .. }) => {
                let state = match stale {
                    Some(trouble) => State::Stale {
                        reason: evaluate::cannot_resolve(&watched.query, &trouble),
                    },
                    None => State::Fresh,
                };
                (what, state)
            }
            Met::Failed(trouble) => {
                let reason = evaluate::cannot_resolve(&watched.query, &trouble);
                // Known once, from a candidate or a target that is no longer asked for.
                let state = if before.targets.is_empty() {
                    State::Failed { reason }
                } else {
                    State::Stale { reason }
                };
                (before.targets.clone(), state)
            }
        };
        for target in &mut targets {
            target.routable = self.routes.lead_to(target.addr.ip(), now);
        }
        targets.sort_unstable_by_key(|target| (target.priority, target.addr, std::cmp::Reverse(target.weight)));
        targets.dedup_by_key(|target| (target.priority, target.addr));
        log_change(&watched.query, &before.state, &state, targets.len());

        let ips: BTreeSet<IpAddr> = targets.iter().map(|target| target.addr.ip()).collect();
        for old in before
            .targets
            .iter()
            .map(|target| target.addr.ip())
            .filter(|ip| !ips.contains(ip))
        {
            watched.lately.insert(old, now + self.shared.settings.lately);
        }
        watched.lately.retain(|ip, until| *until > now && !ips.contains(ip));
        while watched.lately.len() > self.shared.settings.max_addresses {
            let Some(oldest) = watched
                .lately
                .iter()
                .min_by_key(|(_, until)| **until)
                .map(|(ip, _)| *ip)
            else {
                break;
            };
            watched.lately.remove(&oldest);
        }
        let mut addresses: Vec<_> = ips.into_iter().map(|ip| (ip, None)).collect();
        addresses.extend(watched.lately.iter().map(|(ip, until)| (*ip, Some(until.into_std()))));
        addresses.sort_unstable();

        let changed = before.targets != targets || before.state != state;
        let generation = before.generation + u64::from(changed);
        let expires = expires.map(Instant::into_std);
        // Told only when there is something to do about it; a new end of the TTL is none.
        watched.answers.send_if_modified(|answer| {
            *answer = Arc::new(Answer {
                targets,
                state,
                generation,
                expires,
                addresses,
            });
            changed
        });
    }

    fn release(&mut self, question: &Question, id: u64, now: Instant) {
        let Some(asked) = self.questions.get_mut(question) else {
            return;
        };
        asked.needed_by.remove(&id);
        if asked.needed_by.is_empty() && asked.idle.is_none() {
            asked.idle = Some(now);
            if let Some(next) = asked.record.next {
                self.due.remove(&(next, question.clone()));
            }
        }
    }

    /// Takes a changed resolv.conf. What is known stays known until its time; what is not is asked anew.
    fn read_resolv_conf(&mut self) {
        let settings = &self.shared.settings;
        let conf = ResolvConf::read(&settings.resolv_conf);
        if conf == self.conf {
            return;
        }
        self.conf = conf;
        match Servers::new(&self.conf, settings) {
            Ok(servers) => {
                tracing::info!(path = %settings.resolv_conf.display(), "took a changed resolv.conf");
                self.servers = Arc::new(servers);
            }
            Err(fault) => {
                tracing::warn!(reason = fault, "going on with the name servers of before");
                return;
            }
        }
        let now = Instant::now();
        for (question, asked) in &mut self.questions {
            if asked.record.trouble.is_some() && asked.idle.is_none() && !asked.under_way {
                if let Some(next) = asked.record.next {
                    self.due.remove(&(next, question.clone()));
                }
                self.due
                    .insert((asked.record.ask_from(now, settings), question.clone()));
            }
        }
        for watched in self.names.values_mut() {
            watched.candidates = self.servers.search.candidates(watched.query.name());
        }
        self.evaluate_all(now);
    }

    /// Takes a changed hosts file. A name that is no longer in it is asked for from now on.
    fn read_hosts(&mut self) {
        let path = &self.shared.settings.hosts;
        let file = HostsFile::read(path);
        if file == self.hosts_file {
            return;
        }
        self.hosts_file = file;
        match self.hosts_file.names() {
            Ok(hosts) => {
                tracing::info!(path = %path.display(), "took a changed hosts file");
                log_wrong_lines(path, &self.hosts.wrong, &hosts.wrong);
                self.hosts = hosts;
            }
            Err(fault) => {
                tracing::warn!(reason = fault, "going on with the hosts file of before");
                return;
            }
        }
        self.evaluate_all(Instant::now());
    }

    fn evaluate_all(&mut self, now: Instant) {
        let ids: Vec<u64> = self.names.keys().copied().collect();
        for id in ids {
            self.evaluate(id, now);
        }
    }

    /// Lets go of what nobody has watched for a while, and looks again whether there are routes.
    fn sweep(&mut self) {
        let now = Instant::now();
        let linger = self.shared.settings.linger.max(self.shared.settings.ask_interval);
        let over = |idle: Option<Instant>| idle.is_some_and(|since| now >= since + linger);
        let mut left = Vec::new();
        let mut turned = Vec::new();
        self.routes.prune(now);
        for (id, watched) in &mut self.names {
            if watched.answers.receiver_count() > 0 {
                watched.idle = None;
            } else if over(Some(*watched.idle.get_or_insert(now))) {
                left.push(*id);
                continue;
            }
            let answer = watched.answers.borrow().clone();
            let turn = |target: &Target| self.routes.lead_to(target.addr.ip(), now) != target.routable;
            if answer.targets.iter().any(turn) {
                turned.push(*id);
            }
        }
        for id in turned {
            self.evaluate(id, now);
        }
        for id in left {
            let Some(watched) = self.names.get(&id) else { continue };
            if !self.shared.forget(&watched.query, id) {
                continue;
            }
            if let Some(watched) = self.names.remove(&id) {
                for question in watched.needs {
                    self.release(&question, id, now);
                }
            }
        }
        self.questions.retain(|_, asked| asked.under_way || !over(asked.idle));
    }
}

/// Says which lines of a hosts file have something that is not understood: once, until others do.
fn log_wrong_lines(path: &Path, before: &[usize], wrong: &[usize]) {
    if !wrong.is_empty() && wrong != before {
        let first: Vec<_> = wrong.iter().take(10).map(ToString::to_string).collect();
        tracing::warn!(
            path = %path.display(),
            lines = first.join(","),
            more = wrong.len() - first.len(),
            "what is no address or no name in these lines of the hosts file is left out"
        );
    }
}

fn log_change(query: &Query, before: &State, after: &State, targets: usize) {
    let name = query.name();
    match (before, after) {
        (State::Pending | State::Fresh, State::Stale { reason } | State::Failed { reason }) => {
            tracing::warn!(name, targets, reason = &**reason, "a name cannot be resolved");
        }
        (State::Stale { .. } | State::Failed { .. }, State::Fresh) => {
            tracing::info!(name, targets, "a name can be resolved again");
        }
        _ => {}
    }
}

/// Questions in all, as a multiple of the names: two for the families, some for search lists and SRV targets.
const QUESTIONS_PER_NAME: usize = 4;
