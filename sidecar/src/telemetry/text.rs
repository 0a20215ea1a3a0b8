//! The text of a scrape: Prometheus' exposition format 0.0.4, or OpenMetrics 1.0 for whoever prefers it.
//!
//! Written by hand. The crate for it, prometheus-client, writes OpenMetrics only, keeps each family's numbers in one map
//! behind one lock, and asks for its own types around ours; what it would spare is this page.

use std::fmt::Write;

use super::sink::{Label, Sink};

/// A form that a scrape may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own text, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.
    OpenMetrics,
}

impl Format {
    /// What the `accept` field of a request prefers; Prometheus' own text when it says nothing.
    pub fn of_accept(accept: &str) -> Format {
        let mut plain = 0.0;
        let mut open = 0.0;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality = 1.0_f32;
            for part in parts {
                if let Some(text) = part.strip_prefix("q=") {
                    quality = text.parse().unwrap_or(0.0);
                }
            }
            match &*kind {
                "application/openmetrics-text" => open = quality.max(open),
                "text/plain" | "text/*" | "*/*" => plain = quality.max(plain),
                _ => {}
            }
        }
        if open > 0.0 && open >= plain {
            Format::OpenMetrics
        } else {
            Format::Prometheus
        }
    }

    /// The value of the answer's `content-type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A scrape that is being written.
pub(super) struct Page {
    format: Format,
    text: String,
}

impl Page {
    pub(super) fn new(format: Format) -> Page {
        Page {
            format,
            text: String::new(),
        }
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn series(&mut self, name: &str, suffix: &str, labels: &[Label<'_>], bound: Option<&str>, value: f64) {
        self.line(format_args!("{name}{suffix}"));
        let mut open = '{';
        for (label, text) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            self.text.push(open);
            open = ',';
            self.line(format_args!("{label}=\""));
            for char in text.chars() {
                match char {
                    '\\' => self.text.push_str(r"\\"),
                    '"' => self.text.push_str(r#"\""#),
                    '\n' => self.text.push_str(r"\n"),
                    char => self.text.push(char),
                }
            }
            self.text.push('"');
        }
        if open == ',' {
            self.text.push('}');
        }
        self.line(format_args!(" {value}\n"));
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        self.text
            .write_fmt(text)
            .expect("a String takes all that is written to it");
    }
}

impl Sink for Page {
    fn family(&mut self, name: &str, help: &str, kind: &str) {
        // OpenMetrics names a counter's family without the suffix that its samples have.
        let name = match self.format {
            Format::OpenMetrics if kind == "counter" => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: f64) {
        self.series(name, "", labels, None, value);
    }

    fn histogram(&mut self, name: &str, labels: &[Label<'_>], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut below = 0;
        for (at, count) in counts.iter().enumerate() {
            below += count;
            let bound = match bounds.get(at) {
                None => "+Inf".to_owned(),
                // A canonical number of OpenMetrics has a point; Go writes none.
                Some(bound) if self.format == Format::OpenMetrics => format!("{bound:?}"),
                Some(bound) => bound.to_string(),
            };
            self.series(name, "_bucket", labels, Some(&bound), below as f64);
        }
        self.series(name, "_sum", labels, None, sum);
        self.series(name, "_count", labels, None, below as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_that_the_scraper_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            ("application/json", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0", Format::OpenMetrics),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=0.2, text/plain", Format::Prometheus),
            ("application/openmetrics-text;q=oops", Format::Prometheus),
            (prometheus, Format::OpenMetrics),
        ] {
            assert_eq!(Format::of_accept(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn a_label_value_cannot_end_its_line() {
        let mut page = Page::new(Format::Prometheus);
        page.sample("m", &[("a", "x\"} 1\nfake 2 \\")], 3.0);
        assert_eq!(page.finish(), "m{a=\"x\\\"} 1\\nfake 2 \\\\\"} 3\n");
    }

    #[test]
    fn a_histogram_counts_all_that_is_below_each_bound() {
        let mut page = Page::new(Format::Prometheus);
        page.histogram("h", &[], &[0.5, 1.0], &[1, 2, 4], 9.25);
        let text = "h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 7\nh_sum 9.25\nh_count 7\n";
        assert_eq!(page.finish(), text);
    }

    #[test]
    fn openmetrics_differs_where_its_standard_does() {
        let mut page = Page::new(Format::OpenMetrics);
        page.family("c_total", "Counts.", "counter");
        page.sample("c_total", &[], 1.0);
        page.histogram("h", &[], &[1.0], &[1, 0], 1.0);
        let text = page.finish();
        assert!(
            text.starts_with("# HELP c Counts.\n# TYPE c counter\nc_total 1\n"),
            "{text}"
        );
        assert!(text.contains("le=\"1.0\"") && text.ends_with("# EOF\n"), "{text}");
    }
}
