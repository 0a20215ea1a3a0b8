//! Whose spans and metrics these are: OpenTelemetry's resource.

use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1 as proto;
use rand::RngExt as _;

/// The attributes of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `service.name`.
    pub service_name: String,
    /// All others.
    pub attributes: Vec<(String, String)>,
}

impl Default for Resource {
    fn default() -> Self {
        Resource {
            service_name: "unknown_service:sidecar".to_owned(),
            attributes: Vec::new(),
        }
    }
}

impl Resource {
    /// What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say together; the first wins.
    pub fn new(service_name: Option<&str>, attributes: Vec<(String, String)>) -> Resource {
        let (named, attributes) = attributes
            .into_iter()
            .partition::<Vec<_>, _>(|(key, _)| key == "service.name");
        let named = named.into_iter().next_back().map(|(_, name)| name);
        let service_name = service_name
            .map(str::to_owned)
            .or(named)
            .filter(|name| !name.is_empty());
        Resource {
            service_name: service_name.unwrap_or_else(|| Resource::default().service_name),
            attributes,
        }
    }

    /// As it is sent; an instance without a number gets a random one here.
    pub(super) fn encode(&self) -> proto::Resource {
        let mut attributes = vec![string("service.name", &*self.service_name)];
        if !self.attributes.iter().any(|(key, _)| key == "service.instance.id") {
            attributes.push(string("service.instance.id", random_uuid()));
        }
        let said = self
            .attributes
            .iter()
            .map(|(key, value)| -> KeyValue { string(key, &**value) });
        attributes.extend(said);
        proto::Resource {
            attributes,
            ..Default::default()
        }
    }
}

/// Who recorded.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "portunus".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}

/// An attribute that is a text.
pub(super) fn string(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.into())),
        }),
        ..Default::default()
    }
}

/// Reads `key=value,key=value`, its parts percent-encoded (W3C Baggage), as OpenTelemetry's lists are.
pub fn parse_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or("it must be KEY=VALUE,KEY=VALUE")?;
            match (decode(key.trim()), decode(value.trim())) {
                (Some(key), Some(value)) if !key.is_empty() => Ok((key, value)),
                (Some(_), Some(_)) => Err("a pair has no key".to_owned()),
                _ => Err("a percent sign in it begins no two hexadecimal digits of UTF-8".to_owned()),
            }
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push((high << 4 | low) as u8);
    }
    String::from_utf8(bytes).ok()
}

/// RFC 9562, version 4.
fn random_uuid() -> String {
    let random: u128 = rand::rng().random();
    let versioned = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let digits = format!("{versioned:032x}");
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_service_is_the_one_that_was_said_most_clearly() {
        let pairs = || parse_pairs("service.name=a,k8s.pod.name=x%20y").expect("pairs");
        assert_eq!(Resource::new(Some("b"), pairs()).service_name, "b");
        let resource = Resource::new(None, pairs());
        assert_eq!(resource.service_name, "a");
        assert_eq!(resource.attributes, [("k8s.pod.name".to_owned(), "x y".to_owned())]);
        assert_eq!(Resource::new(None, Vec::new()), Resource::default());
    }

    #[test]
    fn pairs_that_are_none_are_refused() {
        for text in ["a", "=b", "a=%", "a=%f", "a=%zz", "a=%ff"] {
            assert!(parse_pairs(text).is_err(), "{text}");
        }
        assert_eq!(parse_pairs(" , "), Ok(Vec::new()));
    }

    #[test]
    fn an_instance_has_a_number_of_its_own() {
        let uuid = random_uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!((uuid.as_bytes()[14], uuid.as_bytes()[8]), (b'4', b'-'), "{uuid}");
        assert!(matches!(uuid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{uuid}");
        assert_ne!(uuid, random_uuid());
    }
}
