//! Generation without HTTP.

use futures::StreamExt;

use super::super::*;
use super::fake::{BASE, CURRENT, Script, Server, access};
use super::get;
use crate::telemetry::Compliance;
use crate::telemetry::compliance::Sampling;
use realign_align::policy::PolicySet;
use realign_engine::request::SubmitError;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

#[test]
fn a_text_comes_whole_from_the_generation_that_serves() {
    let server = Server::start(|_| ());
    let request = Generate::user("Hi").seed(5).stop("x").max_tokens(9);
    let whole = runtime()
        .block_on(generate(&server.state, request.clone()))
        .unwrap();
    assert_eq!(whole.text, "Hello world!");
    assert_eq!(whole.finish, FinishReason::Stop);
    assert_eq!(whole.generation, CURRENT);
    assert_eq!(whole.tokens.completion, 3);
    assert_eq!(generate_blocking(&server.state, request).unwrap(), whole);
    let pinned = Generate::text("Hi").generation("base");
    let pinned = generate_blocking(&server.state, pinned).unwrap();
    assert_eq!(pinned.generation, BASE);

    let requests = server.engine.requests.lock().unwrap();
    let [conversation, _, text] = &requests[..] else {
        panic!("{} requests", requests.len());
    };
    assert_eq!(whole.tokens.prompt, conversation.prompt.len());
    let sampling = &conversation.sampling;
    assert_eq!((sampling.seed, sampling.max_tokens), (5, 9));
    assert_eq!((sampling.temperature, sampling.top_p), (1.0, 1.0));
    assert_eq!(sampling.stop, ["x"]);
    assert!(text.prompt.len() < conversation.prompt.len(), "no template");
    assert_eq!(
        text.sampling.max_tokens,
        2048 - text.prompt.len(),
        "whatever is left of the context"
    );
}

#[test]
fn a_stream_gives_pieces_and_then_the_figures() {
    let server = Server::start(|_| ());
    server.script([Script::Say(&["", "Hel", "", "lo"])]);
    let (pieces, stream) = runtime().block_on(async {
        let mut stream = generate_stream(&server.state, Generate::user("Hi"))
            .await
            .unwrap();
        assert_eq!((stream.generation(), stream.finish()), (CURRENT, None));
        let pieces: Vec<_> = stream.by_ref().map(Result::unwrap).collect().await;
        assert_eq!(stream.next().await, None, "nothing follows the end");
        (pieces, stream)
    });
    assert_eq!(pieces, ["Hel", "lo", "!"]);
    assert_eq!(stream.finish(), Some(FinishReason::Stop));
    assert_eq!(stream.tokens().completion, 5);
}

#[test]
fn dropping_a_stream_cancels_and_releases_its_permit() {
    let server = Server::start(|_| ());
    server.script([Script::Hang]);
    let stream = start(&server.state, Generate::user("Hi")).unwrap();
    assert_eq!(server.state.access.running(), 1, "draining waits for it");
    let hanging = server.engine.hanging.lock().unwrap();
    assert!(!hanging[0].is_closed());
    drop(stream);
    assert!(hanging[0].is_closed());
    assert_eq!(server.state.access.running(), 0);
}

#[test]
fn what_is_refused_says_why() {
    let server = Server::start(|state| {
        state.access = Arc::new(access(Vec::new(), Rates::default(), 1));
    });
    let refused = |request| generate_blocking(&server.state, request).unwrap_err();
    let user = || Generate::user("Hi");
    for (request, wrong) in [
        (user().temperature(-0.1), "temperature"),
        (user().temperature(f32::NAN), "temperature"),
        (user().top_p(1.5), "top_p"),
        (user().max_tokens(0), "max_tokens"),
        (user().stop(""), "stop"),
        (Generate::chat([]), "messages"),
    ] {
        let error = refused(request);
        let named = matches!(&error, GenerateError::Invalid { field, .. } if field == wrong);
        assert!(named, "{error:?}");
    }
    let unknown = refused(user().generation("newest"));
    assert!(matches!(unknown, GenerateError::UnknownGeneration(_)));

    let full = SubmitError::QueueFull {
        waiting: 4,
        limit: 4,
    };
    let long = SubmitError::TooLong {
        prompt: 9,
        max_tokens: 9,
        limit: 10,
    };
    server.script([Script::Refuse(full), Script::Refuse(long), Script::Fail]);
    assert!(matches!(refused(user()), GenerateError::Busy(_)));
    assert!(matches!(refused(user()), GenerateError::TooLong(_)));
    assert!(matches!(refused(user()), GenerateError::Failed(_)));
    server.script([Script::Hang]);
    let running = start(&server.state, user()).unwrap();
    assert!(matches!(refused(user()), GenerateError::Busy(_)));
    drop(running);
    server.state.ready.store(false, Ordering::Release);
    assert!(matches!(refused(user()), GenerateError::Unavailable(_)));

    let metrics = get(&server, "/metrics").text;
    for line in [
        "realign_requests_total{route=\"in-process\",status=\"400\"} 7",
        "realign_requests_total{route=\"in-process\",status=\"404\"} 1",
        "realign_requests_total{route=\"in-process\",status=\"429\"} 2",
        "realign_requests_total{route=\"in-process\",status=\"499\"} 1",
        "realign_requests_total{route=\"in-process\",status=\"500\"} 1",
        "realign_requests_total{route=\"in-process\",status=\"503\"} 1",
        "realign_requests_refused_total{reason=\"queue_full\"} 1",
        "realign_requests_refused_total{reason=\"concurrency\"} 1",
        "realign_requests_refused_total{reason=\"unavailable\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[test]
fn answers_are_judged_like_those_to_clients() {
    let server = Server::start(|state| {
        let yaml = "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n  - id: hello\n    \
                    when: { prompt: { any_phrase: [Hi] } }\n    \
                    violates: { response: { any_phrase: [Hello world] } }\n";
        let set = Arc::new(PolicySet::from_yaml("words.yaml", yaml).unwrap());
        let policies: crate::telemetry::compliance::Policies =
            Box::new(move || Some((set.clone(), Arc::default())));
        let telemetry = state.telemetry.clone();
        let sampling = Sampling {
            share: 1.0,
            judge_share: 1.0,
            queue: 64,
        };
        let compliance =
            Compliance::start(sampling, (policies, Box::new(|_, _| {})), None, telemetry).unwrap();
        state.compliance = Some(Arc::new(compliance));
    });
    for prompt in [
        Generate::user("Hi"),
        Generate::text("Hi"),
        Generate::user("Oh"),
    ] {
        generate_blocking(&server.state, prompt).unwrap();
    }
    server.state.compliance.as_ref().unwrap().shutdown();
    let metrics = get(&server, "/metrics").text;
    for line in [
        "realign_compliance_responses_total{verdict=\"violates\"} 2",
        "realign_compliance_responses_total{verdict=\"complies\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}
