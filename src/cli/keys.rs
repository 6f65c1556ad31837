//! `realign keys`: keys for clients and operators, and their digests.

use std::io::Write;

use clap::Subcommand;
use serde_json::json;

use super::{CliError, EXIT_OK, GlobalArgs};
use realign_server::config::keys::{ApiKey, KeyDigest};

/// Prefix of keys, by which scanners for leaked secrets can recognise them.
const PREFIX: &str = "rk-";

/// `realign keys ...`
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print it, with the line for server.api_keys_file; it is shown only now
    New {
        /// Whose key it is
        name: String,
    },
    /// Print the digest of a key, read from standard input, for the configuration
    Hash,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    command: &KeysCommand,
    global: &GlobalArgs,
    out: &mut impl Write,
) -> Result<u8, CliError> {
    match command {
        KeysCommand::New { name } => {
            let key = format!("{PREFIX}{}", hex::encode(rand::random::<[u8; 24]>()));
            let line = format!("{name}:{}", KeyDigest::of(&key));
            line.parse::<ApiKey>().map_err(CliError::Key)?;
            if global.json {
                writeln!(out, "{}", json!({"key": key, "line": line}))?
            } else {
                writeln!(out, "key   {key}\nline  {line}")?
            }
        }
        KeysCommand::Hash => {
            let mut key = String::new();
            std::io::stdin().read_line(&mut key)?;
            let key = key.trim();
            if key.is_empty() {
                return Err(CliError::Key("give the key on standard input"));
            }
            let digest = KeyDigest::of(key);
            if global.json {
                writeln!(out, "{}", json!({"digest": digest.to_string()}))?
            } else {
                writeln!(out, "{digest}")?
            }
        }
    }
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_fits_its_line() {
        let global = GlobalArgs {
            json: true,
            ..GlobalArgs::default()
        };
        let mut out = Vec::new();
        let command = KeysCommand::New { name: "web".into() };
        assert_eq!(run(&command, &global, &mut out).unwrap(), EXIT_OK);
        let made: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let line: ApiKey = made["line"].as_str().unwrap().parse().unwrap();
        assert_eq!(&*line.name, "web");
        assert!(
            line.digest
                .matches(&KeyDigest::of(made["key"].as_str().unwrap()))
        );
        let wrong = KeysCommand::New { name: "a b".into() };
        assert!(run(&wrong, &global, &mut Vec::new()).is_err());
    }
}
