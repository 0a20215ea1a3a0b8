//! The rows of the benchmark: what each one does to a proxy, what it counts, and what Portunus should reach.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use super::{
    backend::Backend,
    identities::Identities,
    load::{Bulk, Opening, Session, Style},
    payload,
    peers::{Counted, Far, Peer, Programs, Running, Standing},
    process,
    report::{Series, Target, quantile},
    wire,
};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Row {
    /// CPU a call: 8 connections x 16 streams, saturated, 100-byte unary, the fewest headers
    #[value(name = "T1", alias = "t1")]
    T1,
    /// T1 with headers as callers send them: token, traceparent, user-agent, 200 methods
    #[value(name = "T1r", alias = "t1r")]
    T1r,
    /// CPU a call: one call at a time, everything on one CPU
    #[value(name = "T2", alias = "t2")]
    T2,
    /// System calls a call, one call at a time
    #[value(name = "T2s", alias = "t2s")]
    T2s,
    /// CPU a call and added median latency at 2,000 calls a second, open loop
    #[value(name = "T3", alias = "t3")]
    T3,
    /// T1 through a pair of proxies with mTLS between: CPU of both
    #[value(name = "T4", alias = "t4")]
    T4,
    /// T3 through a pair with mTLS
    #[value(name = "T5", alias = "t5")]
    T5,
    /// CPU seconds a GiB of bulk server streaming, 16 KiB messages
    #[value(name = "T6", alias = "t6")]
    T6,
    /// T6 through a pair with mTLS
    #[value(name = "T6m", alias = "t6m")]
    T6m,
    /// Resident memory idle, and for each of 1,000 connections with an open stream
    #[value(name = "T7", alias = "t7")]
    T7,
    /// Resident memory of a pair's server side: idle, and for each of 1,000 TLS connections
    #[value(name = "T7t", alias = "t7t")]
    T7t,
    /// CPU of the server side for a full mTLS handshake
    #[value(name = "T8", alias = "t8")]
    T8,
    /// From the start of the sidecar's process to ready, certificate included
    #[value(name = "T10", alias = "t10")]
    T10,
    /// p50, p99 and CPU of calls that are all traced, without a collector and with good and bad ones
    #[value(name = "T11", alias = "t11")]
    T11,
    /// Unary calls beside bulk on one connection: bulk paced to 0.2 GiB/s, then at full rate
    #[value(name = "T12", alias = "t12")]
    T12,
    /// User instructions a call, by callgrind, with T1's headers and with T1r's
    #[value(name = "T9", alias = "t9")]
    T9,
    /// User instructions that a call takes which is not recorded, over one without a collector
    #[value(name = "T9u", alias = "t9u")]
    T9u,
}

impl Row {
    pub(crate) const ALL: [Row; 17] = [
        Row::T1,
        Row::T1r,
        Row::T2,
        Row::T2s,
        Row::T3,
        Row::T4,
        Row::T5,
        Row::T6,
        Row::T6m,
        Row::T7,
        Row::T7t,
        Row::T8,
        Row::T10,
        Row::T11,
        Row::T12,
        Row::T9,
        Row::T9u,
    ];

    /// The programs that the row needs besides the peers.
    pub(crate) fn tools(self) -> &'static [&'static str] {
        match self {
            Row::T2s => &["strace"],
            Row::T9 | Row::T9u => &["valgrind"],
            _ => &[],
        }
    }
}

/// How much is measured, and of whom.
pub(crate) struct Bench {
    pub(crate) programs: Programs,
    pub(crate) peers: Vec<Peer>,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    /// Peers that failed in a row, and why: they are left out of what remains of it.
    pub(crate) failures: Vec<String>,
}

/// Where load generator and backend run, and where the proxy does.
pub(super) const LOAD_CPU: usize = 0;
pub(super) const PROXY_CPU: usize = 1;

const T1_CONNECTIONS: usize = 8;
const T1_STREAMS: usize = 16;
const T7_CONNECTIONS: usize = 1_000;
/// Bulk beside unary: so many streams, and so many bytes a second of all of them.
const T12_STREAMS: usize = 4;
const T12_PACE: u64 = (1 << 30) / 5;
const GIB: f64 = (1u64 << 30) as f64;

/// A row of connections that are kept full.
struct Saturated<'a> {
    row: &'static str,
    standing: Standing,
    style: Style,
    targets: &'a [(f64, Peer)],
}

impl Bench {
    /// Measures one row; each figure of it is a series.
    pub(crate) fn row(&mut self, row: Row) -> Result<Vec<Series>> {
        process::pin(Pid::from_raw(0), LOAD_CPU)?;
        match row {
            Row::T1 => self.saturated(&Saturated {
                row: "T1",
                standing: Standing::Alone,
                style: Style::Plain,
                targets: &[(2.0, Peer::Floor), (1.0 / 13.0, Peer::Envoy)],
            }),
            Row::T1r => self.saturated(&Saturated {
                row: "T1r",
                standing: Standing::Alone,
                style: Style::Callers,
                targets: &[(3.0, Peer::Floor), (0.1, Peer::Envoy)],
            }),
            Row::T2 => self.one_at_a_time(),
            Row::T2s => self.system_calls(),
            Row::T3 => self.open_loop(Standing::Alone),
            Row::T4 => self.saturated(&Saturated {
                row: "T4",
                standing: Standing::Pair,
                style: Style::Plain,
                targets: &[(1.0 / 20.0, Peer::Envoy), (1.0 / 8.0, Peer::Haproxy)],
            }),
            Row::T5 => self.open_loop(Standing::Pair),
            Row::T6 => self.bulk("T6", Standing::Alone, &[(1.5, Peer::Floor), (0.75, Peer::Envoy)]),
            Row::T6m => self.bulk("T6m", Standing::Pair, &[(0.5, Peer::Envoy)]),
            Row::T7 => self.memory(),
            Row::T7t => self.memory_of_tls(),
            Row::T8 => self.handshakes(),
            Row::T10 => self.start_to_ready(),
            Row::T11 => self.collectors(),
            Row::T12 => self.mixed(),
            Row::T9 => self.instructions(),
            Row::T9u => self.unsampled(),
        }
    }

    /// T1, T1r, T4.
    fn saturated(&mut self, of: &Saturated<'_>) -> Result<Vec<Series>> {
        let calls = if self.quick { 20_000 } else { 100_000 };
        let what = match of.standing {
            Standing::Alone => "CPU a call, saturated (direct: load generator and backend together)",
            Standing::Pair => "CPU a call of both proxies, mTLS between, saturated",
        };
        let mut cpu = Series::new(of.row, what, "us");
        self.each_round(of.row, of.standing, PROXY_CPU, true, |subject| {
            let mut session = subject.session(T1_CONNECTIONS, of.style, wire::FIRST_WINDOW)?;
            session.saturate(T1_STREAMS, calls / 10)?;
            let spent = subject.cpu_of(|| session.saturate(T1_STREAMS, calls))?;
            cpu.add(subject.peer, micros(spent) / calls as f64);
            Ok(())
        })?;
        of.targets
            .iter()
            .for_each(|(bound, other)| cpu.at_most_times(*bound, *other));
        Ok(vec![cpu])
    }

    fn one_at_a_time(&mut self) -> Result<Vec<Series>> {
        let calls = if self.quick { 2_000 } else { 10_000 };
        let mut cpu = Series::new("T2", "CPU a call, one at a time, everything on one CPU", "us");
        process::pin(Pid::from_raw(0), PROXY_CPU)?;
        self.each_round("T2", Standing::Alone, PROXY_CPU, false, |subject| {
            subject.backend.pin(PROXY_CPU)?;
            let mut session = subject.session(1, Style::Plain, wire::FIRST_WINDOW)?;
            session.saturate(1, calls / 10)?;
            let spent = subject.cpu_of(|| session.saturate(1, calls))?;
            cpu.add(subject.peer, micros(spent) / calls as f64);
            Ok(())
        })?;
        cpu.at_most_times(1.3, Peer::Floor);
        Ok(vec![cpu])
    }

    /// Two runs of different length, so that what is not a call's (attaching, a timer) falls out of the difference.
    fn system_calls(&mut self) -> Result<Vec<Series>> {
        let (few, many) = (500, 2_500);
        let mut calls = Series::new("T2.syscalls", "system calls a call, one at a time", "calls");
        self.once("T2s", Standing::Alone, |subject| {
            let mut session = subject.session(1, Style::Plain, wire::FIRST_WINDOW)?;
            session.saturate(1, 100)?;
            let process = &subject.running()?.process;
            let first = process.system_calls(|| session.saturate(1, few))?;
            let second = process.system_calls(|| session.saturate(1, many))?;
            calls.add(subject.peer, (second as f64 - first as f64) / (many - few) as f64);
            Ok(())
        })?;
        calls.at_most(6.05);
        Ok(vec![calls])
    }

    /// T3, T5.
    fn open_loop(&mut self, standing: Standing) -> Result<Vec<Series>> {
        let calls = if self.quick { 2_000 } else { 6_000 };
        let interval = Duration::from_micros(500);
        let [row, cpu, median, added] = match standing {
            Standing::Alone => ["T3", "T3.cpu", "T3.median", "T3.added"],
            Standing::Pair => ["T5", "T5.cpu", "T5.median", "T5.added"],
        };
        let mut cpu = Series::new(cpu, "CPU a call at 2,000 calls a second", "us");
        let mut latency = Series::new(median, "median time a call at 2,000 calls a second", "us");
        self.each_round(row, standing, PROXY_CPU, true, |subject| {
            let mut session = subject.session(T1_CONNECTIONS, Style::Plain, wire::FIRST_WINDOW)?;
            session.paced(interval, calls / 10)?;
            let mut times = Vec::new();
            let spent = subject.cpu_of(|| {
                times = session.paced(interval, calls)?;
                Ok(())
            })?;
            cpu.add(subject.peer, micros(spent) / calls as f64);
            latency.add(subject.peer, share_of(&times, 0.5));
            Ok(())
        })?;
        // Each round's own direct run is what the proxies of that round added to.
        let mut added = Series::new(added, "median time a call that the proxy adds", "us");
        let direct = latency.values.get(&Peer::Direct).cloned().unwrap_or_default();
        for (peer, times) in latency.values.iter().filter(|(peer, _)| **peer != Peer::Direct) {
            times
                .iter()
                .zip(&direct)
                .for_each(|(time, direct)| added.add(*peer, time - direct));
        }
        match standing {
            Standing::Alone => {
                cpu.at_most_times(1.3, Peer::Floor);
                added.at_most_times(1.2, Peer::Floor);
            }
            Standing::Pair => {
                cpu.at_most_times(0.35, Peer::Envoy);
                latency.at_most_times(0.45, Peer::Envoy);
                added.at_most_times(0.45, Peer::Envoy);
            }
        }
        Ok(vec![cpu, latency, added])
    }

    /// T6, T6m.
    fn bulk(&mut self, row: &'static str, standing: Standing, targets: &[(f64, Peer)]) -> Result<Vec<Series>> {
        let messages = if self.quick { 8_192 } else { 32_768 };
        let mut cpu = Series::new(row, "CPU a GiB of bulk", "s");
        self.each_round(row, standing, PROXY_CPU, true, |subject| {
            let mut session = subject.session(1, Style::Plain, 256 << 10)?;
            let bulk = |messages| Bulk {
                streams: 1,
                messages,
                interval: Duration::ZERO,
            };
            session.start_bulk(bulk(messages / 16));
            session.finish_bulk()?;
            let spent = subject.cpu_of(|| {
                session.start_bulk(bulk(messages));
                session.finish_bulk()
            })?;
            cpu.add(
                subject.peer,
                spent.as_secs_f64() / ((messages * payload::BULK as u64) as f64 / GIB),
            );
            Ok(())
        })?;
        targets
            .iter()
            .for_each(|(bound, other)| cpu.at_most_times(*bound, *other));
        Ok(vec![cpu])
    }

    fn memory(&mut self) -> Result<Vec<Series>> {
        let mut idle = Series::new("T7.idle", "resident memory, idle", "MB");
        let mut each = Series::new(
            "T7.connection",
            "resident memory a client connection with an open stream",
            "KB",
        );
        self.once("T7", Standing::Alone, |subject| {
            let process = &subject.running()?.process;
            let before = settled(process)?;
            let mut session = subject.session(T7_CONNECTIONS, Style::Plain, wire::FIRST_WINDOW)?;
            session.hold()?;
            let after = settled(process)?;
            idle.add(subject.peer, before as f64 / 1e6);
            each.add(
                subject.peer,
                after.saturating_sub(before) as f64 / 1e3 / T7_CONNECTIONS as f64,
            );
            Ok(())
        })?;
        // What joining a mesh takes: TLS, the stream to control, the exporter.
        idle.at_most(if self.programs.bare { 6.0 } else { 8.0 });
        each.at_most(3.0);
        Ok(vec![idle, each])
    }

    fn mixed(&mut self) -> Result<Vec<Series>> {
        let calls = if self.quick { 1_000 } else { 4_000 };
        let names = [
            (
                "T12.alone.p50",
                "median time of a unary call, 1,000 a second, without bulk",
                "us",
            ),
            ("T12.alone.p99", "99th percentile of the same", "us"),
            (
                "T12.paced.p50",
                "median time of a unary call beside bulk paced to 0.2 GiB/s",
                "us",
            ),
            ("T12.paced.p99", "99th percentile of the same", "us"),
            ("T12.paced.bulk", "bulk carried meanwhile", "GiB/s"),
            (
                "T12.full.p50",
                "median time of a unary call beside bulk at full rate",
                "us",
            ),
            ("T12.full.p99", "99th percentile of the same", "us"),
            ("T12.full.bulk", "bulk carried meanwhile", "GiB/s"),
        ];
        let mut figures: BTreeMap<&str, Series> = names
            .into_iter()
            .map(|(row, what, unit)| (row, Series::new(row, what, unit)))
            .collect();
        let pace = Duration::from_nanos(1_000_000_000 * (T12_STREAMS * payload::BULK) as u64 / T12_PACE);
        let neighbours = [("alone", None), ("paced", Some(pace)), ("full", Some(Duration::ZERO))];
        self.each_round("T12", Standing::Alone, PROXY_CPU, true, |subject| {
            for (name, bulk) in neighbours {
                let mut session = subject.session(1, Style::Plain, wire::FIRST_WINDOW)?;
                if let Some(interval) = bulk {
                    session.start_bulk(Bulk {
                        streams: T12_STREAMS,
                        messages: 0,
                        interval,
                    });
                }
                session.paced(Duration::from_millis(1), calls / 10)?;
                let (began, carried) = (Instant::now(), session.bulk_bytes());
                let times = session.paced(Duration::from_millis(1), calls)?;
                let rate = (session.bulk_bytes() - carried) as f64 / GIB / began.elapsed().as_secs_f64();
                session.stop_bulk()?;
                let all = [
                    ("p50", share_of(&times, 0.5)),
                    ("p99", share_of(&times, 0.99)),
                    ("bulk", rate),
                ];
                for (figure, value) in all {
                    if let Some(series) = figures.get_mut(format!("T12.{name}.{figure}").as_str()) {
                        series.add(subject.peer, value);
                    }
                }
            }
            Ok(())
        })?;
        let alone = figures
            .get("T12.alone.p99")
            .and_then(|series| series.median(Peer::Portunus));
        if let Some(series) = figures.get_mut("T12.paced.p99") {
            series.at_most_times(0.5, Peer::Envoy);
            if let (Some(alone), Some(beside)) = (alone, series.median(Peer::Portunus)) {
                let text = "at most 1.5 x its own without bulk".into();
                series.targets.push(Target {
                    text,
                    got: beside / alone,
                    bound: 1.5,
                });
            }
        }
        if let Some(series) = figures.get_mut("T12.full.p50") {
            series.at_most_times(0.6, Peer::Envoy);
        }
        if let Some(series) = figures.get_mut("T12.full.bulk")
            && let Some(ratio) = series.ratio(Peer::Envoy)
        {
            let text = "Envoy carries less than 1 x portunus".into();
            series.targets.push(Target {
                text,
                got: 1.0 / ratio,
                bound: 1.0,
            });
        }
        Ok(names.iter().filter_map(|(row, ..)| figures.remove(row)).collect())
    }

    fn instructions(&mut self) -> Result<Vec<Series>> {
        let peers: Vec<Peer> = self
            .peers
            .iter()
            .copied()
            .filter(|peer| matches!(peer, Peer::Portunus | Peer::Floor))
            .collect();
        let mut all = Vec::new();
        for (row, what, style, bound) in [
            ("T9", "user instructions a call, T1's headers", Style::Plain, 6_000.0),
            (
                "T9.callers",
                "user instructions a call, T1r's headers",
                Style::Callers,
                9_000.0,
            ),
        ] {
            let mut series = Series::new(row, what, "instructions");
            for &peer in &peers {
                match self.counted(row, Counted::Peer(peer), style) {
                    Ok(count) => series.add(peer, count),
                    Err(error) => self.failures.push(format!("{row}: {peer}: {error:#}")),
                }
            }
            series.at_most(bound);
            all.push(series);
        }
        Ok(all)
    }

    /// T9u: T9 without a mesh, without a collector and with one for which no call is recorded, in turns. The callers of T1's
    /// headers have no trace: each call is decided on, and gets one.
    fn unsampled(&mut self) -> Result<Vec<Series>> {
        if !self.peers.contains(&Peer::Portunus) {
            return Ok(Vec::new());
        }
        let figure = |row, what| Series::new(row, what, "instructions");
        let mut without = figure("T9u.without", "user instructions a call, without a collector");
        let mut with = figure("T9u.with", "the same, with a collector and no call recorded");
        let mut more = figure("T9u.more", "what a call that is not recorded takes for that");
        let sent = self.programs.spans();
        for _ in 0..self.rounds.min(3) {
            let count = |counted| self.counted("T9u", counted, Style::Plain);
            let (untraced, unsampled) = (count(Counted::Untraced)?, count(Counted::Unsampled)?);
            without.add(Peer::Portunus, untraced);
            with.add(Peer::Portunus, unsampled);
            more.add(Peer::Portunus, unsampled - untraced);
        }
        ensure!(self.programs.spans() == sent, "calls were recorded");
        Ok(vec![without, with, more])
    }

    /// Instructions a call. Fixed batches, in two runs of different length: what starting and ending costs falls out of the
    /// difference.
    fn counted(&self, row: &str, counted: Counted, style: Style) -> Result<f64> {
        let (few, many) = if self.quick { (20, 60) } else { (40, 200) };
        let run = |batches| {
            self.say(row, &format!("{counted}, {batches} batches under callgrind"));
            self.count_batches(counted, style, batches)
        };
        let more = run(many)? as f64 - run(few)? as f64;
        Ok(more / ((many - few) * (T1_CONNECTIONS * T1_STREAMS) as u64) as f64)
    }

    fn count_batches(&self, counted: Counted, style: Style, batches: u64) -> Result<u64> {
        let backend = Backend::start(LOAD_CPU)?;
        // On the CPU of the load, so that the proxy sees whole batches, on every machine.
        let (running, counts) = self.programs.start_counted(counted, backend.address(), LOAD_CPU)?;
        {
            let opening = Opening {
                authority: backend.address(),
                connections: T1_CONNECTIONS,
                style,
                stream_window: wire::FIRST_WINDOW,
            };
            let mut session = Session::open(running.address, opening)?;
            session.be_patient(Duration::from_secs(60));
            session.batches(T1_STREAMS, batches)?;
        }
        running.process.end(Duration::from_secs(60))?;
        process::instructions(&counts)
    }

    /// Starts every peer, then measures each of them in every round: what drifts with time drifts for all.
    pub(super) fn each_round(
        &mut self,
        row: &str,
        standing: Standing,
        cpu: usize,
        direct: bool,
        mut measure: impl FnMut(&Subject<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut started = Vec::new();
        for peer in self.peers.clone() {
            if !standing.admits(peer) || peer == Peer::Direct && !direct {
                continue;
            }
            self.say(row, &format!("starting {peer}"));
            match self.start(peer, standing, cpu) {
                Ok(running) => started.push((peer, running)),
                Err(error) => self.failures.push(format!("{row}: {peer}: {error:#}")),
            }
        }
        for round in 1..=self.rounds {
            let mut failed = Vec::new();
            for (peer, (backend, running)) in &started {
                self.say(row, &format!("round {round} of {}, {peer}", self.rounds));
                let subject = Subject {
                    peer: *peer,
                    backend,
                    running: running.as_ref(),
                    identities: &self.programs.identities,
                };
                if let Err(error) = measure(&subject) {
                    let last = running.as_ref().map(Running::last_words).unwrap_or_default();
                    self.failures
                        .push(format!("{row}, round {round}: {peer}: {error:#}{last}"));
                    failed.push(*peer);
                }
            }
            started.retain(|(peer, _)| !failed.contains(peer));
        }
        Ok(())
    }

    /// One peer at a time, fresh, in as many rounds as the figure needs: for counts that hardly vary.
    pub(super) fn once(
        &mut self,
        row: &str,
        standing: Standing,
        mut measure: impl FnMut(&Subject<'_>) -> Result<()>,
    ) -> Result<()> {
        let (peers, rounds) = (self.peers.clone(), self.rounds);
        for round in 1..=rounds {
            let proxies = |peer: &Peer| *peer != Peer::Direct && standing.admits(*peer);
            for peer in peers.iter().copied().filter(proxies) {
                self.say(row, &format!("round {round} of {rounds}, {peer}"));
                let measured = self.start(peer, standing, PROXY_CPU).and_then(|(backend, running)| {
                    measure(&Subject {
                        peer,
                        backend: &backend,
                        running: running.as_ref(),
                        identities: &self.programs.identities,
                    })
                });
                if let Err(error) = measured {
                    self.failures.push(format!("{row}, round {round}: {peer}: {error:#}"));
                }
            }
        }
        Ok(())
    }

    fn start(&self, peer: Peer, standing: Standing, cpu: usize) -> Result<(Backend, Option<Running>)> {
        let backend = Backend::start(LOAD_CPU)?;
        let running = match peer {
            Peer::Direct => None,
            peer => Some(self.programs.start(peer, standing, backend.address(), cpu)?),
        };
        Ok((backend, running))
    }

    /// A line of progress; on a terminal each takes the place of the last.
    pub(crate) fn say(&self, row: &str, what: &str) {
        let mut out = std::io::stderr();
        let _ = if out.is_terminal() {
            write!(out, "\r\x1b[2K{row}: {what}")
        } else {
            writeln!(out, "{row}: {what}")
        };
    }
}

/// A peer in its turn.
pub(super) struct Subject<'a> {
    pub(super) peer: Peer,
    backend: &'a Backend,
    running: Option<&'a Running>,
    pub(super) identities: &'a Identities,
}

impl Subject<'_> {
    fn address(&self) -> SocketAddr {
        self.running.map_or(self.backend.address(), |running| running.address)
    }

    fn session(&self, connections: usize, style: Style, stream_window: u32) -> Result<Session> {
        Session::open(
            self.address(),
            Opening {
                authority: self.backend.address(),
                connections,
                style,
                stream_window,
            },
        )
    }

    /// The server's proxy of a pair.
    pub(super) fn far(&self) -> Result<&Far> {
        self.running()?.far.as_ref().context("this is no pair")
    }

    fn running(&self) -> Result<&Running> {
        self.running.context("there is no proxy to look at")
    }

    /// The CPU time that the proxy (of a pair, both) takes for this work; of load generator and backend, if there is no proxy.
    fn cpu_of(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let now = || self.running.map_or_else(process::own_cpu, Running::cpu);
        let before = now()?;
        work()?;
        Ok(now()? - before)
    }
}

/// Resident memory once it no longer changes.
pub(super) fn settled(process: &process::Process) -> Result<u64> {
    let mut last = process.resident()?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(700));
        let now = process.resident()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

pub(super) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A quantile of times, in microseconds.
pub(super) fn share_of(times: &[Duration], share: f64) -> f64 {
    let times: Vec<f64> = times.iter().copied().map(micros).collect();
    quantile(&times, share).unwrap_or(f64::NAN)
}
