//! The demo's server: this program again, in the demo's directory, with its log in a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::DemoError;
use crate::CliError;
use crate::remote::{Remote, agent};
use realign_core::lock::DirLock;
use realign_server::config::admin_key;
use realign_server::state::state_place;

/// Time between two looks at a server that starts.
const LOOK: Duration = Duration::from_millis(300);
/// Lines of the log that an error shows.
const LINES: usize = 12;

/// A running server; it stops when this is dropped.
pub(super) struct Child {
    process: Mutex<std::process::Child>,
    dir: PathBuf,
}

impl Child {
    /// Starts `realign serve` on a free port.
    pub(super) fn start(dir: &Path, model: &str) -> Result<Self, CliError> {
        let mut command = Command::new(std::env::current_exe()?);
        // Settings of the directory or the environment that the demo was started in are not the demo's.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REALIGN_") {
                command.env_remove(name);
            }
        }
        // The viewer has other programs open: at the lowest priority learning would stand still.
        command.env("REALIGN_TRAIN__NICE", "5");
        command.args(["serve", "--port", "0", "--model", model]);
        Self::spawn(dir, command)
    }

    pub(super) fn spawn(dir: &Path, mut command: Command) -> Result<Self, CliError> {
        let log = File::create(dir.join("server.log"))?;
        command.current_dir(dir).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self {
            process: Mutex::new(command.spawn()?),
            dir: dir.to_owned(),
        })
    }

    /// Waits until the server is ready, and returns where it is.
    pub(super) fn wait_ready(&self, limit: Duration) -> Result<Remote, CliError> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            self.check()?;
            if let Some(remote) = self.remote()
                && agent()
                    .get(format!("{}/ready", remote.url))
                    .call()
                    .is_ok_and(|r| r.status() == 200)
            {
                return Ok(remote);
            }
            pause();
        }
        Err(self.failed("the server is not ready in time".into()))
    }

    /// Where it listens, and its operators' key; `None` while it does not.
    fn remote(&self) -> Option<Remote> {
        let state = self.dir.join("state");
        let holder = DirLock::look(state_place(&state)).ok()??;
        Some(Remote {
            url: format!("http://{}", holder?.listen?),
            admin_key: admin_key::read(&state.join("admin-key")).ok()?,
        })
    }

    /// An error if it has ended.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        match process.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.failed(format!("the server ended with {status}"))),
        }
    }

    fn failed(&self, what: String) -> CliError {
        let log = self.dir.join("server.log");
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        DemoError::Server { what, log, end }.into()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let process = self
            .process
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // Its directory is the demo's own, and a killed server leaves nothing that a start cannot mend.
        let _ended = process.kill();
        let _ended = process.wait();
    }
}

/// Asks the model, and returns its answer and the generation that gave it.
pub(super) fn chat(remote: &Remote, prompt: &str) -> Result<(String, String), CliError> {
    let url = format!("{}/v1/chat/completions", remote.url);
    let failed = |what: String| {
        CliError::from(DemoError::Answer {
            url: url.clone(),
            what,
        })
    };
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 60,
    });
    let sent = agent().post(&url).send_json(&body);
    let mut answer = sent.map_err(|error| failed(error.to_string()))?;
    let generation = answer.headers().get("x-realign-generation");
    let generation = generation
        .and_then(|g| g.to_str().ok())
        .unwrap_or("?")
        .to_owned();
    let text = answer
        .body_mut()
        .read_to_string()
        .map_err(|error| failed(error.to_string()))?;
    let parsed: Value = serde_json::from_str(&text).map_err(|_| failed(text.clone()))?;
    let content = parsed["choices"][0]["message"]["content"].as_str();
    let content = content.ok_or_else(|| failed(text.clone()))?;
    Ok((content.trim().to_owned(), generation))
}

/// Waits a moment.
pub(super) fn pause() {
    #[expect(
        clippy::disallowed_methods,
        reason = "a server is looked at from outside, where nothing wakes"
    )]
    std::thread::sleep(LOOK);
}
