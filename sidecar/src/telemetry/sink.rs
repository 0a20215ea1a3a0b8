//! Who takes the numbers of a scrape, family by family.

/// A label and its value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// A scrape that is being written, as a page or as a message.
pub(super) trait Sink {
    /// Begins a family: its samples follow. `kind` is `counter`, `gauge` or `histogram`.
    fn family(&mut self, name: &str, help: &str, kind: &str);

    /// One number of the family.
    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: f64);

    /// A histogram's numbers. `counts` has one more than `bounds`, for what is above them all.
    fn histogram(&mut self, name: &str, labels: &[Label<'_>], bounds: &[f64], counts: &[u64], sum: f64);
}
