//! A process: the real control loop and operator routes, without an engine and a trainer.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::super::context::{Context, Parts, first};
use super::super::pointer::Pointer;
use super::super::worker::Worker;
use super::super::{Control, Event};
use super::outside::{Outside, Seen};
use crate::config::{Config, RawConfig};
use crate::telemetry::Telemetry;
use realign_backend::DeviceChoice;
use realign_engine::Engine;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::adapter::{AdapterStore, Registry, base_id};
use realign_engine::health::Health;
use realign_engine::merged::PrepareError;
use realign_engine::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};
use realign_model::test_support::{path, test_model, test_model_path};
use realign_model::{ChatTemplate, LoadedModel, ModelSource, TimeSlices, Tokenizer};

/// Generations in memory, as in a server.
const LOADED: usize = 8;

/// An engine that has room for everything and answers nothing.
#[derive(Debug, Default)]
struct NoEngine(Arc<Health>);

impl Engine for NoEngine {
    fn submit(&self, _: GenerateRequest) -> Result<GenerateStream, SubmitError> {
        Err(SubmitError::QueueFull {
            waiting: 0,
            limit: 0,
        })
    }

    fn prepare(
        &self,
        _: &Arc<Generation>,
        _: &dyn Fn(Duration) -> bool,
    ) -> Result<(), PrepareError> {
        Ok(())
    }

    fn health(&self) -> &Arc<Health> {
        &self.0
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn max_model_len(&self) -> usize {
        1
    }

    fn shutdown(&self) {}
}

/// What all processes share and none changes.
struct Shared {
    config: Arc<Config>,
    loaded: LoadedModel,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| Shared {
        config: Arc::new(Config::resolve(RawConfig::default()).unwrap()),
        loaded: model(),
    })
}

/// Tiny weights and the test model's text: neither is used.
fn model() -> LoadedModel {
    let weights = path("tests/golden/families/gemma3");
    let files = ModelSource::parse(&weights)
        .and_then(ModelSource::fetch)
        .unwrap();
    let device = realign_backend::open(DeviceChoice::Cpu).unwrap();
    let slices = Arc::new(TimeSlices::undivided());
    let header = test_model();
    let tokenizer = Tokenizer::from_gguf(&header).unwrap();
    let chat = ChatTemplate::from_gguf(&test_model_path(), &header, &tokenizer).unwrap();
    LoadedModel {
        backend: device.load(&files, slices).unwrap(),
        tokenizer: Arc::new(tokenizer),
        chat: Arc::new(chat),
        base_hash: "0".repeat(64).into(),
        name: "tiny".into(),
    }
}

/// The base's id and hash.
pub(super) fn base() -> (GenerationId, &'static str) {
    let hash = &*shared().loaded.base_hash;
    (base_id(hash), hash)
}

/// How long content has to rest.
pub(super) fn settle() -> Duration {
    Duration::from_millis(shared().config.watch.settle_ms)
}

pub(super) struct Process {
    pub(super) control: Control,
    pub(super) worker: Worker,
    queued: Receiver<Event>,
    /// Realignments that had ended before it started.
    pub(super) ended_before: usize,
}

impl Process {
    /// Starts as a server does.
    pub(super) fn start(outside: &Arc<Outside>) -> Self {
        Self::start_with(outside, shared().config.clone())
    }

    /// The same, with its own configuration.
    pub(super) fn start_with(outside: &Arc<Outside>, config: Arc<Config>) -> Self {
        let shared = shared();
        let ended_before = outside.ended_rows().unwrap();
        let base = outside.load(&outside.base).unwrap();
        let named = super::super::pointer::CurrentFile::current(&**outside);
        let (current, fallback) = first(base, named, |id| outside.load(id));
        let base = Arc::new(outside.load(&outside.base).unwrap());
        let loads = outside.clone();
        let loader = Box::new(move |id: &GenerationId| loads.load(id));
        let registry = Registry::new(base, LOADED).with_loader(loader);
        if current.id != outside.base {
            registry.swap(Arc::new(current), None).unwrap();
        }
        let registry = Arc::new(registry);
        let telemetry = Arc::new(Telemetry::new().unwrap());
        telemetry
            .metrics()
            .set_initial_generation(&registry.lease_current().id.0, None);
        let parts = Parts {
            config,
            loaded: shared.loaded.clone(),
            engine: Arc::new(NoEngine::default()),
            registry: registry.clone(),
            store: Arc::new(AdapterStore::open("no-such-directory").unwrap()),
            db: outside.db.clone(),
            telemetry,
            fallback: fallback.clone(),
            member: None,
        };
        let mut context = Context::new(parts).unwrap();
        context.pointer = Pointer::new(registry, outside.db.clone(), outside.clone(), fallback);
        context.pointer.resume(|id| outside.load(id));
        context.stand_in();
        let context = Arc::new(context);
        let (events, queued) = channel();
        // The worker is driven by hand.
        let (_, inbox) = channel();
        let seen = Box::new(Seen(outside.clone()));
        let mut worker = Worker::new(context.clone(), events.clone(), inbox, seen);
        worker.start();
        let control = Control {
            events,
            context,
            thread: Mutex::new(None),
            watcher: Mutex::new(None),
            member: None,
        };
        Self {
            control,
            worker,
            queued,
            ended_before,
        }
    }

    pub(super) fn context(&self) -> &Context {
        &self.control.context
    }

    /// The loop handles what waits for it; returns how much did.
    pub(super) fn deliver(&mut self) -> usize {
        let mut delivered = 0;
        while let Ok(event) = self.queued.try_recv() {
            self.worker.handle(event);
            delivered += 1;
        }
        delivered
    }

    /// What serves.
    pub(super) fn serving(&self) -> String {
        self.context().registry.lease_current().id.0.clone()
    }

    pub(super) fn previous(&self) -> Option<String> {
        let previous = self.context().registry.previous();
        previous.map(|generation| generation.id.0.clone())
    }

    /// What is pinned, as it is shown.
    pub(super) fn pinned(&self) -> Option<String> {
        self.context().pinned().map(|pin| pin.generation)
    }

    /// The revision of the active policies, if any are active.
    pub(super) fn active(&self) -> Option<String> {
        let active = self.context().active();
        active.loaded.then(|| active.set.revision().to_owned())
    }
}
