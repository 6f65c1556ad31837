//! Where log lines go and how they look: `REALIGN_LOG` and `REALIGN_LOG_FORMAT`.

mod modules;

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use realign_server::api::{LogFilterError, LogPort};

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineFormat {
    /// One line of text for people.
    Pretty,
    /// One JSON object a line, for log collectors.
    Json,
}

/// An unknown `REALIGN_LOG_FORMAT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("REALIGN_LOG_FORMAT is `{0}`; allowed are `pretty` (the default) and `json`")]
pub(crate) struct LogFormatError(String);

/// The filter unless REALIGN_LOG sets one. mistralrs logs every step of loading a model.
const DEFAULT: &str = if cfg!(feature = "mistralrs") {
    "info,mistralrs_core=warn,mistralrs_quant=warn"
} else {
    "info"
};

/// The filter of a command that answers a question and ends: its output is what it has to say.
const SHORT: &str = "warn";

/// The filter of a process' logs, which can be changed while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogPort for Logs {
    fn filter(&self) -> String {
        let shown = self.filter.with_current(ToString::to_string);
        // An error means that the process is ending.
        modules::shown(&shown.unwrap_or_default())
    }

    fn set_filter(&self, filter: &str) -> Result<(), LogFilterError> {
        // The parser itself skips empty parts.
        if filter.split(',').any(|part| part.trim().is_empty()) {
            return Err(LogFilterError::Unusable("a part of it is empty".into()));
        }
        let parsed = EnvFilter::builder()
            .parse(modules::resolved(filter))
            .map_err(|error| LogFilterError::Unusable(error.to_string()))?;
        self.filter
            .reload(parsed)
            .map_err(|error| LogFilterError::Gone(error.to_string()))
    }
}

/// Starts logging to standard error, so that results on standard output can be piped. Call once.
/// `is_short` says that the command answers a question and ends.
///
/// # Errors
/// [`LogFormatError`] if `REALIGN_LOG_FORMAT` names no format.
pub(crate) fn init(is_short: bool) -> Result<Logs, LogFormatError> {
    let default = if is_short { SHORT } else { DEFAULT };
    let format = parse(std::env::var("REALIGN_LOG_FORMAT").ok().as_deref())?;
    let filter = std::env::var("REALIGN_LOG").unwrap_or_else(|_| default.into());
    let filter =
        EnvFilter::try_new(modules::resolved(&filter)).unwrap_or_else(|_| EnvFilter::new(default));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let filtered = tracing_subscriber::registry().with(filter);
    match format {
        LineFormat::Pretty => filtered.with(lines.with_ansi(coloured())).init(),
        LineFormat::Json => filtered.with(lines.json().flatten_event(true)).init(),
    }
    Ok(Logs { filter: handle })
}

/// In a file or a pipe, colour codes are noise that breaks searches; `NO_COLOR` is a convention.
fn coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

fn parse(text: Option<&str>) -> Result<LineFormat, LogFormatError> {
    match text.unwrap_or_default() {
        "" | "pretty" => Ok(LineFormat::Pretty),
        "json" => Ok(LineFormat::Json),
        other => Err(LogFormatError(other.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_and_replaced() {
        let (_layer, filter) = reload::Layer::new(EnvFilter::new("info"));
        let logs = Logs { filter };
        assert_eq!(logs.filter(), "info");
        logs.set_filter("warn,realign::api=debug").unwrap();
        assert_eq!(logs.filter(), "realign::api=debug,warn");
        for wrong in ["", "realign=loud", "info,,debug"] {
            let why = logs.set_filter(wrong).unwrap_err();
            assert!(why.to_string().contains("give a level"), "{wrong:?}: {why}");
        }
        assert_eq!(logs.filter(), "realign::api=debug,warn");
    }

    #[test]
    fn formats_by_name() {
        assert_eq!(parse(None), Ok(LineFormat::Pretty));
        assert_eq!(parse(Some("pretty")), Ok(LineFormat::Pretty));
        assert_eq!(parse(Some("json")), Ok(LineFormat::Json));
        let error = parse(Some("xml")).unwrap_err().to_string();
        assert!(error.contains("xml") && error.contains("`json`"), "{error}");
    }
}
