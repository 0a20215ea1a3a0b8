//! From the text of a setting to its type, and back to what `/config` shows. What is refused is refused in a sentence.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::Read;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use portunus_logbook::masked;
use portunus_proto::{Declared, PROTOCOLS, SpiffeId};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tracing_subscriber::filter::Targets;

use crate::balance::Algorithm;
use crate::control::Address;
use crate::health;
use crate::policy::Mode;
use crate::redirect::{Ports, Subnets};
use crate::telemetry::access;

/// What a text means, or why it means nothing.
pub(super) type Parsed<T> = Result<T, String>;

/// A whole number within a range.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Parsed<T>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("it must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// A number of bytes within a range: `65536`, `64KiB`, or as Kubernetes writes it, `64Ki`, `10M`.
pub(super) fn bytes<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<T> {
    const UNITS: [(&str, u64); 10] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("", 1),
    ];
    move |text| {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or(("", 1));
        let bytes = digits
            .trim_end()
            .parse()
            .ok()
            .and_then(|number: u64| number.checked_mul(unit));
        let bytes = bytes.ok_or("it must be a number of bytes, such as 65536, 64KiB or 1MiB")?;
        if !range.contains(&bytes) {
            return Err(format!("it must be from {} to {} bytes", range.start(), range.end()));
        }
        T::try_from(bytes).map_err(|_| "it is too large".to_owned())
    }
}

/// A duration as the Gateway API writes it (GEP-2257), within a range: `500ms`, `1m30s`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| {
        let duration = parse_duration(text).ok_or("it must be a duration, such as 500ms, 10s or 1m30s")?;
        if !range.contains(&duration) {
            return Err(format!(
                "it must be from {} to {}",
                write_duration(*range.start()),
                write_duration(*range.end())
            ));
        }
        Ok(duration)
    }
}

fn parse_duration(mut text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for _ in 0..4 {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = text[..digits].parse().ok()?;
        let unit = text[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        sum += match &text[digits..digits + unit] {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        text = &text[digits + unit..];
        if text.is_empty() {
            return Some(sum);
        }
    }
    None
}

fn write_duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    let parts = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(millis), "ms"),
    ];
    let text: String = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Several values with commas between them; none is none.
pub(super) fn list<T>(each: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Vec<T>> {
    move |text| {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let which = |part: &str, why| {
            if text.contains(',') {
                format!("of {part:?}: {why}")
            } else {
                why
            }
        };
        parts.map(|part| each(part).map_err(|why| which(part, why))).collect()
    }
}

/// A value that may be left unsaid.
pub(super) fn optional<T>(said: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| {
        if text.is_empty() {
            Ok(None)
        } else {
            said(text).map(Some)
        }
    }
}

/// One or more addresses to listen at, each said once.
pub(super) fn listen(text: &str) -> Parsed<Vec<SocketAddr>> {
    let addresses = list(|text| address(text, 4140))(text)?;
    match addresses
        .iter()
        .enumerate()
        .find(|(at, address)| addresses[..*at].contains(address))
    {
        Some((_, twice)) => Err(format!("{twice} stands there twice")),
        None => Ok(addresses),
    }
}

/// Where an application listens.
pub(super) fn application(text: &str) -> Parsed<SocketAddr> {
    address(text, 50051)
}

/// An address and a port; `example` is a port that somebody could have meant.
fn address(text: &str, example: u16) -> Parsed<SocketAddr> {
    let address = text.parse();
    address.map_err(|_| format!("it must be an address and a port, such as 127.0.0.1:{example} or [::1]:{example}"))
}

/// A share in percent.
pub(super) fn percent(text: &str) -> Parsed<f64> {
    let percent = text.strip_suffix('%').unwrap_or(text).trim_end().parse().ok();
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "it must be a number from 0 to 100".to_owned())
}

/// Any text.
pub(super) fn text(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

/// The name of a service, as `grpc.health.v1` is asked about it; empty for the server as a whole.
pub(super) fn service(text: &str) -> Parsed<String> {
    match text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("it must be the name of a service, such as shop.v1.Cart, of at most 255 bytes".to_owned()),
    }
}

/// A file's path.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    Ok(text.into())
}

/// A file, where somebody may have said what is in it. Paths are shown, in logs too, and tokens never are.
pub(super) fn path_of_token(text: &str) -> Parsed<PathBuf> {
    if text.starts_with('/') || masked(text) == text {
        path(text)
    } else {
        Err("it must be the path of the file that has the token".to_owned())
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&str) -> Parsed<T> {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, meaning)) => Ok(*meaning),
        None => {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            Err(format!("it must be one of {}", words.join(", ")))
        }
    }
}

/// `PORT=PROTOCOL`, any number of them, each port once.
pub(super) fn protocols(text: &str) -> Parsed<BTreeMap<u16, Declared>> {
    let pairs = list(|text| {
        let (port, protocol) = text
            .split_once('=')
            .ok_or("it must be PORT=PROTOCOL, such as 50051=h2c")?;
        Ok((number(1..=u16::MAX)(port)?, protocol_word(protocol)?))
    })(text)?;
    let mut ports = BTreeMap::new();
    for (port, protocol) in pairs {
        if ports.insert(port, protocol).is_some_and(|before| before != protocol) {
            return Err(format!("port {port} is declared in two ways"));
        }
    }
    Ok(ports)
}

/// A word of `appProtocol`, or that for ports whose bytes are not looked at.
fn protocol_word(text: &str) -> Parsed<Declared> {
    match text {
        "opaque" => Ok(Declared::Opaque),
        _ => word(&PROTOCOLS)(text),
    }
}

const MODES: &[(&str, Mode)] = &[
    ("strict", Mode::Strict),
    ("permissive", Mode::Permissive),
    ("disabled", Mode::Disabled),
];

/// What ports take.
pub(super) fn mode(text: &str) -> Parsed<Mode> {
    word(MODES)(text)
}

/// `PORT=MODE`, any number of them, each port once.
pub(super) fn modes(text: &str) -> Parsed<BTreeMap<u16, Mode>> {
    let pairs = list(|text| {
        let (port, said) = text
            .split_once('=')
            .ok_or("it must be PORT=MODE, such as 50051=strict")?;
        Ok((number(1..=u16::MAX)(port)?, mode(said)?))
    })(text)?;
    let mut ports = BTreeMap::new();
    for (port, mode) in pairs {
        if ports.insert(port, mode).is_some_and(|before| before != mode) {
            return Err(format!("port {port} has two modes"));
        }
    }
    Ok(ports)
}

/// Root certificates, and the file that they were read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TrustBundle {
    file: PathBuf,
    /// In DER.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Reads the certificates of a PEM file.
    pub(super) fn read(file: &str) -> Parsed<TrustBundle> {
        /// Some hundred roots.
        const LONGEST: u64 = 1 << 20;
        let unreadable = |why| format!("it cannot be read: {why}");
        let mut text = Vec::new();
        let opened = std::fs::File::open(file).map_err(unreadable)?;
        opened.take(LONGEST + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > LONGEST {
            return Err("it has more than 1 MiB".to_owned());
        }
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let roots = roots.map_err(|why| format!("it is no PEM: {why}"))?;
        if roots.is_empty() {
            return Err(
                "it has no certificate in PEM, which would be between lines of BEGIN CERTIFICATE and END CERTIFICATE"
                    .to_owned(),
            );
        }
        let file = file.into();
        Ok(TrustBundle { file, roots })
    }
}

/// Ports, or subnets, as the redirect rules read them.
pub(super) fn parsed<T: FromStr<Err: Display>>(text: &str) -> Parsed<T> {
    text.parse().map_err(|mistake: T::Err| mistake.to_string())
}

/// A host whose endpoints stand in SRV records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvName {
    /// The host, as callers name it.
    pub host: String,
    /// The name that has the records.
    pub record: String,
}

impl SrvName {
    /// `HOST` (its records are at `_grpc._tcp.HOST`), or `HOST=RECORD`.
    pub(super) fn parse(text: &str) -> Parsed<SrvName> {
        let record = |host: &str| format!("_grpc._tcp.{host}");
        let (host, record) = text
            .split_once('=')
            .map_or((text, record(text)), |(host, name)| (host, name.to_owned()));
        let is_name = |name: &str| {
            let name = name.strip_suffix('.').unwrap_or(name);
            name.len() <= 253
                && name.split('.').all(|label| {
                    (1..=63).contains(&label.len())
                        && label
                            .bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                })
        };
        if !is_name(host) || !is_name(&record) {
            return Err("it must be a name of DNS, or HOST=RECORD with two of them".to_owned());
        }
        Ok(SrvName {
            host: host.to_ascii_lowercase(),
            record: record.to_ascii_lowercase(),
        })
    }
}

pub(super) const BALANCERS: &[(&str, Algorithm)] =
    &[("p2c-ewma", Algorithm::P2cEwma), ("round-robin", Algorithm::RoundRobin)];

pub(super) const HEALTH_CHECKS: &[(&str, health::Mode)] = &[
    ("check", health::Mode::Check),
    ("watch", health::Mode::Watch),
    ("off", health::Mode::Off),
];

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

pub(super) const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

pub(super) const ACCESS_LOGS: &[(&str, Option<access::Form>)] = &[
    ("off", None),
    ("json", Some(access::Form::Json)),
    ("text", Some(access::Form::Text)),
];

pub(super) const SWITCH: &[(&str, bool)] = &[("off", false), ("on", true)];

/// `LEVEL`, or `LEVEL,MODULE=LEVEL,...`.
pub(super) fn log_level(text: &str) -> Parsed<Targets> {
    // Targets would take any word for a module, and log all of it.
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',') {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            let levels = LEVELS.join(", ");
            return Err(format!(
                "it must be one of {levels}, or with MODULE=LEVEL for single modules: info,MODULE=debug"
            ));
        }
    }
    text.parse().map_err(|why| format!("{why}"))
}

/// Shows what a setting was understood as.
pub(super) trait Show {
    fn show(&self) -> Value;
}

macro_rules! show {
    ($($type:ty => |$it:ident| $show:expr;)*) => {
        $(impl Show for $type {
            fn show(&self) -> Value {
                let $it = self;
                json!($show)
            }
        })*
    };
}

show! {
    u16 => |it| it;
    u32 => |it| it;
    u64 => |it| it;
    usize => |it| it;
    Duration => |it| write_duration(*it);
    SocketAddr => |it| it.to_string();
    PathBuf => |it| it.display().to_string();
    Ports => |it| it.to_string();
    Subnets => |it| it.to_string();
    SrvName => |it| format!("{}={}", it.host, it.record);
    BTreeMap<u16, Declared> => |it| it.iter().map(|(port, of)| (port.to_string(), spelled(&PROTOCOLS, *of))).collect::<BTreeMap<_, _>>();
    BTreeMap<u16, Mode> => |it| it.iter().map(|(port, of)| (port.to_string(), spelled(MODES, *of))).collect::<BTreeMap<_, _>>();
    Mode => |it| spelled(MODES, *it);
    Address => |it| it.to_string();
    SpiffeId => |it| it.to_string();
    TrustBundle => |it| it.file.display().to_string();
    Algorithm => |it| spelled(BALANCERS, *it);
    health::Mode => |it| spelled(HEALTH_CHECKS, *it);
    LogFormat => |it| spelled(LOG_FORMATS, *it);
    Option<access::Form> => |it| spelled(ACCESS_LOGS, *it);
    bool => |it| spelled(SWITCH, *it);
    String => |it| it;
    f64 => |it| it;
    Targets => |it| it.to_string();
}

impl<T: Show> Show for Option<T> {
    fn show(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::show)
    }
}

impl<T: Show> Show for Vec<T> {
    fn show(&self) -> Value {
        self.iter().map(T::show).collect()
    }
}

/// The first word that has this meaning.
fn spelled<T: PartialEq>(words: &'static [(&'static str, T)], meaning: T) -> &'static str {
    words.iter().find(|(_, of)| *of == meaning).map_or("", |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_the_gateway_api_writes_them() {
        for (text, millis) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1h2m3s4ms", 3_723_004),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(write_duration(Duration::from_millis(millis)), text);
        }
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "100000s",
            "1h1m1s1ms1ms",
            "1d",
            "1S",
            "\u{661}s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_are_read_with_the_units_of_computers_and_of_kubernetes() {
        for (text, expected) in [
            ("65536", 65_536),
            ("64KiB", 65_536),
            ("64Ki", 65_536),
            ("1MiB", 1 << 20),
            ("2M", 2_000_000),
        ] {
            assert_eq!(bytes::<u64>(0..=u64::MAX)(text), Ok(expected), "{text}");
        }
        for text in ["", "KiB", "1kb", "1.5MiB", "-1", "99999999999GiB"] {
            assert!(bytes::<u64>(0..=u64::MAX)(text).is_err(), "{text}");
        }
        assert!(bytes::<u32>(1..=10)("11").is_err());
        assert!(
            bytes::<u32>(0..=u64::MAX)("4Gi").is_err(),
            "a value that its type cannot hold is refused"
        );
    }

    #[test]
    fn a_port_is_declared_by_every_name_that_the_field_has_for_its_protocol() {
        let ports =
            protocols("1=h2c,2=kubernetes.io/h2c,3=grpc,4=http2,5=tcp,6=https,7=http,8=grpc-web").expect("all known");
        assert!((1..=4).all(|port| ports[&port] == Declared::Http2));
        assert_eq!(
            [ports[&5], ports[&6], ports[&7]],
            [Declared::Opaque, Declared::Tls, Declared::Http]
        );
        for text in ["1", "1=", "1=quic", "0=h2c", "x=h2c", "1=h2c,1=tcp"] {
            assert!(protocols(text).is_err(), "{text}");
        }
        assert!(
            protocols("1=h2c,1=grpc").is_ok(),
            "the same said twice is no contradiction"
        );
    }

    #[test]
    fn a_host_has_its_srv_records_where_grpc_has_them_unless_said_otherwise() {
        let name = |text: &str| SrvName::parse(text).map(|name| name.record);
        assert_eq!(name("Greeter.example"), Ok("_grpc._tcp.greeter.example".to_owned()));
        assert_eq!(
            name("a.example=_x._tcp.b.example."),
            Ok("_x._tcp.b.example.".to_owned())
        );
        for text in ["", "=", "a=", "a..b", "a b", &"a".repeat(64)] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_log_level_is_a_level_and_not_any_word() {
        for text in ["info", "warn,portunus_sidecar::http2=debug", "off"] {
            assert!(log_level(text).is_ok(), "{text}");
        }
        for text in ["", "verbose", "info,portunus_sidecar", "info,x=loud", "3"] {
            assert!(log_level(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_to_listen_at_are_whole_and_different() {
        assert_eq!(listen("127.0.0.1:1,[::1]:1").map(|all| all.len()), Ok(2));
        for text in ["4140", "localhost:4140", "::1:4140", "127.0.0.1", "1.1.1.1:1,1.1.1.1:1"] {
            assert!(listen(text).is_err(), "{text}");
        }
    }
}
