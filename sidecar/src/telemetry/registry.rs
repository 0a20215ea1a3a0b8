//! What all threads have recorded, added up when somebody looks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::method::{self, Direction, Learned, Method, Name, Sums};
use super::sink::Sink;
use super::text::{Format, Page};
use super::{Family, Measure, OTHER, Recorder, Settings, process};

/// Shared by whoever records and whoever scrapes.
pub struct Registry {
    families: Mutex<BTreeMap<&'static str, Rows>>,
    observers: Mutex<Vec<Arc<Observer>>>,
    learned: [Mutex<Learned>; 2],
    methods: Mutex<Vec<Arc<Method>>>,
    recorders: AtomicU32,
}

/// Adds to a scrape what is only known when somebody looks.
type Observer = dyn Fn(&mut BTreeMap<&'static str, Table>) + Send + Sync;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecorderId(u32);

impl Registry {
    /// An empty registry, but for what it knows of its own process.
    pub fn new(settings: &Settings) -> Arc<Registry> {
        let registry = Arc::new(Registry {
            families: Mutex::default(),
            observers: Mutex::default(),
            learned: [settings.max_methods; 2].map(|ceiling| Mutex::new(Learned::new(ceiling))),
            methods: Mutex::default(),
            recorders: AtomicU32::new(0),
        });
        process::observe(&registry);
        registry
    }

    /// A recorder for the calling thread.
    pub fn recorder(self: &Arc<Self>) -> Recorder {
        Recorder::new(self.clone(), RecorderId(self.recorders.fetch_add(1, Relaxed)))
    }

    /// Has a family's samples read from `look` at every scrape: for what others keep, and for labels that come and go.
    pub fn observe<T: Measure, const N: usize>(
        &self,
        family: &'static Family<T, N>,
        look: impl Fn(&mut Samples<'_, N>) + Send + Sync + 'static,
    ) {
        self.observers.lock().push(Arc::new(move |tables| {
            let table = tables.entry(family.name).or_insert_with(|| Table::new(family));
            look(&mut Samples { table });
        }));
    }

    /// The text of a scrape.
    pub fn scrape(&self, format: Format) -> String {
        let mut page = Page::new(format);
        self.write(&mut page);
        page.finish()
    }

    /// The numbers of a scrape.
    pub(super) fn write(&self, page: &mut dyn Sink) {
        self.write_methods(page);
        for (name, table) in self.tables() {
            page.family(name, table.help, table.kind);
            for (values, value) in &table.samples {
                let labels: Vec<_> = table
                    .labels
                    .iter()
                    .zip(values)
                    .map(|(label, value)| (*label, &**value))
                    .collect();
                page.sample(name, &labels, *value);
            }
        }
    }

    fn write_methods(&self, page: &mut dyn Sink) {
        let mut sums: BTreeMap<(Direction, Name), Sums> = BTreeMap::new();
        for method in self.methods.lock().iter() {
            sums.entry(method.key()).or_default().add(method);
        }
        for direction in Direction::ALL {
            let of_it = sums
                .iter()
                .filter(|((of, _), _)| *of == direction)
                .map(|((_, name), sums)| (name, sums));
            method::write(direction, of_it, page);
        }
    }

    /// What was counted, and what observers see.
    fn tables(&self) -> BTreeMap<&'static str, Table> {
        let mut tables: BTreeMap<&'static str, Table> = BTreeMap::new();
        for (name, rows) in self.families.lock().iter() {
            let mut table = rows.table();
            for row in &rows.rows {
                let sum: u64 = row
                    .cells
                    .iter()
                    .map(|(_, cell)| cell.load(Relaxed))
                    .fold(0, u64::wrapping_add);
                table.add(row.values.clone(), (rows.value)(sum));
            }
            tables.insert(name, table);
        }
        // An observer may resolve or observe in its turn, so it must not find a lock taken.
        let observers = self.observers.lock().clone();
        for observer in observers {
            observer(&mut tables);
        }
        tables
    }

    pub(super) fn cell<T: Measure, const N: usize>(
        &self,
        recorder: RecorderId,
        family: &'static Family<T, N>,
        values: [&str; N],
    ) -> Arc<AtomicU64> {
        let mut families = self.families.lock();
        families
            .entry(family.name)
            .or_insert_with(|| Rows::new(family))
            .cell(recorder, &values)
    }

    /// The method's name, if it has one, and all names, if there will be no others.
    pub(super) fn learn(&self, direction: Direction, path: &str) -> (Option<Name>, Option<Vec<Name>>) {
        let mut learned = self.learned[direction as usize].lock();
        let name = learned.learn(path);
        let all = learned.is_full().then(|| learned.names().collect());
        (name, all)
    }

    pub(super) fn add_method(&self, method: Arc<Method>) {
        self.methods.lock().push(method);
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("recorders", &self.recorders)
            .finish_non_exhaustive()
    }
}

/// Where an observer puts what it sees.
pub struct Samples<'a, const N: usize> {
    table: &'a mut Table,
}

impl<const N: usize> Samples<'_, N> {
    /// Adds a sample; samples with equal label values are added up.
    pub fn push(&mut self, values: [&str; N], value: f64) {
        self.table.add(owned(&values), value);
    }
}

/// A family's numbers, for each combination of label values one cell of each recorder.
struct Rows {
    help: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    ceiling: usize,
    value: fn(u64) -> f64,
    rows: Vec<Row>,
}

struct Row {
    values: Values,
    cells: Vec<(RecorderId, Arc<AtomicU64>)>,
}

type Values = Box<[Box<str>]>;

impl Rows {
    fn new<T: Measure, const N: usize>(family: &'static Family<T, N>) -> Rows {
        let Family {
            help, labels, ceiling, ..
        } = family;
        Rows {
            help,
            kind: T::TYPE,
            labels,
            ceiling: *ceiling,
            value: T::value,
            rows: Vec::new(),
        }
    }

    fn table(&self) -> Table {
        let Rows {
            help,
            kind,
            labels,
            ceiling,
            ..
        } = *self;
        Table {
            help,
            kind,
            labels,
            ceiling,
            samples: BTreeMap::new(),
        }
    }

    fn cell(&mut self, recorder: RecorderId, values: &[&str]) -> Arc<AtomicU64> {
        let mut values = owned(values);
        let mut found = self.rows.iter().position(|row| row.values == values);
        if found.is_none() && self.rows.len() >= self.ceiling {
            values = others(values.len());
            found = self.rows.iter().position(|row| row.values == values);
        }
        let at = found.unwrap_or_else(|| {
            self.rows.push(Row {
                values,
                cells: Vec::new(),
            });
            self.rows.len() - 1
        });
        let cells = &mut self.rows[at].cells;
        if let Some((_, cell)) = cells.iter().find(|(of, _)| *of == recorder) {
            return cell.clone();
        }
        let cell = Arc::new(AtomicU64::new(0));
        cells.push((recorder, cell.clone()));
        cell
    }
}

/// A family as a scrape shows it.
struct Table {
    help: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    ceiling: usize,
    samples: BTreeMap<Values, f64>,
}

impl Table {
    fn new<T: Measure, const N: usize>(family: &'static Family<T, N>) -> Table {
        Rows::new(family).table()
    }

    fn add(&mut self, values: Values, value: f64) {
        let full = self.samples.len() >= self.ceiling && !self.samples.contains_key(&values);
        let values = if full { others(values.len()) } else { values };
        *self.samples.entry(values).or_default() += value;
    }
}

/// The longest label value, in bytes; names of DNS and of methods are shorter.
const MAX_VALUE: usize = 256;

fn owned(values: &[&str]) -> Values {
    values
        .iter()
        .map(|value| Box::from(&value[..value.floor_char_boundary(MAX_VALUE)]))
        .collect()
}

fn others(labels: usize) -> Values {
    vec![Box::from(OTHER); labels].into()
}

#[cfg(test)]
mod tests;
