//! `realign keys`: keys for clients and operators, and their digests.

use std::io::Write;

use clap::Subcommand;
use serde_json::json;

use super::remote::{operators_key, place};
use super::{CliError, EXIT_OK, GlobalArgs};
use realign_server::config::keys::{ApiKey, KeyDigest, generate};
use realign_server::config::{Address, Config};

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
    /// Print a link to the operators' page that holds the operators' key
    #[command(after_help = "\
The link logs a browser in: anyone who has it can operate the server. The key is in the part of the link
that browsers do not send, and stays in the browser's tab.
The key comes from server.admin_key, or from the file admin-key in the state directory.")]
    Page {
        /// Address of the server [default: that of the server that runs on the state directory, else the configured one]
        #[arg(long, env = "REALIGN_URL", value_name = "URL")]
        url: Option<String>,
        /// The key [default: the server's, from its configuration or state directory]
        #[arg(
            long,
            env = "REALIGN_ADMIN_KEY",
            hide_env_values = true,
            value_name = "KEY"
        )]
        admin_key: Option<String>,
    },
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
            let key = generate();
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
        KeysCommand::Page { url, admin_key } => {
            let link = page(url.as_deref(), admin_key.clone(), &global.resolve()?)?;
            if global.json {
                writeln!(out, "{}", json!({ "url": link }))?
            } else {
                writeln!(out, "{link}")?
            }
        }
    }
    Ok(EXIT_OK)
}

/// A link to the operators' page of the server with this configuration.
fn page(url: Option<&str>, key: Option<String>, config: &Config) -> Result<String, CliError> {
    let url = match url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => operators_url(config)?,
    };
    let key = match key {
        Some(key) => Some(key),
        None => operators_key(config)?,
    };
    let key = key.ok_or(CliError::Key(
        "there is no operators' key here: start the server first, name its configuration with \
         --config or its state directory with --state, or give the key with --admin-key",
    ))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let encoded: String = key
        .bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    Ok(format!("{url}/#key={encoded}"))
}

fn operators_url(config: &Config) -> Result<String, CliError> {
    let address = place::operators(config);
    let Address::Tcp(tcp) = address else {
        return Err(CliError::Key(
            "the operators' listener is a Unix socket, which browsers do not open: set \
             server.admin_port, or name the address of what passes on to it with --url",
        ));
    };
    if tcp.port() == 0 {
        return Err(CliError::Key(
            "the configured port is 0: name the server's address with --url",
        ));
    }
    Ok(place::url(&address, config.server.tls.is_some()))
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

    #[test]
    fn the_link_to_the_page_holds_address_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("realign.toml");
        let link = |config: &str, url: Option<&str>| {
            std::fs::write(&path, config).unwrap();
            let global = GlobalArgs {
                config: Some(path.clone()),
                state: Some(dir.path().to_owned()),
                ..GlobalArgs::default()
            };
            page(url, None, &global.resolve()?)
        };
        let error = link("", None).unwrap_err().to_string();
        assert!(error.contains("--state"), "{error}");
        std::fs::write(dir.path().join("admin-key"), "rk-1a\n").unwrap();
        for (config, url, expect) in [
            ("", None, "http://127.0.0.1:8080/#key=rk-1a"),
            ("", Some("http://host/llm/"), "http://host/llm/#key=rk-1a"),
            (
                "[server]\nhost = '0.0.0.0'\nadmin_port = 9090\nadmin_host = '::'",
                None,
                "http://[::1]:9090/#key=rk-1a",
            ),
            (
                "[server]\nadmin_key = 'a b/#é'\ntls_cert = 'c'\ntls_key = 'k'",
                None,
                "https://127.0.0.1:8080/#key=a%20b%2F%23%C3%A9",
            ),
        ] {
            assert_eq!(link(config, url).unwrap(), expect, "{config}");
        }
        assert!(link("[server]\nport = 0", None).is_err());
    }
}
