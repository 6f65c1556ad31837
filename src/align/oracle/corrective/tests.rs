use super::super::judge::tests::server;
use super::super::{Judgement, Severity, Violation};
use super::*;

/// Milligrams violate.
struct NoDoses;

impl Oracle for NoDoses {
    fn judge(&self, exchange: &Exchange<'_>) -> Judgement {
        let violation = Violation {
            policy: "p".into(),
            rule: "r".into(),
            severity: Severity::High,
        };
        let violated = exchange.response.contains("mg");
        Judgement {
            violations: violated.then_some(violation).into_iter().collect(),
            undecided: Vec::new(),
        }
    }

    fn revision(&self) -> &str {
        "test"
    }
}

fn spec(url: &str) -> CorrectiveSpec {
    CorrectiveSpec {
        url: url.to_owned(),
        model: "big".into(),
        key_env: None,
        template: Some("{{ policy }}|{{ prompt }}".into()),
        max_tokens: 40,
        attempts: 2,
        concurrency: 3,
    }
}

fn prepare(url: &str, cache: Arc<dyn ResponseCache>) -> Corrective {
    Corrective::prepare(spec(url), &PolicySet::default(), cache).unwrap()
}

fn says(text: &str) -> Value {
    json!({"choices": [{"message": {"role": "assistant", "content": text}}]})
}

#[test]
fn only_answers_that_comply_are_used_and_nothing_is_asked_twice() {
    let (url, log) = server(|_, body| {
        let message = body["messages"][0]["content"].as_str().unwrap().to_owned();
        let greedy = body["temperature"] == 0.0;
        let text = match (
            message.ends_with("always bad"),
            message.ends_with("first bad"),
        ) {
            (true, _) => "Take 5 mg.",
            (_, true) if greedy => "Take 7 mg.",
            _ => " Please ask a pharmacist. ",
        };
        (200, "", says(text))
    });
    let cache: Arc<dyn ResponseCache> = Arc::new(MemoryResponseCache::default());
    let prompts = ["good", "first bad", "always bad"];
    let corrective = prepare(&url, cache.clone());
    let written = corrective.write_all(&prompts, &NoDoses).unwrap();
    let good = Some("Please ask a pharmacist.".to_owned());
    assert_eq!(written, [good.clone(), good, None]);
    let usage = corrective.usage();
    assert_eq!((usage.calls, usage.cached, usage.refused), (5, 0, 3));
    assert_eq!(log.bodies.lock().unwrap()[0]["max_tokens"], 40);

    let again = prepare(&url, cache);
    assert_eq!(again.write_all(&prompts, &NoDoses).unwrap(), written);
    assert_eq!(again.usage().calls, 0, "everything was cached");
    assert_eq!(log.requests.load(Ordering::SeqCst), 5);
}

#[test]
fn a_busy_endpoint_is_asked_again_and_a_refusal_is_an_error() {
    let (url, log) = server(|number, _| match number {
        0 => (503, "retry-after: 0\r\n", json!({"error": "busy"})),
        _ => (200, "", says("Rest.")),
    });
    let corrective = prepare(&url, Arc::new(MemoryResponseCache::default()));
    let prompts = ["a", "b", "c", "d", "e", "f"];
    let written = corrective.write_all(&prompts, &NoDoses).unwrap();
    assert!(written.iter().all(|w| w.as_deref() == Some("Rest.")));
    assert_eq!(corrective.usage().retries, 1);
    assert!(log.most_at_once.load(Ordering::SeqCst) <= 3);

    let (url, _) = server(|_, _| (401, "", json!({"error": "who are you"})));
    let corrective = prepare(&url, Arc::new(MemoryResponseCache::default()));
    let error = corrective
        .write_all(&["a"], &NoDoses)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("train.corrective") && error.contains("401"),
        "{error}"
    );
}

#[test]
fn the_request_holds_the_policy_and_the_prompt() {
    let set = crate::policy::PolicySet::load_files(&[realign_model::test_support::path(
        "demo/no-medication-doses.yaml",
    )
    .into()]);
    let corrective = Corrective::prepare(
        CorrectiveSpec {
            template: None,
            ..spec("http://127.0.0.1:9/v1")
        },
        &set.unwrap(),
        Arc::new(MemoryResponseCache::default()),
    );
    let message = corrective.unwrap().render("How much aspirin?").unwrap();
    assert!(
        message.contains("states no dose and no frequency"),
        "{message}"
    );
    assert!(message.ends_with("How much aspirin?"), "{message}");
    let missing = CorrectiveSpec {
        key_env: Some("REALIGN_TEST_NO_SUCH_KEY".into()),
        ..spec("http://127.0.0.1:9/v1")
    };
    let cache = Arc::new(MemoryResponseCache::default());
    let error = Corrective::prepare(missing, &PolicySet::default(), cache).unwrap_err();
    assert!(error.to_string().contains("REALIGN_TEST_NO_SUCH_KEY"));
}
