//! One line a decision, on standard error: text or JSON, escaped.

use std::io;

use clap::ValueEnum;
use portunus_logbook as logbook;
use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

/// Begins the log. Later calls change nothing.
///
/// # Errors
/// When there is no thread to write with.
pub fn begin(format: Format, level: Level) -> io::Result<()> {
    let writer = logbook::open(|dropped| {
        error!(
            dropped,
            "standard error was not read for a while: so many lines of the log were dropped so far"
        );
    })?;
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
        .with_writer(move || writer.clone())
        .with_target(false);
    let _ = match format {
        Format::Text => layer.with_ansi(false).finish().with(targets).try_init(),
        Format::Json => layer.json().flatten_event(true).finish().with(targets).try_init(),
    };
    Ok(())
}
