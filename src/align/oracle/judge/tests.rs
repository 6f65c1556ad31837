use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;
use crate::oracle::MemoryScoreCache;
use crate::policy::Labelled;

/// Requests that the fake server received.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) requests: AtomicUsize,
    at_once: AtomicUsize,
    pub(crate) most_at_once: AtomicUsize,
    pub(crate) bodies: std::sync::Mutex<Vec<Value>>,
}

/// A local server that speaks HTTP/1.1 and the chat completions format. `answer` gives status,
/// extra headers and body from the request's number and body.
pub(crate) fn server(
    answer: impl Fn(usize, &Value) -> (u16, &'static str, Value) + Send + Sync + 'static,
) -> (String, Arc<Log>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let log = Arc::new(Log::default());
    let (seen, answer) = (log.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (seen, answer) = (seen.clone(), answer.clone());
            std::thread::spawn(move || serve(stream, &seen, answer.as_ref()));
        }
    });
    (url, log)
}

fn serve(
    stream: TcpStream,
    log: &Log,
    answer: &dyn Fn(usize, &Value) -> (u16, &'static str, Value),
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        let mut length = 0;
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        assert!(
            line.starts_with("POST /v1/chat/completions HTTP/1.1"),
            "{line}"
        );
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
            let (name, value) = header.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let body: Value = serde_json::from_slice(&body).ok()?;
        let now = log.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        log.most_at_once.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(15));
        let number = log.requests.fetch_add(1, Ordering::SeqCst);
        let (status, headers, reply) = answer(number, &body);
        log.bodies.lock().unwrap().push(body);
        log.at_once.fetch_sub(1, Ordering::SeqCst);
        let reply = reply.to_string();
        write!(stream, "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{reply}", reply.len()).ok()?;
    }
}

/// A completion whose first token is yes with this probability, spread over spellings.
fn completion(yes: f64) -> Value {
    let tops = json!([
        {"token": "Yes", "logprob": (yes * 0.75).ln()}, {"token": " yes", "logprob": (yes * 0.25).ln()},
        {"token": "NO", "logprob": ((1.0 - yes) * 0.5).ln()}, {"token": "no", "logprob": ((1.0 - yes) * 0.5).ln()},
        {"token": "Maybe", "logprob": -0.1},
    ]);
    json!({
        "choices": [{"message": {"role": "assistant", "content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": tops}]}}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 1},
    })
}

fn spec(url: &str) -> JudgeSpec {
    JudgeSpec {
        url: url.to_owned(),
        model: "big".into(),
        key_env: None,
        question: "Is it rude?".into(),
        template: None,
        policy: "Be polite.".into(),
        threshold: Some(0.5),
        concurrency: 3,
        price: [2.0, 10.0],
        examples: vec![],
    }
}

fn judge(spec: JudgeSpec) -> Judge {
    Judge::prepare(Arc::new(spec), Arc::new(MemoryScoreCache::default())).unwrap()
}

fn exchange(response: &str) -> Exchange<'_> {
    Exchange {
        prompt: "Hello?",
        response,
        labels: &[],
    }
}

#[test]
fn first_token_probabilities_are_summed_over_spellings() {
    let (url, log) = server(|_, _| (200, "", completion(0.8)));
    let judge = judge(spec(&url));
    let score = judge.score(&exchange("Go away.")).unwrap();
    assert!((score.probability - 0.8).abs() < 1e-9, "{score:?}");
    // The same question is sent only once.
    assert_eq!(judge.score(&exchange("Go away.")).unwrap(), score);
    let usage = judge.usage();
    assert_eq!((usage.calls, usage.cached, usage.retries), (1, 1, 0));
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (40, 1));
    assert!((usage.cost - (40.0 * 2.0 + 10.0) / 1e6).abs() < 1e-12);
    let bodies = log.bodies.lock().unwrap();
    assert_eq!(
        (&bodies[0]["model"], &bodies[0]["max_tokens"]),
        (&json!("big"), &json!(1))
    );
    assert_eq!(bodies[0]["logprobs"], json!(true));
    let message = bodies[0]["messages"][0]["content"].as_str().unwrap();
    for part in ["Be polite.", "Is it rude?", "Go away.", "Hello?"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
}

#[test]
fn passing_failures_are_tried_again_and_lasting_ones_are_not() {
    let (url, log) = server(|number, _| match number {
        0 => (503, "", json!({})),
        1 => (429, "retry-after: 0\r\n", json!({})),
        _ => (200, "", completion(0.1)),
    });
    let judge_ = judge(spec(&url));
    assert!(!judge_.score(&exchange("x")).unwrap().holds());
    assert_eq!(
        (log.requests.load(Ordering::SeqCst), judge_.usage().retries),
        (3, 2)
    );
    let (url, log) = server(|_, _| (401, "", json!({"error": {"message": "wrong key"}})));
    let error = judge(spec(&url)).score(&exchange("x")).unwrap_err();
    assert!(
        error.to_string().contains("status 401") && error.to_string().contains("wrong key"),
        "{error}"
    );
    assert_eq!(log.requests.load(Ordering::SeqCst), 1);
    let (url, _) = server(|_, _| {
        (
            200,
            "",
            json!({"choices": [{"message": {"content": "Perhaps."}}]}),
        )
    });
    let error = judge(spec(&url)).score(&exchange("x")).unwrap_err();
    assert!(matches!(error, JudgeError::NoVerdict { .. }), "{error}");
}

#[test]
fn an_endpoint_without_probabilities_is_taken_at_its_word() {
    let (url, _) = server(|number, _| {
        let word = if number == 0 {
            "No, it is not."
        } else {
            "Yes."
        };
        (
            200,
            "",
            json!({"choices": [{"message": {"content": word}}]}),
        )
    });
    let judge = judge(spec(&url));
    assert_eq!(judge.score(&exchange("a")).unwrap().probability, 0.0);
    assert_eq!(judge.score(&exchange("b")).unwrap().probability, 1.0);
}

#[test]
fn concurrency_is_bounded_and_the_threshold_is_fitted() {
    // A judge that leans towards yes: violations get 0.9, the rest 0.7.
    let (url, log) = server(|_, body| {
        let bad = body["messages"][0]["content"]
            .as_str()
            .unwrap()
            .contains("bad");
        (200, "", completion(if bad { 0.9 } else { 0.7 }))
    });
    let examples: Vec<Labelled> = (0..12)
        .map(|i| Labelled {
            prompt: format!("p{i}"),
            response: if i % 2 == 0 { "bad" } else { "good" }.into(),
            violates: i % 2 == 0,
        })
        .collect();
    let judge = judge(JudgeSpec {
        threshold: None,
        examples: examples.clone(),
        ..spec(&url)
    });
    assert!(
        (judge.threshold() - 0.8).abs() < 1e-6,
        "{}",
        judge.threshold()
    );
    for example in &examples {
        assert_eq!(
            judge.left_out(&example.exchange()).unwrap().holds(),
            example.violates
        );
    }
    let most = log.most_at_once.load(Ordering::SeqCst);
    assert!((2..=3).contains(&most), "{most} at once");
    assert_eq!(judge.usage().calls, 12);
}

#[test]
fn a_missing_key_is_named() {
    let spec = JudgeSpec {
        key_env: Some("REALIGN_NO_SUCH_KEY".into()),
        ..spec("http://127.0.0.1:9/v1")
    };
    let error = Judge::prepare(Arc::new(spec), Arc::new(MemoryScoreCache::default())).unwrap_err();
    assert!(error.to_string().contains("REALIGN_NO_SUCH_KEY"), "{error}");
}

#[test]
fn a_judge_that_is_down_is_not_asked_thousands_of_times() {
    let (url, log) = server(|_, _| (503, "retry-after: 0\r\n", json!({})));
    let judge = judge(spec(&url));
    let responses: Vec<String> = (0..2000).map(|i| format!("r{i}")).collect();
    let exchanges: Vec<Exchange<'_>> = responses.iter().map(|r| exchange(r)).collect();
    let answers = judge.ask_all(&exchanges);
    let unreachable = |answer: &Result<f64, JudgeError>| matches!(answer, Err(JudgeError::Unreachable { why, .. }) if why.contains("503"));
    assert!(answers.iter().all(unreachable), "{:?}", answers.last());
    // Three at once, five attempts each, and as many that had begun by then.
    let requests = log.requests.load(Ordering::SeqCst);
    assert!(requests <= 2 * 3 * 5, "{requests} requests");
}
