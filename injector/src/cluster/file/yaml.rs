//! Turns text into documents that know where each value stands. The only place that knows which YAML library there is.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Options, Spanned};

/// How deep maps and lists may nest. Manifests need about ten.
const MOST_DEPTH: usize = 32;
/// How many values a file may have.
const MOST_NODES: usize = 250_000;
/// How many aliases a file may have, and how much they may grow it by.
const MOST_ALIASES: usize = 1_000;
const MOST_REPLAYED: usize = 50_000;
/// How many documents a file may have.
const MOST_DOCUMENTS: usize = 10_000;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it begins.
    pub at: At,
}

/// A line and a column, both counted from 1; 0 where they are not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// What a document can hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values, in their order. No key comes twice.
    Map(Vec<(Key, Node)>),
}

/// A map's key and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The key.
    pub text: String,
    /// Where it begins.
    pub at: At,
}

/// Why a text is no YAML that is taken here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Where.
    pub at: At,
    /// What, in the library's words.
    pub sentence: String,
}

/// Reads the documents of a file; those that hold nothing are left out. JSON is YAML. What comes after a mistake of
/// syntax cannot be read any more.
pub fn documents(text: &str) -> (Vec<Node>, Option<Trouble>) {
    let mut documents = Vec::new();
    let mut bytes = text.as_bytes();
    for document in serde_saphyr::read_with_options::<_, Node>(&mut bytes, options()) {
        match document {
            Ok(node) if node.value == Value::Null => {}
            Ok(node) => documents.push(node),
            Err(why) => return (documents, Some(trouble(&why))),
        }
    }
    (documents, None)
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MOST_DEPTH,
            max_nodes: MOST_NODES,
            max_events: 2 * MOST_NODES,
            max_aliases: MOST_ALIASES,
            max_documents: MOST_DOCUMENTS,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MOST_REPLAYED,
            max_replay_stack_depth: MOST_DEPTH,
        },
        strict_booleans: true,
        with_snippet: false,
    }
}

fn trouble(why: &Error) -> Trouble {
    let why = why.without_snippet();
    let at = why.location().map(at).unwrap_or_default();
    let whole = why.to_string();
    let lines: Vec<_> = whole.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut sentence = lines.join("; ");
    // The place is told beside the sentence.
    for place in [
        format!(" at line {}, column {}", at.line, at.column),
        format!("line {} column {}: ", at.line, at.column),
        format!("error: line {} column {}: ", at.line, at.column),
    ] {
        sentence = sentence.replace(&place, "");
    }
    // What a programmer could do about it is no help to an operator.
    if let Some(advice) = sentence.find(", set ") {
        sentence.truncate(advice);
    }
    Trouble { at, sentence }
}

fn at(location: serde_saphyr::Location) -> At {
    At {
        line: u32::try_from(location.line()).unwrap_or(u32::MAX),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX),
    }
}

impl Value {
    /// What kind of value this is, in words for a sentence.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number with a fraction",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

impl Node {
    /// The value of a key, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of a key, if this is a map that has one there.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key).map(|node| &node.value) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Where `path` (`spec.ports[0].name`) stands, or as much of it as there is.
    pub fn locate(&self, path: &str) -> At {
        let mut node = self;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match (&node.value, step.strip_suffix(']')) {
                (Value::List(items), Some(index)) => index.parse::<usize>().ok().and_then(|index| items.get(index)),
                _ => node.get(step),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.at
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node {
            at: at(spanned.referenced),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Key {
            at: at(spanned.referenced),
            text: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or(Value::Float(f64::INFINITY), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Any)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line_and_column() {
        let (documents, trouble) = documents("a: 1\n---\nb:\n  - c: \"x\"\n    d: no\n  - 2.5\n");
        assert_eq!(trouble, None);
        assert_eq!(documents.len(), 2);
        let second = &documents[1];
        assert_eq!(second.locate("b[0].c"), At { line: 4, column: 8 });
        assert_eq!(second.locate("b[0].d"), At { line: 5, column: 8 });
        assert_eq!(second.locate("b[1]"), At { line: 6, column: 5 });
        assert_eq!(second.get("b").map(|node| node.value.kind()), Some("a list"));
        let Value::Map(entries) = &second.value else {
            panic!("it is a map")
        };
        assert_eq!(entries[0].0.at, At { line: 3, column: 1 });
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        let cases = [
            ("a: [1, 2\nb: 3\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: \"open\n", 1),
            ("a: 1\n  b: 2\n", 2),
            ("a: *nobody\n", 1),
        ];
        for (text, line) in cases {
            let (_, trouble) = documents(text);
            let trouble = trouble.unwrap_or_else(|| panic!("{text:?} was taken"));
            assert!(
                trouble.at.line >= line && trouble.at.line <= line + 2,
                "{text:?}: {trouble:?}"
            );
            assert!(
                !trouble.sentence.is_empty() && !trouble.sentence.contains('\n'),
                "{trouble:?}"
            );
        }
    }

    #[test]
    fn depth_and_aliases_are_bounded() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(documents(&deep).1.is_some());
        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (from, to) in ["a", "b", "c", "d", "e", "f", "g"]
            .iter()
            .zip(["b", "c", "d", "e", "f", "g", "h"])
        {
            let items = vec![format!("*{from}"); 10].join(", ");
            bomb += &format!("{to}: &{to} [{items}]\n");
        }
        assert!(documents(&bomb).1.is_some());
    }
}
