//! The metrics, the alerts and the dashboard against Prometheus itself.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::engine;
use super::server::{Server, wait};
use super::workspace::Workspace;

/// Set to 1 to skip these tests.
const SKIP: &str = "REALIGN_SKIP_PROMETHEUS";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The path of a program that `make prometheus` installs; `None` if these tests are skipped.
fn tool(name: &str) -> Option<PathBuf> {
    if std::env::var_os(SKIP).is_some_and(|value| !value.is_empty()) {
        eprintln!("left out: {SKIP} is set");
        return None;
    }
    let path = root().join(".tools/prometheus").join(name);
    assert!(
        path.is_file(),
        "{} is missing; `make prometheus` fetches it, {SKIP}=1 leaves this test out",
        path.display()
    );
    Some(path)
}

fn promtool(tool: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(tool)
        .args(arguments)
        .current_dir(root().join("deploy/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn assert_success(what: &str, output: &Output) {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{what}: {out}{err}");
}

#[test]
fn alerts_fire_when_they_should() {
    let Some(tool) = tool("promtool") else { return };
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        assert_success(&arguments.join(" "), &promtool(&tool, &arguments, ""));
    }
}

#[test]
fn the_dashboard_has_valid_promql() {
    let Some(tool) = tool("promtool") else { return };
    let text = std::fs::read_to_string(root().join("deploy/grafana/realign.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut rules = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap();
            let expr = expr
                .replace("$__rate_interval", "5m")
                .replace("$instance", ".*");
            rules.push(serde_json::json!({"record": format!("x:{}", rules.len()), "expr": expr}));
        }
    }
    assert!(rules.len() > 20, "{} expressions", rules.len());
    // JSON is YAML.
    let file = tempfile::NamedTempFile::new().unwrap();
    let groups = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(file.path(), groups.to_string()).unwrap();
    let path = file.path().to_str().unwrap();
    assert_success(
        "the dashboard",
        &promtool(&tool, &["check", "rules", path], ""),
    );
}

/// Names of metrics in a text, without the parts that Prometheus adds to histograms.
fn names_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text
        .split(|c| !word(c))
        .filter(|w| w.starts_with("realign_"));
    let base = |word: &str| {
        let parts = ["_bucket", "_count", "_sum"];
        let cut = parts.iter().find_map(|part| word.strip_suffix(part));
        cut.unwrap_or(word).to_string()
    };
    words.map(base).collect()
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    let source = std::fs::read_to_string(root().join("src/server/telemetry/names.rs")).unwrap();
    let known = names_in(&source);
    for file in [
        "prometheus/alerts.yml",
        "prometheus/alerts_test.yml",
        "grafana/realign.json",
    ] {
        let text = std::fs::read_to_string(root().join("deploy").join(file)).unwrap();
        let unknown: Vec<_> = names_in(&text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
    }
}

/// The lines below `key: |` in a YAML text, without their indent.
fn block<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let (before, rest) = text.split_once(&format!("{key}: |\n")).unwrap();
    let indent = before.rsplit('\n').next().unwrap().len() + 2;
    let inside =
        |line: &&str| line.trim().is_empty() || line.len() - line.trim_start().len() >= indent;
    let lines = rest.lines().take_while(inside);
    lines
        .map(|line| line.get(indent..).unwrap_or_default())
        .collect()
}

#[test]
fn the_kubernetes_config_map_holds_what_the_program_accepts() {
    let file = root().join("deploy/kubernetes/base/realign.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let workspace = Workspace::with_config(&block(&text, "realign.toml").join("\n"));
    let policy = block(&text, "helpful-answers.yaml").join("\n");
    workspace.write("policies/p.yaml", &policy);
    let mut command = Command::new(env!("CARGO_BIN_EXE_realign"));
    engine::choose(&mut command);
    let tested = command
        .args(["policy", "test", "--policies", "policies"])
        .current_dir(workspace.path(""))
        .output();
    assert_success("policy test", &tested.unwrap());
}

/// A Prometheus of its own; killed when dropped.
struct Prometheus {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Prometheus {
    fn start(tool: &Path, target: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let rules = root().join("deploy/prometheus/alerts.yml");
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{rules:?}]\n\
             scrape_configs:\n  - job_name: realign\n    static_configs: [{{ targets: [{target:?}] }}]\n"
        );
        let file = data.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(tool)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                data.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .args(["--log.level=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("http://{address}");
        Self {
            child,
            url,
            _data: data,
        }
    }

    /// The values of an instant query; empty while Prometheus is starting.
    fn query(&self, query: &str) -> Vec<f64> {
        let call = ureq::get(format!("{}/api/v1/query", self.url)).query("query", query);
        let Ok(mut answer) = call.call() else {
            return Vec::new();
        };
        let answer: Value = answer.body_mut().read_json().unwrap();
        let series = answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let value = |s: &Value| s["value"][1].as_str().unwrap().parse().unwrap();
        series.iter().map(value).collect()
    }
}

#[test]
fn a_real_prometheus_scrapes_and_answers_queries() {
    let (Some(prometheus), Some(promtool_path)) = (tool("prometheus"), tool("promtool")) else {
        return;
    };
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    server.ended(1);
    workspace.drop_policy("xyzzy");
    assert_eq!(server.ended(2)["status"], "succeeded");
    for _ in 0..3 {
        server.chat("tiny", "hello", 6);
    }
    wait("three judgements", || {
        (server.metric("realign_compliance_responses_total", "") == 3.0).then_some(())
    });

    let checked = promtool(
        &promtool_path,
        &["check", "metrics"],
        &server.get_text("/metrics"),
    );
    assert_success("check metrics", &checked);
    let complaints = String::from_utf8_lossy(&checked.stderr).trim().to_string();
    assert_eq!(complaints, "", "promtool has nothing to complain about");

    let target = server.url("").replace("http://", "");
    let prometheus = Prometheus::start(&prometheus, &target);
    wait("a scrape", || {
        (prometheus.query("up{job='realign'}") == [1.0]).then_some(())
    });
    let sum = |query: &str| wait(query, || prometheus.query(query).first().copied());
    assert_eq!(
        sum("sum(realign_requests_total{route='/v1/chat/completions', status='200'})"),
        3.0
    );
    assert_eq!(sum("sum(realign_time_to_first_token_seconds_count)"), 3.0);
    assert_eq!(sum("sum(realign_compliance_responses_total)"), 3.0);
    assert_eq!(sum("realign_policy_last_reload_successful"), 1.0);
    assert_eq!(sum("count(realign_generation_info)"), 2.0);
    assert_eq!(
        sum("sum(realign_realignments_total{outcome='succeeded'})"),
        1.0
    );
    assert_eq!(
        sum("count(realign_policy_violations_total{policy='no-xyzzy'})"),
        1.0
    );
    assert!(
        sum("histogram_quantile(0.5, sum by (le) (realign_request_duration_seconds_bucket))") > 0.0
    );
    // Every metric is exposed once a realignment has run, but those of a store that servers share.
    let known =
        names_in(&std::fs::read_to_string(root().join("src/server/telemetry/names.rs")).unwrap());
    let seen = server.get_text("/metrics");
    let missing: Vec<_> = known
        .iter()
        .filter(|name| !name.starts_with("realign_store_") && !name.starts_with("realign_fleet_"))
        .filter(|name| !seen.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "never exposed: {missing:?}");
    assert_eq!(
        prometheus.query("ALERTS{alertstate='firing'}"),
        [0.0; 0],
        "all is well"
    );
}
