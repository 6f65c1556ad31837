//! Calls to a running server's operator routes, for the commands that change its generation.

pub(crate) mod place;
mod unix;

use std::time::Duration;

use serde_json::Value;

use super::{CliError, GlobalArgs};
use realign_server::config::keys::KeyDigest;
use realign_server::config::{Config, admin_key};

/// Activating a generation may read it from a slow disk first.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Address of the server, and the key to its operator routes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RemoteArgs {
    /// Address of the running server; `unix:/path/to/socket` if it listens on a socket [default: that of the server
    /// that runs on the state directory, else the configured one]
    #[arg(long, env = "REALIGN_URL", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Key of the operator routes [default: server.admin_key of the configuration, else the file
    /// admin-key in the state directory, where the server put it]
    #[arg(
        long,
        env = "REALIGN_ADMIN_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) admin_key: Option<String>,
}

/// A server that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// Where it is.
    pub(crate) url: String,
    /// The key to its operator routes.
    pub(crate) admin_key: Option<String>,
}

/// Why a server did not fulfil a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// No answer came.
    #[error("no answer from {url}: {reason}; start `realign serve`, or name the server with --url")]
    Unreachable {
        /// The URL that was called.
        url: String,
        /// The HTTP client's reason.
        reason: String,
    },
    /// The answer is not JSON.
    #[error("{url} answered {status} without JSON: is it a realign server? Name it with --url")]
    NotRealign {
        /// The URL that was called.
        url: String,
        /// HTTP status of the answer.
        status: u16,
    },
    /// The server rejects the key.
    #[error(
        "{0}; name the server's configuration with --config or its state directory with --state, \
         or give the key itself with --admin-key or REALIGN_ADMIN_KEY"
    )]
    NotAllowed(String),
    /// The server refuses: no such generation, or another one serves than expected.
    #[error("the server refused: {0}")]
    Refused(String),
}

impl RemoteArgs {
    /// The server that these flags name, with address and key of the server on these directories where none was given.
    ///
    /// # Errors
    /// A configuration or a key file that cannot be read.
    pub(crate) fn with_config(&self, global: &GlobalArgs) -> Result<Remote, CliError> {
        let (url, admin_key) = (self.url.clone(), self.admin_key.clone());
        if let (Some(url), Some(_)) = (&url, &admin_key) {
            let url = url.clone();
            return Ok(Remote { url, admin_key });
        }
        let config = global.resolve()?;
        let there = || place::url(&place::operators(&config), config.server.tls.is_some());
        Ok(Remote {
            url: url.unwrap_or_else(there),
            admin_key: match admin_key {
                Some(key) => Some(key),
                None => operators_key(&config)?,
            },
        })
    }
}

impl Remote {
    /// Posts to a path below `/admin/v1/` and returns the answer's body.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, RemoteError> {
        let url = self.address(path);
        let mut request = self.agent().post(self.target(path));
        if let Some(key) = &self.admin_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        answer(url, request.send_json(body))
    }

    /// Gets a path below `/admin/v1/` and returns the answer's body.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub(crate) fn get(&self, path: &str) -> Result<Value, RemoteError> {
        let url = self.address(path);
        let mut request = self.agent().get(self.target(path));
        if let Some(key) = &self.admin_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        answer(url, request.call())
    }

    fn agent(&self) -> ureq::Agent {
        match unix::socket(&self.url) {
            Some(socket) => unix::agent(socket, TIMEOUT),
            None => agent(),
        }
    }

    /// The URL that is requested.
    fn target(&self, path: &str) -> String {
        match unix::socket(&self.url) {
            // The agent's connections lead to the socket, whatever the host.
            Some(_) => format!("http://127.0.0.1/admin/v1/{path}"),
            None => self.address(path),
        }
    }

    /// The URL as an error names it.
    fn address(&self, path: &str) -> String {
        format!("{}/admin/v1/{path}", self.url.trim_end_matches('/'))
    }
}

/// The operators' key of the server with this configuration, if it can be known here: the configured
/// one, else that in the state directory.
///
/// # Errors
/// A key file that cannot be read or holds no key.
pub(crate) fn operators_key(config: &Config) -> Result<Option<String>, CliError> {
    let file = || admin_key::read(&config.paths.admin_key());
    match &config.server.admin_key {
        None => Ok(file()?),
        // The digest cannot be sent in the key's place, but the file may hold the key to it.
        Some(digest) if digest.starts_with("sha256:") => {
            let digest = KeyDigest::parse(digest).map_err(CliError::Key)?;
            let found = file().ok().flatten();
            Ok(found.filter(|key| KeyDigest::of(key).matches(&digest)))
        }
        Some(key) => Ok(Some(key.clone())),
    }
}

pub(crate) fn agent() -> ureq::Agent {
    // Operator routes listen on loopback or a private network, where a proxy is in the way.
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(TIMEOUT))
        .build()
        .into()
}

/// The body of an answer, or why there is none.
fn answer(
    url: String,
    sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Value, RemoteError> {
    let unreachable = |error: ureq::Error| RemoteError::Unreachable {
        url: url.clone(),
        reason: error.to_string(),
    };
    let mut response = sent.map_err(unreachable)?;
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().map_err(unreachable)?;
    let answer: Value =
        serde_json::from_str(&text).map_err(|_| RemoteError::NotRealign { url, status })?;
    if (200..300).contains(&status) {
        return Ok(answer);
    }
    let message = answer["error"]["message"].as_str();
    let message = message.map_or_else(|| format!("status {status}"), str::to_owned);
    Err(match status {
        401 | 403 => RemoteError::NotAllowed(message),
        _ => RemoteError::Refused(message),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use serde_json::json;

    use super::*;

    impl From<Remote> for RemoteArgs {
        fn from(remote: Remote) -> Self {
            Self {
                url: Some(remote.url),
                admin_key: remote.admin_key,
            }
        }
    }

    /// A server that gives one answer; joining it returns the request.
    pub(crate) fn answers(
        status: u16,
        body: &'static str,
    ) -> std::io::Result<(Remote, JoinHandle<String>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client connects");
            let mut request = Vec::new();
            let mut buffer = [0u8; 4096];
            // The body of every request here is one JSON object without nesting.
            while !request.ends_with(b"}") {
                let n = stream.read(&mut buffer).expect("a readable request");
                if n == 0 {
                    break;
                }
                request.extend_from_slice(&buffer[..n]);
            }
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let answer = stream.write_all(format!("{head}{body}").as_bytes());
            answer.expect("a writable answer");
            String::from_utf8_lossy(&request).into_owned()
        });
        let admin_key = Some("secret".to_owned());
        Ok((Remote { url, admin_key }, thread))
    }

    #[test]
    fn answers_and_refusals() {
        let (server, thread) = answers(200, r#"{"from": "a", "to": "b"}"#).unwrap();
        let body = json!({"generation": "b"});
        let answer = server.post("generations/activate", &body).unwrap();
        assert_eq!(answer["to"], "b");
        let request = thread.join().unwrap().to_lowercase();
        assert!(
            request.starts_with("post /admin/v1/generations/activate "),
            "{request}"
        );
        assert!(
            request.contains("authorization: bearer secret"),
            "{request}"
        );
        let refused = r#"{"error": {"message": "generation a serves"}}"#;
        let cases = [
            (409, refused, "refused: generation a serves"),
            (401, refused, "--admin-key"),
            (404, "<html>", "is it a realign server?"),
        ];
        for (status, text, expect) in cases {
            let (server, thread) = answers(status, text).unwrap();
            let error = server.post("x", &body).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn the_key_comes_from_the_configuration_or_the_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let config = |key: &str| {
            let path = dir.path().join("realign.toml");
            std::fs::write(&path, key).unwrap();
            let global = GlobalArgs {
                config: Some(path),
                state: Some(state.clone()),
                ..GlobalArgs::default()
            };
            let (url, admin_key) = (None, None);
            RemoteArgs { url, admin_key }.with_config(&global)
        };
        let found = |text: &str| config(text).unwrap().admin_key;
        assert_eq!(found(""), None);
        std::fs::write(state.join("admin-key"), "rk-made\n").unwrap();
        assert_eq!(found("").as_deref(), Some("rk-made"));
        let own = "[server]\nadmin_key = 'own'";
        assert_eq!(found(own).as_deref(), Some("own"));
        let digest = |key| format!("[server]\nadmin_key = '{}'", KeyDigest::of(key));
        assert_eq!(found(&digest("other")), None, "the file's is another key");
        assert_eq!(found(&digest("rk-made")).as_deref(), Some("rk-made"));
        std::fs::write(state.join("admin-key"), "").unwrap();
        let error = config("").unwrap_err().to_string();
        assert!(error.contains("admin-key"), "{error}");
    }

    #[test]
    fn a_server_that_is_not_there_is_told_from_one_that_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let admin_key = None;
        let error = Remote { url, admin_key }.post("x", &json!({})).unwrap_err();
        assert!(
            matches!(error, RemoteError::Unreachable { .. }) && error.to_string().contains("--url"),
            "{error}"
        );
    }
}
