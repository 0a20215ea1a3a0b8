//! Calls at a steady rate, as the caller itself reports them.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use crate::{Mesh, Peer, Pod, Program, Sidecar, Stack, peer, wait_until};
use anyhow::{Context, Result, ensure};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde::Deserialize;

/// What the callers dial.
pub const NAME: &str = "greeter.test";
/// Where greeters listen.
pub const PORT: u16 = 50051;

/// Loads of several tests at once would measure each other.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    LOADS.write()
}

/// A small load, of which nothing is measured: others like it may be beside it, and none that is [`alone`].
pub fn among_others() -> RwLockReadGuard<'static, ()> {
    LOADS.read()
}

static LOADS: RwLock<()> = RwLock::new(());

/// A greeter in a pod of its own, with its sidecar.
pub struct Endpoint {
    /// Its application.
    pub app: Program,
    /// The proxy beside it.
    pub sidecar: Sidecar,
    /// Its place.
    pub pod: Pod,
}

impl Endpoint {
    /// A greeter that works so long on each call.
    pub fn start(mesh: &Mesh, number: usize, work: Duration) -> Result<Endpoint> {
        let pod = mesh.pod(&format!("greeter-{number}"))?;
        let sidecar = pod.sidecar()?;
        let app = Peer::greeter(&pod, Stack::Tonic, PORT, work)?.program;
        Ok(Endpoint { app, sidecar, pod })
    }

    /// So many of them.
    pub fn several(mesh: &Mesh, number: usize, work: Duration) -> Result<Vec<Endpoint>> {
        (1..=number).map(|number| Endpoint::start(mesh, number, work)).collect()
    }
}

/// The addresses that DNS gives for these.
pub fn addresses<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> Vec<IpAddr> {
    endpoints
        .into_iter()
        .flat_map(|endpoint| endpoint.pod.addresses())
        .collect()
}

/// A caller that runs.
pub struct Traffic {
    program: Program,
    rate: u32,
    heard: Mutex<Heard>,
}

/// What was read so far of all that a caller has written.
#[derive(Default)]
struct Heard {
    bytes: u64,
    calls: Vec<Call>,
}

/// One call.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    /// When it began, in seconds of the epoch.
    pub at: f64,
    /// How long it took.
    pub ms: f64,
    /// Who answered.
    pub from: String,
    /// Its status.
    pub code: String,
    /// The status's message.
    pub why: String,
}

/// Calls that have ended.
#[derive(Debug, Default)]
pub struct Calls(pub Vec<Call>);

impl Traffic {
    /// Calls begin, on one connection, until this drops or the time is over; the first have been answered.
    pub fn start(pod: &Pod, rate: u32, time: Duration) -> Result<Traffic> {
        Traffic::to(pod, NAME, rate, time)
    }

    /// The same, to greeters of another name.
    pub fn to(pod: &Pod, name: &str, rate: u32, time: Duration) -> Result<Traffic> {
        let program = peer::caller(pod, Stack::Tonic, &format!("{name}:{PORT}"), rate, time)?;
        let mut traffic = Traffic {
            program,
            rate,
            heard: Mutex::default(),
        };
        traffic.program.says("\"code\"", Duration::from_secs(20))?;
        Ok(traffic)
    }

    /// Lets it go on for so long.
    pub fn flow(&self, time: Duration) {
        thread::sleep(time);
    }

    /// All that has ended so far.
    pub fn calls(&self) -> Calls {
        let mut heard = self.heard.lock();
        heard.read_on(self.program.log());
        Calls(heard.calls.clone())
    }

    /// Begins no more, waits until those that run have ended, and returns all.
    pub fn stop(mut self) -> Result<Calls> {
        let status = self.program.stop(Duration::from_secs(30))?;
        ensure!(status.success(), "the caller ended with {status}");
        Ok(self.calls())
    }

    /// Waits for its end, and returns all calls; each that was due has been made.
    pub fn end(mut self, time: Duration) -> Result<Calls> {
        let status = self.program.wait(time + Duration::from_secs(30))?;
        ensure!(status.success(), "the caller ended with {status}");
        let calls = self.calls();
        let due = self.rate as u64 * time.as_secs();
        ensure!(
            calls.0.len() as u64 == due,
            "of {due} calls {} have ended",
            calls.0.len()
        );
        Ok(calls)
    }
}

impl Heard {
    /// Reads what is new, up to the last whole line.
    fn read_on(&mut self, log: &Path) {
        let mut new = Vec::new();
        let read = File::open(log).and_then(|mut log| {
            log.seek(SeekFrom::Start(self.bytes))?;
            log.read_to_end(&mut new)
        });
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if read.is_ok() {
            self.bytes += whole as u64;
            let lines = new[..whole].split(|byte| *byte == b'\n');
            self.calls
                .extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
        }
    }
}

impl Call {
    /// Whether it was answered as it should be.
    pub fn is_ok(&self) -> bool {
        self.code == "OK"
    }
}

impl Calls {
    /// Those that began in a span of time.
    pub fn between(&self, from: f64, to: f64) -> Calls {
        let began = self.0.iter().filter(|call| (from..to).contains(&call.at));
        Calls(began.cloned().collect())
    }

    /// Those that failed.
    pub fn failed(&self) -> Calls {
        Calls(self.0.iter().filter(|call| !call.is_ok()).cloned().collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The part of the answers that one endpoint gave.
    pub fn share(&self, endpoint: &Endpoint) -> f64 {
        let answered = self.0.iter().filter(|call| call.is_ok());
        let own = answered.clone().filter(|call| call.from == endpoint.pod.name()).count();
        own as f64 / answered.count().max(1) as f64
    }

    /// Who answered.
    pub fn answered_by(&self) -> BTreeSet<&str> {
        let answered = self.0.iter().filter(|call| call.is_ok());
        answered.map(|call| call.from.as_str()).collect()
    }

    /// The time within which this part of them ended, in milliseconds.
    pub fn within(&self, part: f64) -> Result<f64> {
        let mut times: Vec<_> = self.0.iter().map(|call| call.ms).collect();
        times.sort_by(f64::total_cmp);
        let last = times.len().checked_sub(1).context("there are no calls")?;
        Ok(times[(last as f64 * part) as usize])
    }
}

impl fmt::Display for Calls {
    /// The first few, and how many more there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for call in self.0.iter().take(5) {
            write!(
                f,
                "\n  at {:.3}, after {:.1} ms: {} {}",
                call.at, call.ms, call.code, call.why
            )?;
        }
        match self.0.len().saturating_sub(5) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// Streams that run, as their caller reports them.
pub struct Streams(Program);

/// A reply on a stream, or its end.
#[derive(Debug, Clone, Deserialize)]
pub struct Reply {
    /// The stream's number, from 0 on.
    pub stream: usize,
    /// When it came, in seconds of the epoch.
    pub at: f64,
    /// Who sent it.
    #[serde(default)]
    pub from: String,
    /// The status, if it is the end.
    pub code: Option<String>,
}

impl Streams {
    /// Opens so many, to greeters of a name; each has had a reply.
    pub fn open(pod: &Pod, name: &str, number: usize) -> Result<Streams> {
        let streams = Streams(peer::streams(pod, &format!("{name}:{PORT}"), number)?);
        wait_until(Duration::from_secs(20), "every stream has had a reply", || {
            let replies = streams.replies();
            let answered: BTreeSet<_> = replies.iter().map(|reply| reply.stream).collect();
            answered.len() == number
        })?;
        Ok(streams)
    }

    /// All that has come so far.
    pub fn replies(&self) -> Vec<Reply> {
        let said = self.0.output();
        said.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// Now, as callers tell the time.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
