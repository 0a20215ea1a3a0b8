//! The methods that were learned, and what is counted for each.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::OTHER;
use super::numbers::bump;
use super::sink::Sink;
use crate::grpc::Code;
use crate::words::words;

words! {
    /// Which way a call goes, seen from the application beside us.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[repr(u8)]
    pub enum Direction, as_str {
        /// From the network to the application: the proxy records as the server does.
        Inbound = "inbound",
        /// From the application to the network: the proxy records as the client does.
        Outbound = "outbound",
    }
}

words! {
    /// Which sides of a method send more than one message; the values of the label `grpc_type`, as go-grpc-prometheus spells
    /// them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[repr(u8)]
    pub enum GrpcType, as_str {
        /// One message each way.
        Unary = "unary",
        /// Several messages to the server, one back.
        ClientStream = "client_stream",
        /// One message to the server, several back.
        ServerStream = "server_stream",
        /// Several messages both ways.
        BidiStream = "bidi_stream",
    }
}

impl GrpcType {
    /// What a call looked like that carried so many messages. A stream of one message looks like no stream.
    pub const fn seen(requests: u64, responses: u64) -> GrpcType {
        match (requests > 1, responses > 1) {
            (false, false) => GrpcType::Unary,
            (true, false) => GrpcType::ClientStream,
            (false, true) => GrpcType::ServerStream,
            (true, true) => GrpcType::BidiStream,
        }
    }
}

/// The upper bounds of the histogram's buckets in seconds, as go-grpc-prometheus has them; `+Inf` follows.
pub(super) const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// [`BOUNDS`] in nanoseconds.
const BOUNDS_NS: [u64; 11] = [
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// What one recorder counts for one method. A type's counts (248 bytes) are there once a call of that type was seen.
#[derive(Debug)]
pub(super) struct Method {
    direction: Direction,
    name: Name,
    /// The number of the type that calls have shown so far.
    ///
    /// A stream that carried one message looks unary, so what was seen only ever adds to it: without that, one method
    /// would be counted under several types.
    shape: AtomicU8,
    types: [OnceLock<Box<Counts>>; 4],
}

impl Method {
    pub(super) fn new(direction: Direction, name: Name) -> Method {
        Method {
            direction,
            name,
            shape: AtomicU8::new(0),
            types: Default::default(),
        }
    }

    #[inline]
    pub(super) fn started(&self) {
        bump(&self.counts(self.shape.load(Relaxed)).started, 1);
    }

    #[inline]
    pub(super) fn handled(&self, seen: GrpcType, code: Code, elapsed: Duration) {
        let known = self.shape.load(Relaxed);
        let shape = known | seen as u8;
        if shape != known {
            self.shape.store(shape, Relaxed);
        }
        let counts = self.counts(shape);
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        bump(&counts.handled[code as usize], 1);
        bump(
            &counts.buckets[BOUNDS_NS.iter().take_while(|bound| nanos > **bound).count()],
            1,
        );
        bump(&counts.nanos, nanos);
    }

    #[inline]
    fn counts(&self, shape: u8) -> &Counts {
        self.types[usize::from(shape & 3)].get_or_init(Default::default)
    }

    pub(super) fn key(&self) -> (Direction, Name) {
        (self.direction, self.name.clone())
    }
}

/// The counts of one method and type.
#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    handled: [AtomicU64; 17],
    buckets: [AtomicU64; 12],
    nanos: AtomicU64,
}

/// A method's counts, summed over recorders.
#[derive(Debug, Default)]
pub(super) struct Sums([Option<Box<Sum>>; 4]);

#[derive(Debug, Default)]
struct Sum {
    started: u64,
    handled: [u64; 17],
    buckets: [u64; 12],
    nanos: u64,
}

impl Sums {
    /// Adds what one recorder holds.
    pub(super) fn add(&mut self, method: &Method) {
        for (sum, counts) in self.0.iter_mut().zip(&method.types) {
            let Some(counts) = counts.get() else { continue };
            let sum = sum.get_or_insert_default();
            sum.started += counts.started.load(Relaxed);
            sum.nanos += counts.nanos.load(Relaxed);
            for (sum, cell) in sum.handled.iter_mut().zip(&counts.handled) {
                *sum += cell.load(Relaxed);
            }
            for (sum, cell) in sum.buckets.iter_mut().zip(&counts.buckets) {
                *sum += cell.load(Relaxed);
            }
        }
    }

    fn each(&self) -> impl Iterator<Item = (GrpcType, &Sum)> {
        GrpcType::ALL
            .into_iter()
            .zip(&self.0)
            .filter_map(|(kind, sum)| Some((kind, sum.as_deref()?)))
    }
}

/// Writes the `grpc_server_*` (inbound) or `grpc_client_*` (outbound) families.
pub(super) fn write<'a>(
    direction: Direction,
    methods: impl Iterator<Item = (&'a Name, &'a Sums)> + Clone,
    page: &mut dyn Sink,
) {
    let [started, handled, seconds] = match direction {
        Direction::Inbound => [
            "grpc_server_started_total",
            "grpc_server_handled_total",
            "grpc_server_handling_seconds",
        ],
        Direction::Outbound => [
            "grpc_client_started_total",
            "grpc_client_handled_total",
            "grpc_client_handling_seconds",
        ],
    };
    let rows = || {
        methods.clone().flat_map(|(name, sums)| {
            let (service, method) = name.parts();
            sums.each().map(move |(kind, sum)| {
                (
                    [
                        ("grpc_type", kind.as_str()),
                        ("grpc_service", service),
                        ("grpc_method", method),
                    ],
                    sum,
                )
            })
        })
    };
    if rows().next().is_none() {
        return;
    }
    page.family(started, "RPCs that began, whether or not they have ended.", "counter");
    for (labels, sum) in rows() {
        page.sample(started, &labels, sum.started as f64);
    }
    page.family(
        handled,
        "RPCs that ended, by the status that the caller saw.",
        "counter",
    );
    for ([kind, service, method], sum) in rows() {
        for code in Code::ALL.into_iter().filter(|code| sum.handled[*code as usize] > 0) {
            let labels = [kind, service, method, ("grpc_code", code.name())];
            page.sample(handled, &labels, sum.handled[code as usize] as f64);
        }
    }
    page.family(seconds, "Seconds from an RPC's first byte to its last.", "histogram");
    for (labels, sum) in rows() {
        page.histogram(seconds, &labels, &BOUNDS, &sum.buckets, sum.nanos as f64 / 1e9);
    }
}

/// The name of a learned method, `/package.Service/Method`, or the one that stands for all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(Option<Arc<str>>);

impl Name {
    pub(super) const OTHER: Name = Name(None);

    /// The service and the method.
    fn parts(&self) -> (&str, &str) {
        self.0
            .as_deref()
            .and_then(|path| path[1..].rsplit_once('/'))
            .unwrap_or((OTHER, OTHER))
    }

    /// The path, of a method that was learned.
    pub(super) fn path(&self) -> Option<&Arc<str>> {
        self.0.as_ref()
    }
}

/// The methods that are told apart, in one direction and over all recorders.
#[derive(Debug)]
pub(super) struct Learned {
    paths: HashSet<Arc<str>>,
    ceiling: usize,
}

impl Learned {
    pub(super) fn new(ceiling: usize) -> Learned {
        Learned {
            paths: HashSet::new(),
            ceiling,
        }
    }

    /// The method's name, learned now unless the ceiling is reached.
    pub(super) fn learn(&mut self, path: &str) -> Option<Name> {
        if let Some(known) = self.paths.get(path) {
            return Some(Name(Some(known.clone())));
        }
        if self.is_full() {
            return None;
        }
        let path: Arc<str> = path.into();
        self.paths.insert(path.clone());
        Some(Name(Some(path)))
    }

    /// Whether what is known now is all that will ever be.
    pub(super) fn is_full(&self) -> bool {
        self.paths.len() >= self.ceiling
    }

    pub(super) fn names(&self) -> impl Iterator<Item = Name> {
        self.paths.iter().map(|path| Name(Some(path.clone())))
    }
}

/// The longest path that is learned.
pub(super) const MAX_PATH: usize = 256;

/// Reads `/package.Service/Method` as protobuf would name it; any other path is not a method to learn.
pub(super) fn parse(path: &[u8]) -> Option<&str> {
    if path.len() > MAX_PATH {
        return None;
    }
    let path = std::str::from_utf8(path).ok()?;
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (service.split('.').all(is_identifier) && is_identifier(method)).then_some(path)
}

/// `letter { letter | digit | "_" }`, where `_` may also begin: what protobuf's grammar and its compilers take.
fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_of_a_method_is_read_as_one() {
        for path in ["/grpc.health.v1.Health/Check", "/Greeter/SayHello", "/a_b.C1/_d"] {
            assert_eq!(parse(path.as_bytes()), Some(path));
        }
        let long = format!("/pkg.S/{}", "m".repeat(MAX_PATH));
        for path in [
            "",
            "/",
            "//",
            "/a",
            "a/b",
            "/a/",
            "//b",
            "/a/b/",
            "/a/b/c",
            "/a/b?c",
            "/.a/b",
            "/a./b",
            "/a..b/c",
            "/a/1b",
            "/a/b.js",
            "/a b/c",
            "/\u{e4}/b",
            "*",
            &long,
        ] {
            assert_eq!(parse(path.as_bytes()), None, "{path:?}");
        }
        assert_eq!(parse(b"/a\xff/b"), None);
    }

    #[test]
    fn a_name_falls_apart_into_service_and_method() {
        let mut learned = Learned::new(1);
        let name = learned.learn("/pkg.Service/Method").expect("there is room for one");
        assert_eq!(name.parts(), ("pkg.Service", "Method"));
        assert_eq!(Name::OTHER.parts(), ("_OTHER", "_OTHER"));
    }

    #[test]
    fn past_the_ceiling_only_what_is_known_has_a_name() {
        let mut learned = Learned::new(2);
        assert!(learned.learn("/s/a").is_some() && learned.learn("/s/b").is_some());
        assert!(learned.learn("/s/c").is_none());
        assert!(learned.learn("/s/a").is_some());
    }

    #[test]
    fn the_bounds_are_the_same_in_seconds_and_nanoseconds() {
        for (seconds, nanos) in BOUNDS.into_iter().zip(BOUNDS_NS) {
            assert_eq!((seconds * 1e9).round() as u64, nanos);
        }
    }

    #[test]
    fn the_counts_of_a_method_are_small() {
        assert!(size_of::<Method>() <= 128, "{}", size_of::<Method>());
        assert!(size_of::<Counts>() <= 256, "{}", size_of::<Counts>());
    }
}
