//! A metric with labels: its name, what it means, and how many values its labels may take.

use std::marker::PhantomData;

use super::numbers::{Counter, FromCell, Gauge};

/// A metric, told apart by `N` labels. Declared once, as a `static`.
#[derive(Debug)]
pub struct Family<T, const N: usize> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: [&'static str; N],
    pub(super) ceiling: usize,
    measure: PhantomData<fn() -> T>,
}

impl<const N: usize> Family<Counter, N> {
    /// A metric that only grows. Its name ends in `_total`.
    pub const fn counter(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Family {
            name,
            help,
            labels,
            ceiling: CEILING,
            measure: PhantomData,
        }
    }
}

impl<const N: usize> Family<Gauge, N> {
    /// A metric that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Family {
            name,
            help,
            labels,
            ceiling: CEILING,
            measure: PhantomData,
        }
    }
}

impl<T, const N: usize> Family<T, N> {
    /// How many combinations of label values are told apart; all further ones are counted as `_OTHER`. Default 256.
    pub const fn at_most(mut self, ceiling: usize) -> Self {
        self.ceiling = ceiling;
        self
    }
}

/// How many combinations of label values a family has unless it says otherwise.
const CEILING: usize = 256;

/// What a family measures with: a [`Counter`] or a [`Gauge`].
pub trait Measure: FromCell {
    /// The kind's name in the text of a scrape.
    #[doc(hidden)]
    const TYPE: &'static str;
    /// What the bits of a cell mean.
    #[doc(hidden)]
    fn value(bits: u64) -> f64;
}

impl Measure for Counter {
    const TYPE: &'static str = "counter";
    fn value(bits: u64) -> f64 {
        bits as f64
    }
}

impl Measure for Gauge {
    const TYPE: &'static str = "gauge";
    fn value(bits: u64) -> f64 {
        bits as i64 as f64
    }
}
