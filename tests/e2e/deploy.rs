//! The files in `deploy/` start a server: the binary runs with exactly the environment, arguments,
//! configuration and mounts that they describe, below a temporary root.
//!
//! Users, capabilities and a read-only root cannot be set up here without privileges; instead the
//! test checks that a server writes only where the file says that it may.

mod kubernetes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::engine;
use super::server::wait;
use super::tiny_model;

/// What a file describes.
#[derive(Clone, Default)]
struct Deployment {
    arguments: Vec<String>,
    /// Further arguments: free ports and the tiny model.
    own: Vec<String>,
    environment: BTreeMap<String, String>,
    working_directory: String,
    /// Files that are mounted or installed: path and content.
    files: Vec<(String, String)>,
    /// Where it may write.
    writable: Vec<String>,
    /// What names of other hosts are here.
    hosts: Vec<(&'static str, String)>,
}

/// Free ports and the tiny model.
fn of_a_server() -> Vec<String> {
    let model = tiny_model::directory().to_string_lossy().into_owned();
    let flags = ["--port", "0", "--admin-port", "0", "--model", &model];
    flags.map(String::from).to_vec()
}

fn shipped(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).unwrap()
}

/// The image's own environment, arguments and working directory.
fn image() -> Deployment {
    let mut image = Deployment {
        working_directory: "/data".into(),
        own: of_a_server(),
        writable: ["/data/adapters", "/data/state", "/data/cache", "/tmp"]
            .map(String::from)
            .to_vec(),
        ..Deployment::default()
    };
    let text = shipped("Dockerfile");
    let (_, runtime) = text.split_once("AS runtime\n").unwrap();
    let (runtime, _) = runtime.split_once("\nFROM ").unwrap();
    for line in runtime.lines() {
        if let Some(variables) = line.strip_prefix("ENV ") {
            let pairs = variables
                .split(' ')
                .map(|pair| pair.split_once('=').unwrap());
            let owned = pairs.map(|(name, value)| (name.to_string(), value.to_string()));
            image.environment.extend(owned);
        }
        if let Some(arguments) = line.strip_prefix("CMD ") {
            image.arguments = serde_json::from_str(arguments).unwrap();
        }
    }
    assert_eq!(image.arguments, ["serve"]);
    image
}

fn compose() -> Deployment {
    let file: Value = serde_saphyr::from_str(&shipped("deploy/docker-compose.yml")).unwrap();
    let service = &file["services"]["realign"];
    assert_eq!(service["read_only"], true);
    let mut found = image();
    for (name, value) in service["environment"].as_object().unwrap() {
        let value = match value.as_str().unwrap() {
            required if required.starts_with("${REALIGN_ADMIN_KEY:?") => "operators",
            value => value,
        };
        found.environment.insert(name.clone(), value.to_string());
    }
    let ports = service["ports"].as_array().unwrap();
    let loopback = |port: &Value| port.as_str().unwrap().starts_with("127.0.0.1:");
    assert!(ports.iter().all(loopback), "it lets everyone in");
    found
}

fn systemd() -> Deployment {
    let unit = shipped("deploy/systemd/realign.service");
    let setting = |name: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}")).to_string()
    };
    let command = setting("ExecStart=");
    let mut words = command.split(' ').map(String::from);
    assert_eq!(words.next().as_deref(), Some("/usr/local/bin/realign"));
    assert_eq!(setting("StateDirectory="), "realign");
    assert_eq!(setting("CacheDirectory="), "realign");
    let variable = setting("Environment=");
    let (name, value) = variable.split_once('=').unwrap();
    Deployment {
        arguments: words.collect(),
        working_directory: setting("WorkingDirectory="),
        files: vec![(
            "/etc/realign/realign.toml".into(),
            shipped("realign.example.toml"),
        )],
        own: of_a_server(),
        environment: BTreeMap::from([(name.into(), value.into())]),
        writable: ["/var/lib/realign", "/var/cache/realign", "/tmp"]
            .map(String::from)
            .to_vec(),
        ..Deployment::default()
    }
}

/// A server that runs as described, below `root`; killed when dropped.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Running {
    /// Starts the binary. Paths are moved below `root`, ports are free ones, and the model is tiny.
    fn start(deployment: &Deployment, root: &Path) -> Self {
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        let moved = |text: &str| {
            let mut text = text.to_string();
            for directory in ["/data/", "/etc/realign/", "/shared/", "/var/cache"] {
                let (name, slash) = match directory.strip_suffix('/') {
                    Some(name) => (name, "/"),
                    None => (directory, ""),
                };
                text = text.replace(directory, &format!("{}{slash}", below(name).display()));
            }
            for (host, here) in &deployment.hosts {
                text = text.replace(host, here);
            }
            text
        };
        let variables = deployment.environment.iter();
        let variables = variables.map(|(name, value)| (name, moved(value)));
        let directory = below(&deployment.working_directory);
        for directory in [directory.join("policies"), directory.join("preferences")] {
            std::fs::create_dir_all(directory).unwrap();
        }
        for (path, text) in &deployment.files {
            let path = below(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, moved(text)).unwrap();
        }
        let log = root.join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
        command
            .env_clear()
            .envs(variables)
            .args(deployment.arguments.iter().map(|argument| moved(argument)))
            .args(&deployment.own)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    /// The address of the operators' listener, once the clients' is there as well.
    fn operators(&mut self) -> String {
        self.address("listening: http://");
        self.address("operators: http://")
    }

    /// The address that the log names behind this.
    fn address(&mut self, behind: &str) -> String {
        wait("a listening server", || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{log}");
            }
            let (_, rest) = log.split_once(behind)?;
            Some(format!("http://127.0.0.1:{}", port(rest)?))
        })
    }
}

/// The number behind the first colon.
fn port(address: &str) -> Option<&str> {
    let (_, rest) = address.split_once(':')?;
    rest.split(|c: char| !c.is_ascii_digit()).next()
}

/// All files below a directory, as absolute paths without `root`.
fn files(root: &Path, directory: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, into);
        } else {
            let inside = path.strip_prefix(root).unwrap();
            into.push(format!("/{}", inside.display()));
        }
    }
}

/// Asserts that nothing was written but where it may be.
fn check_written(name: &str, deployment: &Deployment, root: &Path) {
    let mut written = Vec::new();
    files(root, root, &mut written);
    for path in written.iter().filter(|path| *path != "/log") {
        let mounted = deployment.files.iter().any(|(file, _)| file == path);
        let allowed = deployment.writable.iter().any(|dir| path.starts_with(dir));
        assert!(mounted || allowed, "{name}: {path} was written");
    }
}

#[test]
fn what_is_shipped_starts() {
    if engine::lacks("the files in deploy/ use the native engine") {
        return;
    }
    for (name, deployment) in [
        ("kubernetes", kubernetes::of_base()),
        ("compose", compose()),
        ("systemd", systemd()),
    ] {
        let root = tempfile::tempdir().unwrap();
        let mut running = Running::start(&deployment, root.path());
        let url = running.operators();
        let key = match deployment.environment.get("REALIGN_SERVER__ADMIN_KEY") {
            Some(key) => key.clone(),
            None => {
                let file = deployment.working_directory.trim_start_matches('/');
                let file = root.path().join(file).join("state/admin-key");
                std::fs::read_to_string(file).unwrap().trim().into()
            }
        };
        let answer = ureq::get(format!("{url}/admin/v1/overview"))
            .header("authorization", format!("Bearer {key}"))
            .call();
        assert_eq!(answer.unwrap().status(), 200, "{name}");
        drop(running);
        check_written(name, &deployment, root.path());
    }
}
