//! The library inside an application: the examples as their users run them, and two servers in one
//! process.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use realign::{Generate, GenerateError, Server};
use serde_json::{Value, json};

use super::server::wait;
use super::workspace::Workspace;
use super::{engine, tiny_model};

/// Set in the child process that runs only the servers of one test.
const OWN_PROCESS: &str = "EMBEDDING_TEST_OWN_PROCESS";

/// An example, which `cargo test` builds along with the tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --examples` as well",
        path.display()
    );
    let mut command = Command::new(path);
    command.arg(tiny_model::directory());
    command
}

/// A child process that is killed when the test ends, even if it fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It fails if the process has ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn the_example_of_embedding_serves_under_a_path_of_the_application() {
    if engine::lacks("examples use the native engine") {
        return;
    }
    let workspace = Workspace::tiny(1);
    let mut command = example("embed");
    command
        .current_dir(workspace.path(""))
        .stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut output = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let base = line.trim().strip_prefix("base URL: ").unwrap().to_string();
    let origin = base.strip_suffix("/llm/v1").unwrap();

    let get = |url: String| -> String {
        let mut response = ureq::get(&url).call().unwrap();
        response.body_mut().read_to_string().unwrap()
    };
    assert_eq!(get(format!("{origin}/")), "This is the application.\n");
    let models: Value = serde_json::from_str(&get(format!("{base}/models"))).unwrap();
    let body = json!({
        "model": models["data"][0]["id"], "max_tokens": 8, "temperature": 0,
        "messages": [{"role": "user", "content": "Hello"}],
    });
    let mut response = ureq::post(format!("{base}/chat/completions"))
        .send_json(&body)
        .unwrap();
    let answer: Value = response.body_mut().read_json().unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 8, "{answer}");
    let generations = format!("{origin}/llm/admin/v1/generations");
    let refused = ureq::get(&generations).call().unwrap_err();
    assert!(matches!(refused, ureq::Error::StatusCode(401)), "{refused}");
    let key = workspace.read("state/admin-key");
    let mut response = ureq::get(&generations)
        .header("authorization", format!("Bearer {}", key.trim()))
        .call()
        .unwrap();
    let generations = response.body_mut().read_to_string().unwrap();
    assert!(generations.contains("\"current\""), "{generations}");
    let metrics = get(format!("{origin}/llm/metrics"));
    let counted = "realign_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1";
    assert!(metrics.contains(counted), "{metrics}");

    let interrupt = Command::new("kill")
        .args(["-INT", &running.0.id().to_string()])
        .status();
    assert!(interrupt.unwrap().success());
    let status = wait("the application's end", || running.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn the_example_without_http_generates() {
    if engine::lacks("examples use the native engine") {
        return;
    }
    let workspace = Workspace::tiny(1);
    let output = example("in_process")
        .current_dir(workspace.path(""))
        .output()
        .unwrap();
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("[generation "), "{text}");
    assert!(text.contains("Once upon a time"), "{text}");
    // Greedy, so the tiny model does not end by itself.
    assert!(text.ends_with("[Length after 24 tokens]\n"), "{text}");
}

/// The number of threads of this process by the names that a server gives them.
fn threads() -> Vec<(&'static str, usize)> {
    let names: Vec<String> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        // A thread may end in the meantime.
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .collect();
    let count = |prefix| {
        let ours = names.iter().filter(|name| name.starts_with(prefix));
        (prefix, ours.count())
    };
    [
        "engine",
        "control",
        "alignment",
        "compliance",
        "policy-watch",
    ]
    .map(count)
    .into()
}

/// Waits until there are `servers` threads of each name. The system shows a thread's name shortly
/// after it starts, and lists the thread until shortly after it ends.
fn expect_threads(servers: usize) {
    wait("the servers' threads, as many as servers", || {
        let all = threads().iter().all(|(_, count)| *count == servers);
        all.then_some(())
    });
}

fn server(workspace: &Workspace) -> Server {
    Server::builder()
        .settings(workspace.read("realign.toml"))
        .policies(workspace.path("policies"))
        .preferences(workspace.path("preferences"))
        .adapters(workspace.path("adapters"))
        .state(workspace.path("state"))
        .build()
        .unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn two_servers_live_in_one_process_and_end_one_by_one() {
    if std::env::var_os(OWN_PROCESS).is_some() {
        return two_servers();
    }
    // The other tests of this process have engines of their own.
    let name = "e2e::embedding::two_servers_live_in_one_process_and_end_one_by_one";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(OWN_PROCESS, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn two_servers() {
    let (one, two) = (Workspace::tiny(2), Workspace::tiny(2));
    one.drop_policy("xyzzy");
    let (first, second) = (server(&one), server(&two));
    expect_threads(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();

    // Only the first has a policy to realign to.
    let question = || {
        Generate::user("question 3?")
            .temperature(0.0)
            .max_tokens(16)
    };
    let base = second.generate_blocking(question()).unwrap();
    wait("the first server's realignment", || {
        (first.generation() != base.generation).then_some(())
    });
    assert_ne!(first.policy_revision(), second.policy_revision());
    let (ours, theirs) = runtime.block_on(async {
        let both = tokio::join!(first.generate(question()), second.generate(question()));
        (both.0.unwrap(), both.1.unwrap())
    });
    assert_eq!(ours.generation, first.generation());
    assert_ne!(ours.text, theirs.text, "the adapter changes what is said");
    assert_eq!(
        (&theirs.text, &theirs.generation),
        (&base.text, &base.generation)
    );
    let unadapted = first.generate_blocking(question().generation("base"));
    assert_eq!(unadapted.unwrap().text, base.text);

    // Shutting the first down does not affect the second.
    runtime.block_on(first.shutdown());
    expect_threads(1);
    let refused = first.generate_blocking(question()).unwrap_err();
    assert!(
        matches!(refused, GenerateError::Unavailable(_)),
        "{refused}"
    );
    assert_eq!(
        second.generate_blocking(question()).unwrap().text,
        base.text
    );
    drop(first);

    // Dropping a server ends it as well, even while it answers.
    let long = Generate::user("question 4?").temperature(0.0);
    let mut answer = second.generate_stream_blocking(long).unwrap();
    assert!(answer.blocking_next().unwrap().is_ok());
    drop(second);
    expect_threads(0);
    let mut rest = std::iter::from_fn(|| answer.blocking_next());
    let failed = rest.find_map(Result::err);
    assert!(
        matches!(failed, Some(GenerateError::Failed(_))),
        "{failed:?}"
    );
}
