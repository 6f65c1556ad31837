use std::path::Path;

use super::*;

fn read(text: &str, flags: &RawConfig) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("realign.toml");
    std::fs::write(&path, text).unwrap();
    Config::resolve(load(Some(&path), flags)?)
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = read("", &RawConfig::default()).unwrap();
    assert_eq!(config.server.address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.engine.max_running, 64);
    assert_eq!(config.paths.database(), Path::new("state/realign.db"));
    assert_eq!(config.gate.holdout_ratio, 0.15);
    assert_eq!(config.train, TrainConfig::default());
}

#[test]
fn flags_win_over_the_file_key_by_key() {
    let text = "model = 'a'\n[server]\nport = 1\nhost = '0.0.0.0'\n[train]\nrank = 4";
    let flags = RawConfig {
        server: Some(RawServer {
            port: Some(2),
            ..RawServer::default()
        }),
        ..RawConfig::default()
    };
    let config = read(text, &flags).unwrap();
    assert_eq!(config.server.address.to_string(), "0.0.0.0:2");
    assert_eq!((config.model.as_str(), config.train.rank), ("a", Some(4)));
}

#[test]
fn mistakes_are_named() {
    let cases = [
        ("modle = 'a'", "did you mean \"model\"?"),
        ("[server]\nprot = 1", "did you mean \"port\"?"),
        ("[server]\nprot = 1", "in [server]"),
        ("[gate]\nzzzzzzzz = 1", "allowed are holdout_ratio"),
        ("[server]\nport = 'x'", "server.port"),
        ("[server]\nport = 70000", "server.port"),
        ("[server]\nhost = 'nowhere.example'", "server.host is"),
        ("[server]\nadmin_key = ''", "server.admin_key is empty"),
        (
            "[engine]\nmax_running = 0",
            "engine.max_running is 0; at least 1",
        ),
        ("[gate]\nholdout_ratio = 1.0", "gate.holdout_ratio is 1"),
        (
            "[train]\ntargets = ['x_proj']",
            "train.targets is \"x_proj\"",
        ),
        ("[train]\nrecipe = 'x'", "\"paper\""),
        (
            "[train]\nlearning_rate = -1.0",
            "train.learning_rate is -1; above 0",
        ),
        ("model = ", "realign.toml"),
    ];
    for (text, expect) in cases {
        let error = read(text, &RawConfig::default()).unwrap_err().to_string();
        assert!(error.contains(expect), "{text:?}: {error}");
    }
}

#[test]
fn a_named_file_must_exist() {
    let error = load(Some(Path::new("no/such.toml")), &RawConfig::default()).unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
}

#[test]
fn without_a_default_file_the_defaults_hold() {
    let dir = tempfile::tempdir().unwrap();
    let raw = load::layered(&dir.path().join("realign.toml"), &RawConfig::default()).unwrap();
    assert_eq!(Config::resolve(raw), Config::resolve(RawConfig::default()));
}

#[test]
fn keys_stay_out_of_debug_output() {
    let config = read("[server]\napi_key = 'secret'", &RawConfig::default()).unwrap();
    assert!(!format!("{config:?}").contains("secret"));
}
