use std::path::Path;

use super::load::{layered, no_environment, required};
use super::*;
use realign_align::train::{ModelSize, Recipe};
use realign_core::ranges;

fn read(text: &str, flags: &RawConfig) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("realign.toml");
    std::fs::write(&path, text).unwrap();
    Config::resolve(required(&path, flags, no_environment)?)
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = read("", &RawConfig::default()).unwrap();
    assert_eq!(config.server.address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.engine.max_running, 64);
    assert_eq!(config.paths.database(), Path::new("state/realign.db"));
    assert_eq!(config.gate.holdout_ratio, 0.15);
    assert_eq!(
        config.train,
        TrainConfig::resolve(RawTrain::default()).unwrap()
    );
}

#[test]
fn a_limit_of_zero_is_none() {
    let defaults = read("", &RawConfig::default()).unwrap().retention;
    assert_eq!((defaults.generations, defaults.max_age_s), (Some(20), None));
    let text = "[retention]\ngenerations = 0\ndays = 2\nmegabytes = 3";
    let retention = read(text, &RawConfig::default()).unwrap().retention;
    assert_eq!(retention.generations, None);
    assert_eq!(retention.max_age_s, Some(2 * 24 * 60 * 60));
    assert_eq!(retention.max_bytes, Some(3 << 20));
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
    let rank = config.train.recipe(ModelSize::Small).rank;
    assert_eq!((config.model.as_str(), rank), ("a", 4));
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
        ("[server]\nunknown_fields = 'drop'", "`refuse` or `ignore`"),
        ("[server]\napi_key = 'sha256:12'", "64 hex digits"),
        ("[server]\napi_keys = ['nameless']", "name:key"),
        ("[server]\napi_keys = ['a:x', 'a:y']", "\"a\" twice"),
        (
            "[server]\nadmin_host = '::1'",
            "server.admin_port is missing",
        ),
        ("[server]\nadmin_port = 8080", "another port than"),
        ("[server]\ntls_cert = 'c.pem'", "server.tls_key is missing"),
        (
            "[server]\ncors_origins = ['app.example']",
            "https://app.example",
        ),
        (
            "[server]\ncors_origin = '*'",
            "did you mean \"cors_origins\"?",
        ),
        ("[server]\nheader_timeout_s = 0", "at least 1"),
        (
            "[limits]\nmax_connections = 0",
            "limits.max_connections is 0",
        ),
        (
            "[limits]\nmax_admin_connections = 0",
            "limits.max_admin_connections is 0",
        ),
        ("[limits]\nrequests_per_minut = 1", "did you mean"),
        ("[responses]\nmax_mb = 0", "responses.max_mb is 0"),
        ("[compliance]\nshare = 1.5", "compliance.share is 1.5"),
        (
            "[compliance]\ndecision_log_texts = true",
            "needs compliance.decision_log",
        ),
        (
            "[traces]\notlp_endpoint = 'collector'",
            "http://127.0.0.1:4318",
        ),
        (
            "[engine]\nmax_running = 0",
            "engine.max_running is 0; at least 1",
        ),
        (
            "[engine]\nkind = 'other'",
            "engine.kind is other; `native` or `mistralrs`",
        ),
        (
            "[gather]\nmax_pairs = 0",
            "gather.max_pairs is 0; at least 1",
        ),
        ("[engine]\ncopies = 1", "engine.copies is 1; at least 2"),
        ("[gate]\nholdout_ratio = 1.0", "gate.holdout_ratio is 1"),
        (
            "[adapters]\non_missing = 'fail'",
            "adapters.on_missing is fail; `serve-base` or `refuse`",
        ),
        ("[retention]\ngenerations = -1", "retention.generations"),
        ("[retention]\nday = 1", "did you mean \"days\"?"),
        (
            "[train]\ntargets = ['x_proj']",
            "train.targets is \"x_proj\"",
        ),
        ("[train]\nrecipe = 'x'", "\"paper\""),
        (
            "[train]\nrecompute = 'yes'",
            "train.recompute is \"yes\"; allowed are \"auto\", \"on\" and \"off\"",
        ),
        (
            "[train]\nlearning_rate = -1.0",
            "train.learning_rate is -1; above 0",
        ),
        ("[train]\nrank = 2000", "train.rank is 2000; from 1 to 512"),
        ("[train]\nrank = 800", "train.rank is 800; from 1 to 512"),
        (
            "[train]\nlearning_rate = 2.0",
            "train.learning_rate is 2; above 0, at most 1",
        ),
        ("[train]\nepochs = 0", "train.epochs is 0; from 1 to 100"),
        (
            "[train]\nbatch_pairs = 2000",
            "train.batch_pairs is 2000; from 1 to 1024",
        ),
        ("[train]\nshare = 0", "train.share is 0; from 0.05 to 0.9"),
        ("[train]\ntargets = []", "train.targets is empty; name"),
        (
            "[train.corrective]\nmodel = 'm'",
            "train.corrective.url: give an endpoint's base URL",
        ),
        (
            "[train]\nlearnin_rate = 1",
            "did you mean \"learning_rate\"?",
        ),
        ("[train.corrective]\nurls = 'x'", "did you mean \"url\"?"),
        ("model = ", "realign.toml: TOML parse error"),
        (
            "[engine]\nkv_cache_mb = 'a'",
            "realign.toml: engine.kv_cache_mb: expected a whole number, 0 or more, found string",
        ),
        (
            "[train]\nlearning_rate = 'a'",
            "train.learning_rate: expected a number, found string",
        ),
    ];
    for (text, expect) in cases {
        let error = read(text, &RawConfig::default()).unwrap_err().to_string();
        assert!(error.contains(expect), "{text:?}: {error}");
    }
}

#[test]
fn who_lets_everyone_in_says_so() {
    let check = |text: &str| {
        let server = read(text, &RawConfig::default()).unwrap().server;
        (server.lets_everyone_in(), server.check_open().is_ok())
    };
    for (text, expect) in [
        ("", (false, true)),
        ("host = '127.0.0.2'", (false, true)),
        ("host = '::1'", (false, true)),
        ("host = '::ffff:127.0.0.1'", (false, true)),
        ("host = '0.0.0.0'", (true, false)),
        ("host = '::'", (true, false)),
        ("host = '10.1.2.3'", (true, false)),
        ("host = '0.0.0.0'\nopen = true", (true, true)),
        ("host = '0.0.0.0'\napi_key = 'k'", (false, true)),
        ("host = '0.0.0.0'\napi_keys = ['a:k']", (false, true)),
        ("host = '0.0.0.0'\napi_keys_file = 'f'", (false, true)),
        // Operators have a key in any case.
        ("admin_host = '0.0.0.0'\nadmin_port = 1", (false, true)),
    ] {
        assert_eq!(check(&format!("[server]\n{text}")), expect, "{text}");
    }
    let open = "[server]\nhost = '0.0.0.0'";
    let server = read(open, &RawConfig::default()).unwrap().server;
    let error = server.check_open().unwrap_err().to_string();
    for remedy in ["0.0.0.0", "api_keys_file", "server.open = true"] {
        assert!(error.contains(remedy), "{error}");
    }
}

#[test]
fn a_recipe_file_has_the_keys_of_the_train_section() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    std::fs::write(
        &path,
        "recipe = 'paper'\nlayers = '3-5'\nbetas = [0.9, 0.99]",
    )
    .unwrap();
    let recipe = recipe_file(&path).unwrap();
    assert_eq!(recipe.layers, Some(Layers::Range("3-5".into())));
    assert_eq!(recipe.betas, Some([0.9, 0.99]));
    std::fs::write(&path, "learning_rat = 1e-3").unwrap();
    let error = recipe_file(&path).unwrap_err().to_string();
    assert!(error.contains("did you mean \"learning_rate\"?"), "{error}");
    let error = recipe_file(&dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("no such recipe"), "{error}");
}

#[test]
fn a_named_file_must_exist() {
    let error = load(Some(Path::new("no/such.toml")), &RawConfig::default()).unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_configuration_that_is_no_file_is_refused_at_once() {
    for path in ["/dev/zero", "/dev"] {
        let error = load(Some(Path::new(path)), &RawConfig::default()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        assert!(recipe_file(Path::new(path)).is_err());
    }
}

#[test]
fn without_a_default_file_the_defaults_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("realign.toml");
    let raw = layered(&path, &RawConfig::default(), no_environment).unwrap();
    assert_eq!(Config::resolve(raw), Config::resolve(RawConfig::default()));
}

/// The example with its commented-out keys enabled.
fn whole_example() -> String {
    let key = |line: &str| {
        let name = line.split(" = ").next().unwrap_or_default();
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let uncommented = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.contains(" = ") && key(rest) => rest,
        _ => line,
    });
    uncommented.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_shows_every_key_and_the_defaults() {
    let defaults = read("", &RawConfig::default()).unwrap();
    assert_eq!(read(EXAMPLE, &RawConfig::default()).unwrap(), defaults);

    let whole = whole_example();
    read(&whole, &RawConfig::default()).unwrap();
    let table: toml::Table = whole.parse().unwrap();
    for key in RawTarget::KEYS {
        let target = &table["fleet"]["targets"][0];
        assert!(
            target.get(key).is_some(),
            "fleet.targets.{key} is not in the example"
        );
    }
    let sections: [(&str, &[&str]); 18] = [
        ("server", RawServer::KEYS),
        ("limits", RawLimits::KEYS),
        ("responses", RawResponses::KEYS),
        ("engine", RawEngine::KEYS),
        ("paths", RawPaths::KEYS),
        ("adapters", RawAdapters::KEYS),
        ("store", RawStore::KEYS),
        ("fleet", RawFleet::KEYS),
        ("retention", RawRetention::KEYS),
        ("watch", RawWatch::KEYS),
        ("alignment", RawAlignment::KEYS),
        ("train", RawTrain::KEYS),
        ("gate", RawGate::KEYS),
        ("compliance", RawCompliance::KEYS),
        ("exam", RawExam::KEYS),
        ("gather", RawGather::KEYS),
        ("drift", RawDrift::KEYS),
        ("traces", RawTraces::KEYS),
    ];
    let top = sections.map(|(name, _)| name);
    for key in RawConfig::KEYS {
        assert!(table.contains_key(*key), "{key} is not in the example");
        assert!(
            ["model", "tokenizer", "model_name"].contains(key) || top.contains(key),
            "no test of [{key}]"
        );
    }
    for key in RawCorrective::KEYS {
        let corrective = &table["train"]["corrective"];
        assert!(
            corrective.get(key).is_some(),
            "train.corrective.{key} is not in the example"
        );
    }
    for key in RawTinker::KEYS {
        assert!(
            table["train"]["tinker"].get(key).is_some(),
            "train.tinker.{key} is not in the example"
        );
    }
    for (section, keys) in sections {
        for key in keys {
            assert!(
                table[section].get(key).is_some(),
                "{section}.{key} is not in the example"
            );
        }
    }
}

/// Keys whose line in the example is one possible value: they have no default, or one that the model or
/// the machine decides.
const NO_DEFAULTS: [&str; 24] = [
    "tokenizer",
    "model_name",
    "[server] admin_port",
    "[server] api_key",
    "[server] api_keys",
    "[server] api_keys_file",
    "[server] admin_key",
    "[server] cors_origins",
    "[engine] isq",
    "[engine] max_model_len",
    "[engine] kv_cache_mb",
    "[engine] threads",
    "[engine] weights_cache",
    "[store] url",
    "[fleet] targets",
    "[train] rank",
    "[train] layer_share",
    "[train] layers",
    "[train] learning_rate",
    "[train] alpha_kl",
    "[train] memory_mb",
    "[train.tinker] url",
    "[compliance] decision_log",
    "[traces] otlp_endpoint",
];

#[test]
fn what_the_example_has_commented_out_are_the_defaults() {
    let defaults = read("", &RawConfig::default()).unwrap();
    let mut section = "";
    let mut others = Vec::new();
    for line in EXAMPLE.lines() {
        if line.starts_with('[') {
            section = line;
        } else if let Some((key, value)) = line.strip_prefix("# ").and_then(|l| l.split_once(" = "))
        {
            let text = format!("{section}\n{key} = {value}\n");
            let read = read(&text, &RawConfig::default());
            if read.is_ok_and(|config| config != defaults) {
                others.push(format!("{section} {key}").trim_start().to_owned());
            }
        }
    }
    assert_eq!(others, NO_DEFAULTS);
}

#[test]
fn what_the_size_of_the_model_decides_is_shown_as_for_a_small_one() {
    let table: toml::Table = whole_example().parse().unwrap();
    let (train, small) = (&table["train"], Recipe::default());
    assert_eq!(train["rank"].as_integer(), Some(small.rank as i64));
    assert_eq!(train["layer_share"].as_float(), Some(small.layer_share));
    assert_eq!(train["learning_rate"].as_float(), Some(small.learning_rate));
    assert_eq!(train["alpha_kl"].as_float(), Some(small.alpha_kl));
}

/// A key and its comment in the example: `rank = 16  # from 1 to 512`.
fn example_comment(key: &str) -> Option<&'static str> {
    let (section, key) = match key.rsplit_once('.') {
        Some((section, key)) => (format!("[train.{section}]"), key),
        None => ("[train]".to_owned(), key),
    };
    let lines = EXAMPLE.lines().skip_while(|line| **line != section);
    let mut lines = lines.skip(1).take_while(|line| !line.starts_with('['));
    let line = lines.find(|line| line.starts_with(&format!("# {key} = ")))?;
    line.rsplit_once("  # ").map(|(_, comment)| comment)
}

#[test]
fn example_and_documentation_state_every_range() {
    let documentation = include_str!("../../../docs/training.md");
    for range in ranges::ALL {
        let (key, text) = (range.key, range.to_string());
        assert_eq!(example_comment(key), Some(&*text), "{key} in the example");
        let row = format!("| `{key}` | {text} |");
        assert!(
            documentation.contains(&row),
            "docs/training.md has no row {row}"
        );
    }
}

#[test]
fn keys_stay_out_of_debug_output() {
    let config = read("[server]\napi_key = 'secret'", &RawConfig::default()).unwrap();
    assert!(!format!("{config:?}").contains("secret"));
}
