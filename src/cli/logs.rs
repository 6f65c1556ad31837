//! Where log lines go and how they look: `REALIGN_LOG` and `REALIGN_LOG_FORMAT`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// One line of text for people.
    Pretty,
    /// One JSON object a line, for log collectors.
    Json,
}

/// A `REALIGN_LOG_FORMAT` that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("REALIGN_LOG_FORMAT is `{0}`; allowed are `pretty` (the default) and `json`")]
pub struct LogFormatError(String);

/// Starts logging to standard error, so that results on standard output can be piped. Call once.
///
/// # Errors
/// [`LogFormatError`] if `REALIGN_LOG_FORMAT` names no format.
pub fn init() -> Result<(), LogFormatError> {
    let format = parse(std::env::var("REALIGN_LOG_FORMAT").ok().as_deref())?;
    let filter = EnvFilter::try_from_env("REALIGN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        Format::Pretty => logs.with_ansi(coloured()).init(),
        Format::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

/// In a file or a pipe, colour codes are noise that breaks searches; `NO_COLOR` is a convention.
fn coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

fn parse(text: Option<&str>) -> Result<Format, LogFormatError> {
    match text.unwrap_or_default() {
        "" | "pretty" => Ok(Format::Pretty),
        "json" => Ok(Format::Json),
        other => Err(LogFormatError(other.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        assert_eq!(parse(None), Ok(Format::Pretty));
        assert_eq!(parse(Some("pretty")), Ok(Format::Pretty));
        assert_eq!(parse(Some("json")), Ok(Format::Json));
        let error = parse(Some("xml")).unwrap_err().to_string();
        assert!(error.contains("xml") && error.contains("`json`"), "{error}");
    }
}
