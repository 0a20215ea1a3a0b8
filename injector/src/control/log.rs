//! One line a decision, on standard error: text or JSON, escaped.

use std::io;

use clap::ValueEnum;
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
pub fn begin(format: Format, level: Level) {
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
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_target(false);
    let _ = match format {
        Format::Text => lines.with_ansi(false).finish().with(targets).try_init(),
        Format::Json => lines.json().flatten_event(true).finish().with(targets).try_init(),
    };
}
