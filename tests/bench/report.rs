//! What was measured, as a table for eyes and as JSON for everything else.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Value, json};

use super::peers::Peer;

/// One figure of a row, for every peer and round.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// The row, and which figure of it: `T1`, `T3.latency`.
    pub(crate) row: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) values: BTreeMap<Peer, Vec<f64>>,
    pub(crate) targets: Vec<Target>,
}

/// What a figure should reach: at most `bound`, however it is derived.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) text: String,
    pub(crate) got: f64,
    pub(crate) bound: f64,
}

impl Series {
    pub(crate) fn new(row: &'static str, what: &'static str, unit: &'static str) -> Series {
        Series {
            row,
            what,
            unit,
            values: BTreeMap::new(),
            targets: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, peer: Peer, value: f64) {
        self.values.entry(peer).or_default().push(value);
    }

    pub(crate) fn median(&self, peer: Peer) -> Option<f64> {
        self.values.get(&peer).and_then(|values| median(values))
    }

    /// Portunus' median against another peer's.
    pub(crate) fn ratio(&self, other: Peer) -> Option<f64> {
        let ratio = self.median(Peer::Portunus)? / self.median(other)?;
        ratio.is_finite().then_some(ratio)
    }

    /// Demands that Portunus has at most `bound` times what the other peer has.
    pub(crate) fn at_most_times(&mut self, bound: f64, other: Peer) {
        if let Some(got) = self.ratio(other) {
            self.targets.push(Target {
                text: format!("at most {bound:.3} x {other}"),
                got,
                bound,
            });
        }
    }

    /// Demands that Portunus has at most `bound`.
    pub(crate) fn at_most(&mut self, bound: f64) {
        if let Some(got) = self.median(Peer::Portunus) {
            self.targets.push(Target {
                text: format!("at most {bound} {}", self.unit),
                got,
                bound,
            });
        }
    }

    /// Lines for eyes.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("\n{:<16}{}, {}\n", self.row, self.what, self.unit);
        for (peer, values) in &self.values {
            let Some(middle) = median(values) else { continue };
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let range = format!("{} .. {}", figure(low), figure(high));
            let _ = write!(text, "    {peer:<10}{:>10}    {range:<24}", figure(middle));
            if let (Some(ratio), true) = (self.ratio(*peer), *peer != Peer::Portunus) {
                let _ = write!(text, "portunus / {peer} = {ratio:.3}");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        for target in &self.targets {
            let _ = writeln!(text, "    {}", target.verdict());
        }
        text
    }

    /// One object: the medians, and what they were taken from.
    pub(crate) fn json(&self) -> Value {
        let mut object = json!({ "row": self.row, "what": self.what, "unit": self.unit });
        for peer in Peer::ALL {
            object[peer.name()] = json!(self.median(peer));
        }
        let others = Peer::ALL.into_iter().filter(|peer| *peer != Peer::Portunus);
        let ratios: BTreeMap<_, _> = others
            .filter_map(|peer| Some((peer.name(), self.ratio(peer)?)))
            .collect();
        let rounds: BTreeMap<_, _> = self.values.iter().map(|(peer, values)| (peer.name(), values)).collect();
        object["ratios"] = json!(ratios);
        object["rounds"] = json!(rounds);
        object["targets"] = self
            .targets
            .iter()
            .map(|target| json!({ "target": target.text, "got": target.got, "bound": target.bound, "reached": target.reached() }))
            .collect();
        object
    }
}

impl Target {
    pub(crate) fn reached(&self) -> bool {
        self.got <= self.bound
    }

    fn verdict(&self) -> String {
        let Target { text, got, bound } = self;
        if self.reached() {
            format!("reached: {text} (is {})", figure(*got))
        } else if *bound > 0.0 {
            format!(
                "missed by {:.0} %: {text} (is {})",
                (got / bound - 1.0) * 100.0,
                figure(*got)
            )
        } else {
            format!("missed: {text} (is {})", figure(*got))
        }
    }
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value that this share of the values does not exceed; in the middle between two where there is no such value.
pub(crate) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

/// A number with three digits that mean something.
fn figure(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series() -> Series {
        let mut series = Series::new("T1", "CPU a call", "us");
        [1.5, 1.4, 9.0]
            .iter()
            .for_each(|value| series.add(Peer::Portunus, *value));
        [1.0, 1.1, 0.9].iter().for_each(|value| series.add(Peer::Floor, *value));
        series
    }

    #[test]
    fn a_target_says_whether_it_is_reached_and_by_how_much_it_is_missed() {
        let mut series = series();
        series.at_most_times(2.0, Peer::Floor);
        series.at_most_times(1.2, Peer::Floor);
        series.at_most_times(0.1, Peer::Envoy);
        assert_eq!(series.targets.len(), 2, "no target without the peer it is about");
        assert!(
            series.table().contains("reached: at most 2.000 x floor (is 1.50)"),
            "{}",
            series.table()
        );
        assert!(
            series
                .table()
                .contains("missed by 25 %: at most 1.200 x floor (is 1.50)"),
            "{}",
            series.table()
        );
    }

    #[test]
    fn json_holds_medians_ratios_and_null_for_who_was_not_measured() {
        let object = series().json();
        assert_eq!(object["portunus"], 1.5);
        assert_eq!(object["envoy"], Value::Null);
        assert_eq!(object["ratios"]["floor"], 1.5);
        assert_eq!(object["rounds"]["portunus"][2], 9.0);
    }

    #[test]
    fn quantiles_lie_between_the_values() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), Some(99.0));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(median(&[]), None);
    }
}
