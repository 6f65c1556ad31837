use super::*;
use crate::config::load_embedded_alone;

#[test]
fn code_wins_over_settings_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("app.toml");
    let toml =
        "model = \"a.gguf\"\nmodel_name = \"a\"\n[engine]\nkv_cache_mb = 1\nmax_running = 1\n";
    std::fs::write(&file, toml).unwrap();
    let builder = Server::builder()
        .config_file(&file)
        .settings("model_name = \"b\"\n[engine]\nkv_cache_mb = 2\nthreads = 2\n")
        .threads(3)
        .device("cpu")
        .host("::1")
        .port(0)
        .preferences("p")
        .adapters("a")
        .state("s");
    let config = builder.configuration_from(load_embedded_alone).unwrap();
    assert_eq!(config.model, "a.gguf");
    assert_eq!(config.model_name.as_deref(), Some("b"));
    assert_eq!(config.engine.max_running, 1);
    assert_eq!(config.engine.kv_cache_mb, Some(2));
    assert_eq!(config.engine.threads, Some(3));
    assert_eq!(config.server.address.to_string(), "[::1]:0");
    assert_eq!(config.paths.database(), Path::new("s/realign.db"));

    let mut config = config;
    config.engine.kv_cache_mb = Some(4);
    let whole = Server::builder().config(config.clone());
    assert_eq!(whole.configuration(), Ok(config.clone()));
    let mixed = Server::builder().config(config).port(1).configuration();
    assert!(
        mixed
            .unwrap_err()
            .to_string()
            .contains("ServerBuilder::config")
    );
}

#[test]
fn what_is_wrong_is_named() {
    let missing = Server::builder()
        .config_file("no/such.toml")
        .configuration();
    assert_eq!(
        missing.unwrap_err().to_string(),
        "no/such.toml: there is no such file"
    );
    let key = Server::builder().api_key(" ").configuration();
    assert!(key.unwrap_err().to_string().starts_with("server.api_key"));
    let model = Server::builder().model("").settings("no toml").build();
    assert!(matches!(
        model,
        Err(ServerError::Config(ConfigError::Read(_)))
    ));
}

#[test]
fn secrets_do_not_show() {
    let builder = Server::builder().api_key("hunter2").admin_key("hunter2");
    assert!(!format!("{builder:?}").contains("hunter2"));
}

#[test]
fn the_application_owns_its_logs() {
    let why = ApplicationLogs.set_filter("debug").unwrap_err().to_string();
    assert!(why.contains("part of an application"), "{why}");
}

#[test]
fn a_server_can_be_shared_between_handlers() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sendable<T: Send>(_: impl Fn(&'static Server) -> T) {}
    shared::<Server>();
    sendable(|server| server.generate(crate::api::Generate::user("")));
    sendable(|server| server.shutdown());
}
