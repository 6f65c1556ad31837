//! Commands of the binary beside a server: how one is made, and what it said.

use std::process::{Command, Output};

use super::engine;
use super::workspace::Workspace;

/// A command in a workspace, without what the environment of the tests would add to it.
pub(super) fn command(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    engine::choose(&mut command);
    command
        .args(arguments)
        .current_dir(workspace.path(""))
        .env_remove("REALIGN_LOG")
        .env_remove("REALIGN_LOG_FORMAT")
        .env_remove("REALIGN_ADMIN_KEY")
        .env_remove("REALIGN_URL")
        .env("XDG_CACHE_HOME", workspace.path("cache"));
    command
}

/// Standard output, then standard error.
pub(super) fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}
