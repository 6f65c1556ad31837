//! A server on a free port of the loopback address, with a scripted engine and control loop.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{mpsc, watch};

use super::super::answers::admin::{
    Alignment, Cancelling, ExamAnswer, Generations, History, Policies, Realignment, Started, Swap,
    Unpinned,
};
use super::super::answers::retention::Collected;
use super::super::*;
use crate::config::UnknownFields;
use crate::config::keys::{ApiKey, KeyDigest};
use crate::telemetry::{Event, Outcome, Stage};
use realign_align::oracle::{Exchange, RuleOracle};
use realign_align::policy::{PolicySet, RuleExplanation};
use realign_core::clock::unix_seconds;
use realign_core::{AlignmentState, Thread};
use realign_engine::PromptToken;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::request::{
    EngineStats, FinishReason, GenerateEvent, GenerateRequest, GenerateStream, StoppedBy,
    SubmitError, TokenLogprob,
};
use realign_model::test_support::test_model;

pub(super) const MODEL: &str = "org/tiny";
pub(super) const BASE: &str = "000000000000";
pub(super) const CURRENT: &str = "00000000abcd";

/// The operators' key of every server here.
pub(super) const ADMIN_KEY: &str = "root";

pub(super) fn access(keys: Vec<ApiKey>, rates: Rates, max_concurrent: usize) -> Access {
    Access::new(keys, KeyDigest::of(ADMIN_KEY), rates, max_concurrent)
}

/// What the engine does with the next sequence.
#[derive(Clone, Debug)]
pub(super) enum Script {
    Say(&'static [&'static str]),
    /// As `Say`, without the exclamation mark at the end.
    Exactly(&'static [&'static str]),
    /// Says this and reaches the maximum number of tokens.
    Cut(&'static [&'static str]),
    /// Says this, and finds its constraint too complex.
    Entangled(&'static [&'static str]),
    Refuse(SubmitError),
    Fail,
    /// Stays open; the sender's `closed` reports the cancellation.
    Hang,
}

/// Answers from scripts, in order; without one it generates "Hello world".
#[derive(Default)]
pub(super) struct FakeEngine {
    pub(super) scripts: Mutex<VecDeque<Script>>,
    pub(super) requests: Mutex<Vec<GenerateRequest>>,
    pub(super) hanging: Mutex<Vec<mpsc::UnboundedSender<GenerateEvent>>>,
}

impl EnginePort for FakeEngine {
    fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError> {
        let script = self.scripts.lock().unwrap().pop_front();
        let (sender, events) = mpsc::unbounded_channel();
        let top = request.sampling.top_logprobs;
        let stop = request.sampling.stop.first().cloned();
        let prompt_tokens = request.prompt.len();
        self.requests.lock().unwrap().push(request);
        let script = script.unwrap_or(Script::Say(&["Hello", " world"]));
        let (reason, rest) = match script {
            Script::Cut(_) => (FinishReason::Length, ""),
            Script::Exactly(_) => (FinishReason::Stop, ""),
            Script::Entangled(_) => (FinishReason::Grammar, ""),
            _ => (FinishReason::Stop, "!"),
        };
        // A script ends at the first stop string, if there are any.
        let stopped_by = stop.map(StoppedBy::Text);
        match script {
            Script::Say(texts)
            | Script::Exactly(texts)
            | Script::Cut(texts)
            | Script::Entangled(texts) => {
                for (i, text) in texts.iter().enumerate() {
                    let token = TokenLogprob {
                        id: 100 + i as u32,
                        text: (*text).into(),
                        logprob: -0.5,
                    };
                    let event = GenerateEvent::Token {
                        id: token.id,
                        text: (*text).into(),
                        top: vec![token.clone(); top.unwrap_or(0)],
                        logprob: top.map(|_| token),
                    };
                    sender.send(event).unwrap();
                }
                let finished = GenerateEvent::Finished {
                    reason,
                    stopped_by,
                    text: rest.into(),
                    prompt_tokens,
                    cached_tokens: prompt_tokens / 2,
                    completion_tokens: texts.len() + 1,
                };
                sender.send(finished).unwrap();
            }
            Script::Refuse(error) => return Err(error),
            Script::Fail => sender
                .send(GenerateEvent::Failed("no memory".into()))
                .unwrap(),
            Script::Hang => self.hanging.lock().unwrap().push(sender),
        }
        Ok(GenerateStream::new(events))
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            running: 3,
            waiting: 2,
            kv_cache_usage: 0.5,
            prefix_queries: 100,
            prefix_hits: 64,
            preemptions: 0,
            drafted: 0,
            accepted: 0,
            nonfinite: 0,
        }
    }

    fn max_model_len(&self) -> usize {
        2048
    }
}

/// Knows one realignment, `r1`, and two without events: `running`, and `missed`, which has ended. It lets `activate` succeed if `CURRENT` is expected.
struct FakeAdmin;

impl AdminPort for FakeAdmin {
    fn policies(&self) -> Policies {
        Policies::default()
    }
    fn policy_file(&self, policy: &str) -> Result<(String, String), AdminError> {
        match policy {
            "p" => Ok(("p.yaml".into(), "id: p\nrules:\n  - id: hello\n".into())),
            _ => Err(AdminError::NotFound(format!("no policy {policy}"))),
        }
    }
    fn realignments(&self) -> Vec<Realignment> {
        vec![realignment("r1")]
    }
    fn realignment(&self, id: &str) -> Option<Realignment> {
        let known = ["r1", "running", "missed"].contains(&id);
        known.then(|| Realignment {
            timeline: Some(None),
            outcome: (id != "running").then_some(Outcome::NoConflict),
            ..realignment(id)
        })
    }
    fn start(&self) -> Result<Started, AdminError> {
        Ok(Started::Id { id: "r2".into() })
    }
    fn cancel(&self, id: &str) -> Result<Cancelling, AdminError> {
        Err(AdminError::NotFound(format!("no realignment {id}")))
    }
    fn events(&self, id: &str) -> Option<BoxStream<'static, RealignmentEvent>> {
        if ["running", "missed"].contains(&id) {
            return Some(stream::pending().boxed());
        }
        let stage = Stage::Triage;
        let events = [
            Event::StageEntered {
                id: "r1".into(),
                stage,
            },
            Event::RealignmentFinished {
                id: "r1".into(),
                outcome: Outcome::NoConflict,
                trigger: None,
                generation: None,
                detail: None,
                took: Duration::ZERO,
            },
            Event::StageEntered {
                id: "never_sent".into(),
                stage,
            },
        ];
        let events = events.map(|event| RealignmentEvent::Happened(Arc::new(event)));
        (id == "r1").then(|| stream::iter(events).boxed())
    }
    fn generations(&self) -> Generations {
        Generations {
            current: CURRENT.into(),
            ..Generations::default()
        }
    }
    fn activate(&self, generation: &str, expected: Option<&str>) -> Result<Swap, AdminError> {
        match expected {
            Some(expected) if expected != CURRENT => Err(AdminError::Conflict("moved".into())),
            _ => Ok(Swap {
                from: CURRENT.into(),
                to: generation.into(),
            }),
        }
    }
    fn rollback(&self, _: Option<&str>) -> Result<Swap, AdminError> {
        Err(AdminError::Failed("disk".into()))
    }
    fn unpin(&self) -> Result<Unpinned, AdminError> {
        Ok(Unpinned { released: None })
    }
    fn history(&self) -> Result<History, AdminError> {
        Ok(History {
            activations: Vec::new(),
        })
    }
    fn clear_policies(&self) -> Result<Policies, AdminError> {
        Err(AdminError::Conflict("there are policies".into()))
    }
    fn collect(&self, options: CollectOptions) -> Result<Collected, AdminError> {
        Ok(Collected {
            dry_run: options.dry_run,
            adapters: Vec::new(),
            freed_bytes: 0,
            kept_bytes: options.max_imported_age_s.unwrap_or(0),
            removed: [("adapter", 0)].into(),
        })
    }
    fn load_adapter(&self, new: NewName<'_>) -> Result<(), AdminError> {
        match new.path {
            "/adapters/a" => Ok(()),
            _ => Err(AdminError::NotFound(format!("nothing in {}", new.path))),
        }
    }
    fn unload_adapter(&self, name: &str, _: Option<&str>) -> Result<(), AdminError> {
        Err(AdminError::NotFound(format!("no {name}")))
    }
    fn alignment(&self) -> Alignment {
        Alignment {
            state: AlignmentState::Aligned,
            reasons: Vec::new(),
            pinned: None,
        }
    }
    fn exam(&self) -> ExamAnswer {
        ExamAnswer {
            alignment: self.alignment(),
            examining: false,
            serving: None,
            candidate: None,
        }
    }
    fn examine(&self) -> Result<ExamAnswer, AdminError> {
        Ok(self.exam())
    }
}

fn realignment(id: &str) -> Realignment {
    Realignment {
        id: id.into(),
        inputs_hash: "00".repeat(32),
        policy_revision: "abc".into(),
        stage: Stage::Swap,
        outcome: Some(Outcome::NoConflict),
        progress: 1.0,
        stage_progress: 1.0,
        created_at: 1,
        updated_at: 2,
        finished_at: Some(2),
        triage: None,
        losses: None,
        gate: None,
        error: None,
        generation: Some(BASE.into()),
        status: "no_conflict",
        timeline: None,
    }
}

#[derive(Default)]
struct FakeLogs(Mutex<String>);

impl LogPort for FakeLogs {
    fn filter(&self) -> String {
        self.0.lock().unwrap().clone()
    }
    fn set_filter(&self, filter: &str) -> Result<(), LogFilterError> {
        if filter == "loud" {
            return Err(LogFilterError::Unusable("no such level".into()));
        }
        *self.0.lock().unwrap() = filter.into();
        Ok(())
    }
}

/// One rule: a text must not say "bad".
struct FakeOracle;

impl ModerationPort for FakeOracle {
    fn moderate(&self, prompt: &str, responses: &[String]) -> Moderations {
        let bad = |text: &String| vec![text.contains("bad") && prompt != "bad is fine"];
        Moderations {
            revision: "abc".into(),
            categories: vec!["words/bad".into()],
            results: responses.iter().map(bad).collect(),
        }
    }
    fn explain(&self, exchange: &Exchange<'_>) -> (String, Vec<RuleExplanation>) {
        let policy = "apiVersion: realign/v1\nid: words\nversion: '1'\nrules:\n  - id: bad\n    \
                      violates: { response: { any_phrase: [bad] } }\n";
        let set = PolicySet::from_yaml("words.yaml", policy).unwrap();
        let rules = RuleOracle::with_dryrun(&set).explain(exchange);
        ("abc".into(), rules)
    }
}

/// Threads that are well unless a test says otherwise.
#[derive(Default)]
pub(super) struct FakeHealth {
    pub(super) failure: Mutex<Option<String>>,
    pub(super) unready: Mutex<Option<String>>,
}

impl HealthPort for FakeHealth {
    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap().clone()
    }
    fn unready(&self) -> Option<String> {
        self.unready.lock().unwrap().clone()
    }
    fn panics(&self) -> Vec<(Thread, u64)> {
        vec![(Thread::Engine, 2)]
    }
}

/// Embeds a text as its number of tokens.
struct FakeEmbedder;

impl EmbeddingPort for FakeEmbedder {
    fn embed(&self, _: &Generation, tokens: &[u32]) -> Result<Vec<f32>, EmbeddingError> {
        Ok(vec![tokens.len() as f32, -0.5])
    }

    fn prompt_logprobs(
        &self,
        _: &Generation,
        tokens: &[u32],
        top: usize,
    ) -> Result<Vec<PromptToken>, EmbeddingError> {
        let token = |id: &u32| PromptToken {
            logprob: -0.5,
            rank: 1,
            top: vec![(*id, -0.5); top],
        };
        Ok(tokens[1..].iter().map(token).collect())
    }
}

pub(super) fn generation(id: &str) -> Arc<Generation> {
    Arc::new(Generation {
        id: GenerationId(id.into()),
        base_hash: "12345678".repeat(8),
        policy_revision: None,
        adapter: None,
    })
}

/// A running server; it stops when dropped.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) engine: Arc<FakeEngine>,
    pub(super) state: AppState,
    pub(super) health: Arc<FakeHealth>,
    pub(super) cut: watch::Sender<Option<Cut>>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(super) fn start(change: impl FnOnce(&mut AppState)) -> Self {
        let content = test_model();
        let tokenizer = Tokenizer::from_gguf(&content).unwrap();
        let chat = ChatTemplate::from_gguf("none.gguf".as_ref(), &content, &tokenizer).unwrap();
        let registry = Registry::new(generation(BASE), 4);
        registry.swap(generation(CURRENT), None).unwrap();
        let engine = Arc::new(FakeEngine::default());
        let tokenizer = Arc::new(tokenizer);
        let health = Arc::new(FakeHealth::default());
        let (cut, cut_signal) = CutSignal::new();
        let mut state = AppState {
            model_name: MODEL.into(),
            compiler: Compiler::new(Arc::clone(&tokenizer)),
            tokenizer,
            chat: Arc::new(chat),
            engine: Arc::clone(&engine) as Arc<dyn EnginePort>,
            embeddings: Embeddings::new(Arc::new(FakeEmbedder)),
            moderation: Arc::new(FakeOracle),
            registry: Arc::new(registry),
            admin: Arc::new(FakeAdmin),
            telemetry: Arc::new(Telemetry::new().unwrap()),
            access: Arc::new(access(Vec::new(), Rates::default(), 64)),
            compliance: None,
            logs: Arc::new(FakeLogs::default()),
            cors_origins: Arc::default(),
            body_timeout: Duration::from_secs(60),
            ready: Arc::new(AtomicBool::new(true)),
            closing: tokio::sync::watch::Sender::new(false),
            health: health.clone(),
            cut: cut_signal,
            max_body_bytes: 4096,
            clamp_max_tokens: true,
            schema_bounds: Bounds::default(),
            unknown_fields: UnknownFields::Refuse,
            tokenizer_info: false,
            responses: None,
            started_at: unix_seconds(),
            connections: Arc::default(),
        };
        change(&mut state);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let address = "127.0.0.1:0";
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(address))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = router(state.clone()).into_make_service_with_connect_info::<SocketAddr>();
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self {
            url,
            engine,
            state,
            health,
            cut,
            _runtime: runtime,
        }
    }

    pub(super) fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        self.engine.scripts.lock().unwrap().extend(scripts);
    }
}
