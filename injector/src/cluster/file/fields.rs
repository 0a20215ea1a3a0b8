//! Reads the fields of a map one by one: each is what it should be or a mistake, and the rest are unknown.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use portunus_proto::limits::can_be_called;

use super::duration;
use super::finding::Findings;
use super::yaml::{At, Node, Value};
use crate::cluster::Labels;

/// A map that is being read, and its path in the object.
pub struct Fields<'n> {
    node: &'n Node,
    path: String,
    asked: Vec<&'static str>,
}

/// A value and its path.
pub struct Field<'n> {
    /// The value.
    pub node: &'n Node,
    /// `spec.ports[0]`.
    pub path: String,
}

/// A field that somebody may have read of, and what would be done by it.
pub type Later = (&'static str, &'static str);

/// Longest list that is read, of ports, addresses, targets, ...
const MOST_ITEMS: usize = 1_000;
/// Longest label value and longest part of a label's key (Kubernetes, "Labels and Selectors").
const MOST_LABEL: usize = 63;

impl<'n> Fields<'n> {
    /// The fields of `field`; a mistake if it is no map.
    pub fn of(field: &Field<'n>, findings: &mut Findings) -> Option<Fields<'n>> {
        if !matches!(field.node.value, Value::Map(_)) {
            wrong(field, "a map of fields", findings);
            return None;
        }
        Some(Fields {
            node: field.node,
            path: field.path.clone(),
            asked: Vec::new(),
        })
    }

    /// Where the map begins.
    pub fn at(&self) -> At {
        self.node.at
    }

    /// The path of one of its fields.
    pub fn path(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// A field; `null` means that it is not there, as in Kubernetes.
    pub fn get(&mut self, key: &'static str) -> Option<Field<'n>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        let node = self.node.get(key).filter(|node| node.value != Value::Null)?;
        Some(Field {
            node,
            path: self.path(key),
        })
    }

    /// A field that must be there.
    pub fn demand(&mut self, key: &'static str, expected: &str, findings: &mut Findings) -> Option<Field<'n>> {
        let field = self.get(key);
        if field.is_none() {
            findings.mistake(self.at(), self.path(key), format!("is missing; expected {expected}"));
        }
        field
    }

    /// Warns of a field that stands there and holds nothing: whoever wrote it meant to say something.
    pub fn warn_if_empty(&self, key: &str, message: &str, findings: &mut Findings) -> bool {
        let Some(node) = self.node.get(key) else { return false };
        let is_empty = match &node.value {
            Value::Null => true,
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) => false,
        };
        if is_empty {
            findings.warning(node.at, self.path(key), message);
        }
        is_empty
    }

    /// Warns of fields that are neither read nor among those that the mesh does not need: they are slips.
    pub fn warn_of_others(&self, passed_over: &[&str], findings: &mut Findings) {
        let Value::Map(entries) = &self.node.value else { return };
        for (key, _) in entries {
            let name = key.text.as_str();
            if !self.asked.contains(&name) && !passed_over.contains(&name) {
                findings.warning(key.at, self.path(name), "is no field here, and is not read");
            }
        }
    }

    /// A map.
    pub fn map(&mut self, key: &'static str, findings: &mut Findings) -> Option<Fields<'n>> {
        Fields::of(&self.get(key)?, findings)
    }

    /// A list; empty if it is not there.
    pub fn list(&mut self, key: &'static str, findings: &mut Findings) -> Vec<Field<'n>> {
        self.get(key).map(|field| items(&field, findings)).unwrap_or_default()
    }

    /// A text.
    pub fn text(&mut self, key: &'static str, findings: &mut Findings) -> Option<&'n str> {
        text(&self.get(key)?, "a text", findings)
    }

    /// `true` or `false`.
    pub fn bool(&mut self, key: &'static str, findings: &mut Findings) -> Option<bool> {
        let field = self.get(key)?;
        match field.node.value {
            Value::Bool(is) => Some(is),
            _ => {
                let quoted = matches!(&field.node.value, Value::Text(said) if said == "true" || said == "false");
                wrong(
                    &field,
                    if quoted {
                        "true or false, without quotes"
                    } else {
                        "true or false"
                    },
                    findings,
                );
                None
            }
        }
    }

    /// A text that is one of these.
    pub fn one_of<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)], findings: &mut Findings) -> Option<T> {
        one_of(&self.get(key)?, choices, findings)
    }

    /// A DNS label, such as names are.
    pub fn dns_label(&mut self, key: &'static str, findings: &mut Findings) -> Option<&'n str> {
        dns_label(&self.get(key)?, findings)
    }

    /// A label's value as Kubernetes has them; one that is empty says nothing.
    pub fn label_value(&mut self, key: &'static str, findings: &mut Findings) -> Option<&'n str> {
        label_value(&self.get(key)?, findings)
    }

    /// A whole number in a range.
    pub fn number(&mut self, key: &'static str, least: u32, most: u32, findings: &mut Findings) -> Option<u32> {
        number(&self.get(key)?, least, most, findings)
    }

    /// A duration from `least` to a day.
    pub fn duration(&mut self, key: &'static str, least: Duration, findings: &mut Findings) -> Option<Duration> {
        let field = self.get(key)?;
        let said = text(&field, duration::EXPECTED, findings)?;
        match duration::parse(said) {
            None => {
                wrong(&field, duration::EXPECTED, findings);
                None
            }
            Some(is) if is < least || is > MOST_DURATION => {
                let expected = format!("a duration from {}ms to 24h", least.as_millis());
                wrong(&field, &expected, findings);
                None
            }
            fine => fine,
        }
    }

    /// Labels: a map of texts.
    pub fn labels(&mut self, key: &'static str, findings: &mut Findings) -> Labels {
        self.get(key).map(|field| labels(&field, findings)).unwrap_or_default()
    }

    /// Nothing else may stand here. `later` are fields of other versions, each with what this one does not do.
    pub fn done(self, later: &[Later], findings: &mut Findings) {
        let Value::Map(entries) = &self.node.value else { return };
        for (key, _) in entries {
            let name = key.text.as_str();
            if self.asked.contains(&name) {
                continue;
            }
            let message = match later.iter().find(|(later, _)| *later == name) {
                Some((_, what)) => format!(
                    "is not understood by this version, which does not {what}; remove it, so that nobody relies on it"
                ),
                None => format!("is no field here; expected one of {}", self.asked.join(", ")),
            };
            findings.mistake(key.at, self.path(name), message);
        }
    }
}

/// Longest duration that makes sense anywhere.
const MOST_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The items of a list.
pub fn items<'n>(field: &Field<'n>, findings: &mut Findings) -> Vec<Field<'n>> {
    let Value::List(items) = &field.node.value else {
        wrong(field, "a list", findings);
        return Vec::new();
    };
    if items.len() > MOST_ITEMS {
        wrong(field, &format!("at most {MOST_ITEMS} items"), findings);
        return Vec::new();
    }
    let item = |(index, node)| Field {
        node,
        path: format!("{}[{index}]", field.path),
    };
    items.iter().enumerate().map(item).collect()
}

/// A text.
pub fn text<'n>(field: &Field<'n>, expected: &str, findings: &mut Findings) -> Option<&'n str> {
    match &field.node.value {
        Value::Text(text) => Some(text),
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) if expected == "a text" => {
            wrong(field, "a text: put it in quotes", findings);
            None
        }
        // A name may be all digits; YAML takes it for a number.
        Value::Bool(_) | Value::Integer(_) if expected == DNS_LABEL => {
            wrong(field, &format!("{expected}; put it in quotes"), findings);
            None
        }
        _ => {
            wrong(field, expected, findings);
            None
        }
    }
}

/// A text that is one of these.
pub fn one_of<T: Copy>(field: &Field<'_>, choices: &[(&str, T)], findings: &mut Findings) -> Option<T> {
    let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
    let expected = format!("one of {}", names.join(", "));
    let said = text(field, &expected, findings)?;
    let found = choices.iter().find(|(name, _)| *name == said);
    if found.is_none() {
        wrong(field, &expected, findings);
    }
    found.map(|(_, value)| *value)
}

/// A DNS label (RFC 1123).
pub fn dns_label<'n>(field: &Field<'n>, findings: &mut Findings) -> Option<&'n str> {
    let said = text(field, DNS_LABEL, findings)?;
    if !is_dns_label(said) {
        wrong(field, DNS_LABEL, findings);
        return None;
    }
    Some(said)
}

/// A port.
pub fn port(field: &Field<'_>, findings: &mut Findings) -> Option<u16> {
    number(field, 1, 65_535, findings).and_then(|port| u16::try_from(port).ok())
}

/// A whole number from `least` to `most`.
pub fn number(field: &Field<'_>, least: u32, most: u32, findings: &mut Findings) -> Option<u32> {
    let number = match field.node.value {
        Value::Integer(number) => u32::try_from(number).ok(),
        _ => None,
    };
    let number = number.filter(|number| (least..=most).contains(number));
    if number.is_none() {
        let quotes = match &field.node.value {
            Value::Text(said) if said.parse::<u32>().is_ok() => ", without quotes",
            _ => "",
        };
        wrong(
            field,
            &format!("a whole number from {least} to {most}{quotes}"),
            findings,
        );
    }
    number
}

/// Keeps what an item of a list says, unless it stands in the list already. `name` is how a sentence calls it.
pub fn once<T: PartialEq>(list: &mut Vec<T>, said: T, name: impl Display, item: Field<'_>, findings: &mut Findings) {
    if list.contains(&said) {
        findings.mistake(item.node.at, item.path, format!("is {name} a second time"));
    } else {
        list.push(said);
    }
}

/// An IP address that a machine can have, in its canonical form: an IPv4 address that is mapped into IPv6 is the IPv4 one.
pub fn address(field: &Field<'_>, findings: &mut Findings) -> Option<IpAddr> {
    let said = text(field, ADDRESS, findings)?;
    let address = said.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let address = address.filter(|address| can_be_called(*address));
    if address.is_none() {
        wrong(field, ADDRESS, findings);
    }
    address
}

/// Labels.
pub fn labels(field: &Field<'_>, findings: &mut Findings) -> Labels {
    let mut labels = Labels::new();
    let Value::Map(entries) = &field.node.value else {
        wrong(field, "a map of texts", findings);
        return labels;
    };
    for (key, node) in entries {
        let entry = Field {
            node,
            path: format!("{}.{}", field.path, key.text),
        };
        let name = key.text.rsplit_once('/').map_or(key.text.as_str(), |(_, name)| name);
        if key.text.len() > 253 + 1 + MOST_LABEL || name.is_empty() || !is_label_value(name) {
            findings.mistake(
                key.at,
                entry.path,
                "is no key of a label; expected such as app or example.com/app",
            );
            continue;
        }
        if let Some(value) = label_value(&entry, findings) {
            labels.insert(key.text.clone(), value.to_owned());
        }
    }
    labels
}

fn label_value<'n>(field: &Field<'n>, findings: &mut Findings) -> Option<&'n str> {
    let said = text(field, "a text", findings)?;
    if !is_label_value(said) {
        wrong(field, LABEL_VALUE, findings);
        return None;
    }
    Some(said)
}

/// Says what stands there and what was expected.
pub fn wrong(field: &Field<'_>, expected: &str, findings: &mut Findings) {
    findings.mistake(
        field.node.at,
        field.path.clone(),
        format!("is {}; expected {expected}", said(&field.node.value)),
    );
}

fn said(value: &Value) -> String {
    match value {
        Value::Text(text) if text.chars().count() <= 80 => format!("{text:?}"),
        Value::Text(_) => "a long text".to_owned(),
        Value::Bool(is) => is.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Null | Value::List(_) | Value::Map(_) => value.kind().to_owned(),
    }
}

const DNS_LABEL: &str =
    "a DNS label: at most 63 lower-case letters, digits and '-', with a letter or digit at both ends";
const ADDRESS: &str = "an IP address such as 10.1.0.3 or fd00::3";
const LABEL_VALUE: &str =
    "a label's value: at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends";

/// Whether a text is a DNS label as RFC 1123 has them, in lower case.
pub fn is_dns_label(text: &str) -> bool {
    let may_stand = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(may_stand) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_label_value(text: &str) -> bool {
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = |end: Option<u8>| end.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= MOST_LABEL
        && text.bytes().all(may_stand)
        && ends(text.bytes().next())
        && ends(text.bytes().next_back())
}
