//! T11: calls that are all recorded, beside collectors that are good, bad in every way, and not there at all.

use anyhow::{Context, Result};

use super::{
    backend::Backend,
    collector::{Bad, start_bad},
    load::{Opening, Session, Style},
    peers::{HELPERS_CPU, Peer, Running},
    report::{Series, Target, median},
    rows::{Bench, LOAD_CPU, PROXY_CPU, micros, share_of},
    wire,
};

/// What is behind a sidecar, and what its figures are called.
struct Lane {
    name: &'static str,
    backend: Backend,
    running: Running,
    p50: Series,
    p99: Series,
    cpu: Series,
    /// The times of each round, in its order.
    tails: Vec<f64>,
}

/// Which collectors there are: a name, the rows, and how it is bad if it is.
const COLLECTORS: [(&str, [&str; 3], Option<Bad>); 6] = [
    ("none", ["T11.none.p50", "T11.none.p99", "T11.none.cpu"], None),
    ("good", ["T11.good.p50", "T11.good.p99", "T11.good.cpu"], None),
    (
        "down",
        ["T11.down.p50", "T11.down.p99", "T11.down.cpu"],
        Some(Bad::Down),
    ),
    (
        "silent",
        ["T11.silent.p50", "T11.silent.p99", "T11.silent.cpu"],
        Some(Bad::Silent),
    ),
    (
        "slow",
        ["T11.slow.p50", "T11.slow.p99", "T11.slow.cpu"],
        Some(Bad::Slow),
    ),
    (
        "erring",
        ["T11.erring.p50", "T11.erring.p99", "T11.erring.cpu"],
        Some(Bad::Erring),
    ),
];

/// How far p99 beside a bad collector may be from p99 beside the good one.
const SHARE: f64 = 1.05;

impl Bench {
    /// T11: 1,000 calls a second, all of them recorded. Each round goes through all sidecars and begins with another one; what
    /// is compared is what stands in the same round.
    pub(super) fn collectors(&mut self) -> Result<Vec<Series>> {
        if !self.peers.contains(&Peer::Portunus) {
            return Ok(Vec::new());
        }
        let calls = if self.quick { 2_000 } else { 5_000 };
        let mut lanes = Vec::new();
        for (name, rows, bad) in COLLECTORS {
            self.say("T11", &format!("starting a sidecar, collector: {name}"));
            let collector = match (name, bad) {
                ("none", _) => None,
                (_, None) => Some(self.programs.collector()),
                (_, Some(bad)) => Some(start_bad(bad, HELPERS_CPU)?),
            };
            let backend = Backend::start(LOAD_CPU)?;
            let running = self.programs.start_traced(collector, backend.address(), PROXY_CPU)?;
            let figure = |row, what, unit| Series::new(row, what, unit);
            lanes.push(Lane {
                name,
                backend,
                running,
                p50: figure(rows[0], "median time a call at 1,000 calls a second, all traced", "us"),
                p99: figure(rows[1], "99th percentile of the same", "us"),
                cpu: figure(rows[2], "CPU a call of the same, exporting included", "us"),
                tails: Vec::new(),
            });
        }
        let interval = std::time::Duration::from_millis(1);
        for round in 0..self.rounds {
            for place in 0..lanes.len() {
                let at = (place + round) % lanes.len();
                let lane = &mut lanes[at];
                self.say(
                    "T11",
                    &format!("round {} of {}, collector: {}", round + 1, self.rounds, lane.name),
                );
                let opening = Opening {
                    authority: lane.backend.address(),
                    connections: 8,
                    style: Style::Plain,
                    stream_window: wire::FIRST_WINDOW,
                };
                let mut session = Session::open(lane.running.address, opening)?;
                session.paced(interval, calls / 10)?;
                let before = lane.running.cpu()?;
                let times = session.paced(interval, calls)?;
                let spent = lane.running.cpu()? - before;
                let tail = share_of(&times, 0.99);
                lane.p50.add(Peer::Portunus, share_of(&times, 0.5));
                lane.p99.add(Peer::Portunus, tail);
                lane.cpu.add(Peer::Portunus, micros(spent) / calls as f64);
                lane.tails.push(tail);
            }
        }
        let good = lanes
            .iter()
            .find(|lane| lane.name == "good")
            .context("one is good")?
            .tails
            .clone();
        for lane in lanes.iter_mut().filter(|lane| !["none", "good"].contains(&lane.name)) {
            let ratios: Vec<_> = lane.tails.iter().zip(&good).map(|(bad, good)| bad / good).collect();
            if let Some(got) = median(&ratios) {
                lane.p99.targets.push(Target {
                    text: format!("at most {SHARE} x the same round's with a good collector"),
                    got,
                    bound: SHARE,
                });
            }
        }
        let figures = lanes.into_iter().flat_map(|lane| [lane.p50, lane.p99, lane.cpu]);
        Ok(figures.collect())
    }
}
