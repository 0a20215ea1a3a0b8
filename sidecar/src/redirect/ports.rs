//! Ports that are left alone, as an operator writes them: `80,443,1000-2000`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// A set of TCP ports as ascending ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    /// The ranges, ascending and apart.
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }

    /// Whether the port is among them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

impl FromIterator<RangeInclusive<u16>> for Ports {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Ports(merged)
    }
}

impl FromStr for Ports {
    type Err = PortMistake;

    /// Reads ports and ranges between commas; blanks around them and an empty list are fine.
    fn from_str(text: &str) -> Result<Self, PortMistake> {
        if text.trim().is_empty() {
            return Ok(Ports::default());
        }
        let (mut ranges, mut mistakes) = (Vec::new(), Vec::new());
        for item in text.split(',') {
            match range(item.trim()) {
                Ok(range) => ranges.push(range),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if !mistakes.is_empty() {
            return Err(PortMistake(mistakes.join("; ")));
        }
        let ports: Ports = ranges.into_iter().collect();
        if ports.0.len() > MOST_RANGES {
            return Err(PortMistake(format!(
                "{} separate port ranges are more than the {MOST_RANGES} that the rules hold: join some of them",
                ports.0.len()
            )));
        }
        Ok(ports)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A list of ports that is none; the sentence names every item that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PortMistake(String);

fn range(item: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = match item.split_once('-') {
        Some((first, last)) => (port(first, item)?, port(last, item)?),
        None => (port(item, item)?, port(item, item)?),
    };
    if first > last {
        return Err(format!("`{item}` runs backwards: write {last}-{first}"));
    }
    Ok(first..=last)
}

fn port(text: &str, item: &str) -> Result<u16, String> {
    let text = text.trim();
    // `u16::from_str` would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(format!(
            "`{item}` is neither a port from 1 to 65535 nor a range such as 1000-2000"
        )),
    }
}

/// The rules are walked one by one for the first packet of a connection, and travel to the kernel in one message.
const MOST_RANGES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_read_sorted_and_joined() {
        let ports: Ports = " 443, 80,1000-2000 ,1500-2500,81,65535 ".parse().expect("a list");
        assert_eq!(ports.ranges(), [80..=81, 443..=443, 1000..=2500, 65535..=65535]);
        assert_eq!(ports.to_string(), "80-81,443,1000-2500,65535");
        assert!(ports.contains(2500) && !ports.contains(2501));
        assert_eq!("".parse(), Ok(Ports::default()));
        assert_eq!("1-65535,65535".parse::<Ports>().expect("a list").ranges(), [1..=65535]);
    }

    #[test]
    fn every_wrong_item_is_named() {
        let sentence = "80,http,0,70000,+5,9-3,1-,,-4"
            .parse::<Ports>()
            .expect_err("wrong")
            .to_string();
        for item in [
            "`http`",
            "`0`",
            "`70000`",
            "`+5`",
            "`9-3` runs backwards: write 3-9",
            "`1-`",
            "``",
            "`-4`",
        ] {
            assert!(sentence.contains(item), "{item} is not in: {sentence}");
        }
        assert!(!sentence.contains("`80`"));
    }

    #[test]
    fn more_ranges_than_the_rules_hold_are_refused() {
        let many: Vec<String> = (0..257).map(|n| (2 * n + 1).to_string()).collect();
        let sentence = many.join(",").parse::<Ports>().expect_err("too many").to_string();
        assert!(sentence.contains("257 separate port ranges"), "{sentence}");
        assert!(many[..256].join(",").parse::<Ports>().is_ok());
    }
}
