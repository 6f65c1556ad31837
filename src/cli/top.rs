//! `realign top`: what a running server does, for a terminal.

mod frame;

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use console::Term;
use serde_json::{Value, json};

use super::remote::{Remote, RemoteArgs, RemoteError};
use super::{CliError, EXIT_OK, GlobalArgs};
use frame::{Frame, Style};

/// Seconds of traffic that are asked for: what "the last five minutes" shows.
const SPAN: u64 = 300;
/// Clears a line behind the cursor.
const REST: &str = "\x1b[K";

/// Flags of `top`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TopArgs {
    /// Print one frame and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Seconds between two frames
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) every: u64,
    /// The server
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

/// Runs the command, without `--once` until it is interrupted.
///
/// # Errors
/// [`CliError`] if the first look fails. A server that goes away later is waited for.
pub(crate) fn run(
    args: &TopArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let remote = args.remote.with_config(global)?;
    let is_terminal = std::io::stdout().is_terminal();
    let colours = is_terminal && std::env::var_os("NO_COLOR").is_none();
    let mut last = look(&remote)?;
    let mut gone: Option<String> = None;
    loop {
        let text = if global.json {
            format!("{last}\n")
        } else {
            let style = Style { colours };
            let mut frame = Frame::new(&last, &remote.url, style);
            if let Some(error) = &gone {
                frame.warn(error);
            }
            frame.text(is_terminal.then(|| Term::stdout().size()))
        };
        let shown = if is_terminal && !args.once && !global.json {
            show(&text, out)
        } else {
            out.write_all(text.as_bytes())
        };
        match shown.and_then(|()| out.flush()) {
            // The reader has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(EXIT_OK),
            written => written?,
        }
        if args.once {
            return Ok(EXIT_OK);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a server is looked at from outside, where nothing wakes"
        )]
        std::thread::sleep(Duration::from_secs(args.every));
        match look(&remote) {
            Ok(seen) => (last, gone) = (seen, None),
            Err(error) => gone = Some(error.to_string()),
        }
    }
}

/// Overwrites the frame before, without a flicker.
fn show(text: &str, out: &mut dyn Write) -> std::io::Result<()> {
    write!(out, "\x1b[H")?;
    for line in text.lines() {
        write!(out, "{line}{REST}\r\n")?;
    }
    write!(out, "\x1b[J")
}

/// What the server says about itself.
fn look(remote: &Remote) -> Result<Value, RemoteError> {
    let overview = remote.get(&format!("overview?seconds={SPAN}"))?;
    let exam = remote.get("exam")?;
    Ok(json!({ "overview": overview, "exam": exam }))
}
