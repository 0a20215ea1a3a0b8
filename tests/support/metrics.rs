//! Reads the Prometheus text format.

use std::collections::BTreeMap;

/// Every sample of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads a scrape; a line that is no sample is passed over.
    pub fn parse(text: &str) -> Metrics {
        Metrics(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        )
    }

    /// The sum over the samples of a name that carry all these labels; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name, labels).map(|sample| sample.value).sum()
    }

    /// Whether there is a sample of a name that carries all these labels.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.of(name, labels).next().is_some()
    }

    /// The values that a label has over the samples of a name, with the sum for each.
    pub fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.of(name, &[]) {
            if let Some(value) = sample.labels.get(label) {
                *sums.entry(value.clone()).or_default() += sample.value;
            }
        }
        sums
    }

    /// All samples: a name, its labels, and the value.
    pub fn samples(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>, f64)> {
        self.0
            .iter()
            .map(|sample| (sample.name.as_str(), &sample.labels, sample.value))
    }

    fn of<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        })
    }
}

/// `name{label="value",…} number`, a timestamp after it or not.
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').trim().to_string(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.to_string(),
        labels,
        value,
    })
}

/// Up to the closing quote, with `\\`, `\"` and `\n` undone; and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_not_named() {
        let metrics = Metrics::parse(
            "# TYPE calls counter\ncalls{to=\"a\",code=\"OK\"} 3\ncalls{to=\"b\",code=\"OK\"} 4\ncalls{to=\"b\",code=\"no\"} 0.5\nup 1 1700000000\n",
        );
        assert_eq!(metrics.sum("calls", &[]), 7.5);
        assert_eq!(metrics.sum("calls", &[("code", "OK")]), 7.0);
        assert_eq!(metrics.sum("calls", &[("code", "OK"), ("to", "b")]), 4.0);
        assert_eq!(metrics.sum("up", &[]), 1.0);
        assert_eq!(
            metrics.by_label("calls", "to"),
            BTreeMap::from([("a".into(), 3.0), ("b".into(), 4.5)])
        );
        assert!(!metrics.has("calls", &[("to", "c")]));
    }

    #[test]
    fn label_values_may_hold_what_looks_like_syntax() {
        let metrics = Metrics::parse("errors{why=\"a \\\"b\\\", {c}=\\\\\"} 2\n");
        assert_eq!(metrics.sum("errors", &[("why", "a \"b\", {c}=\\")]), 2.0);
    }
}
