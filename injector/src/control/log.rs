//! One line a decision, on standard error: text or JSON, escaped.

mod lines;

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use lines::Lines;

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// What is wrong.
    Error,
    /// What is doubtful, too.
    Warn,
    /// What was decided, too.
    #[default]
    Info,
    /// What happened on the way, too.
    Debug,
}

/// What was logged and not written yet. One a process, as standard error is.
static LINES: OnceLock<Lines> = OnceLock::new();

/// How long the end of the process waits for the last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Begins the log. Later calls change nothing.
///
/// # Errors
/// When there is no thread to write with.
pub fn begin(format: Format, level: Level) -> io::Result<()> {
    let lines = Lines::start(io::stderr(), note)?;
    let lines = LINES.get_or_init(|| lines);
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    // What libraries say on the way is theirs: it may have headers and other people's words in it.
    let targets = Targets::new().with_default(LevelFilter::WARN.min(level));
    let targets = targets
        .with_target("portunus_injector", level)
        .with_target("injector", level);
    let layer = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| lines.clone())
        .with_target(false);
    let _ = match format {
        Format::Text => layer.with_ansi(false).finish().with(targets).try_init(),
        Format::Json => layer.json().flatten_event(true).finish().with(targets).try_init(),
    };
    Ok(())
}

/// It is a line of JSON in both forms.
fn note(dropped: u64) -> String {
    format!(
        r#"{{"level":"ERROR","message":"lines of the log were dropped here: nobody read them","dropped":{dropped}}}"#
    )
}

/// Waits for what was logged to be written, if somebody reads it. To be called before the process ends.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_WORDS);
    }
}
