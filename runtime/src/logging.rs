//! Logging of a process: lines on standard error, as text or JSON, with a level that can be changed at runtime. Every
//! value is cut and escaped to stay on its line (`line`). Lines that outsiders can cause are throttled by their
//! callers, with [`LogThrottle`].

mod line;
mod throttle;

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, ValueEnum};
use tidegate_core::contract::{environment, flags};
use tracing::Subscriber;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::{Layer, Registry};

pub use throttle::{LogRate, LogThrottle, NAMED, Suppressed};

/// Maximum bytes of a filter.
const MAX_FILTER_BYTES: usize = 1024;

/// Logging options of a process.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// What to log: a level (error, warn, info, debug, trace, off), or levels per module such as
    /// `info,tidegate_sidecar=debug`. Can be changed at runtime, at the admin address under /log.
    #[arg(
        id = "log_level",
        long = flags::LOG_LEVEL,
        env = environment::LOG_LEVEL,
        default_value = "info",
        value_name = "FILTER"
    )]
    pub level: String,

    /// Format of log lines.
    #[arg(
        id = "log_format",
        long = flags::LOG_FORMAT,
        env = "TIDEGATE_LOG_FORMAT",
        value_enum,
        default_value_t = LogFormat::Text,
        value_name = "FORMAT"
    )]
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Changes the log filter at runtime. Clones share it.
#[derive(Clone)]
pub struct LogHandle {
    filter: Option<reload::Handle<Targets, Registry>>,
    text: Arc<Mutex<String>>,
}

/// Why logging cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The text is not a valid filter.
    #[error("log filter {text:?}: {reason}")]
    Filter {
        /// The given text.
        text: String,
        /// The reason.
        reason: String,
    },
    /// Logging was already set up.
    #[error("logging is set up already")]
    AlreadySetUp,
    /// The subscriber of this handle no longer exists.
    #[error("this process' logs are not steered by this handle any more")]
    Gone,
}

/// Sets up logging for the whole process. Call it only once.
pub fn init(options: &LogOptions) -> Result<LogHandle, LogError> {
    let filter = parse(&options.level)?;
    let (filter, reload) = reload::Layer::new(filter);
    let lines = lines(options.format, io::stderr, io::stderr().is_terminal());
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadySetUp)?;
    Ok(LogHandle { filter: Some(reload), text: Arc::new(Mutex::new(options.level.clone())) })
}

/// Writes events as lines.
fn lines<S>(
    format: LogFormat,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
    has_colours: bool,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => {
            let fields = format::debug_fn(line::write_text).delimited(" ");
            lines.with_ansi(has_colours).fmt_fields(fields).boxed()
        }
        LogFormat::Json => lines.event_format(line::JsonLine).boxed(),
    }
}

impl LogHandle {
    /// A handle that validates and stores filters without effect: for a daemon in a process that sets up logging
    /// itself.
    pub fn detached() -> Self {
        Self { filter: None, text: Arc::new(Mutex::new("info".to_owned())) }
    }

    /// Sets the filter: a level, or levels per module.
    pub fn set(&self, text: &str) -> Result<(), LogError> {
        let filter = parse(text)?;
        // Held during the change, so that `get` returns what was set last.
        let mut current = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = &self.filter {
            handle.reload(filter).map_err(|_| LogError::Gone)?;
        }
        text.trim().clone_into(&mut current);
        Ok(())
    }

    /// The current filter.
    pub fn get(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogHandle").field(&self.get()).finish()
    }
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

fn parse(text: &str) -> Result<Targets, LogError> {
    let error = |reason: String| LogError::Filter { text: text.chars().take(100).collect(), reason };
    if text.trim().is_empty() {
        return Err(error("empty; `off` logs nothing".to_owned()));
    }
    if text.len() > MAX_FILTER_BYTES {
        return Err(error(format!("longer than {MAX_FILTER_BYTES} bytes")));
    }
    let is_half = |part: &str| {
        part.split_once('=').is_some_and(|(target, level)| target.is_empty() || level.is_empty())
    };
    if let Some(part) = text.trim().split(',').find(|part| is_half(part)) {
        return Err(error(format!("{part:?} is not MODULE=LEVEL")));
    }
    text.trim().parse().map_err(|source: ParseError| error(source.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tracing::Level;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        log: LogOptions,
    }

    #[test]
    fn flags_have_the_documented_defaults() {
        assert_eq!(Program::parse_from(["x"]).log, LogOptions::default());
        let given = Program::parse_from(["x", "--log-level", "debug", "--log-format", "json"]).log;
        assert_eq!(given, LogOptions { level: "debug".to_owned(), format: LogFormat::Json });
    }

    #[test]
    fn the_level_changes_while_the_process_runs() {
        let handle = init(&LogOptions { level: "warn".to_owned(), format: LogFormat::Json }).unwrap();
        assert!(!tracing::enabled!(Level::INFO));
        handle.set(" info,tidegate_runtime=debug\n").unwrap();
        assert!(tracing::enabled!(Level::DEBUG));
        assert!(!tracing::enabled!(target: "other", Level::DEBUG));
        assert_eq!(handle.get(), "info,tidegate_runtime=debug");
        assert!(matches!(init(&LogOptions::default()), Err(LogError::AlreadySetUp)));
        handle.set("warn").unwrap();
    }

    #[test]
    fn text_that_is_not_a_filter_is_refused_and_changes_nothing() {
        let handle = LogHandle::detached();
        for text in ["", " \n", "a=loud", "=,=", &"debug,".repeat(1000)] {
            assert!(handle.set(text).is_err(), "{text:?}");
        }
        assert_eq!(handle.get(), "info");
    }
}
