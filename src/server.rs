//! Putting the parts together: model, engine, generations, control loop, HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;
use tokio::net::TcpListener;

use crate::adapter::generation::Generation;
use crate::adapter::{AdapterError, AdapterStore, Registry, base_id};
use crate::api::{self, AppState};
use crate::config::Config;
use crate::control::{Control, ControlError, Parts, initial_generation, load_generation, recipe};
use crate::engine::{self, EngineConfig, EngineError, EngineHandle};
use crate::model::{LoadedModel, ModelError};
use crate::state::{StateDb, StateError};
use crate::telemetry::Telemetry;

/// Generations kept in memory beside the base.
const LOADED_GENERATIONS: usize = 4;
/// How long running requests may take to finish after SIGTERM.
const DRAIN: Duration = Duration::from_secs(30);

/// Why the server did not start or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The model is unusable.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The adapter directory is unusable.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The state database is unusable.
    #[error(transparent)]
    State(#[from] StateError),
    /// The control loop did not start.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The metrics could not be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another with --port or server.port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The listener failed while serving.
    #[error("the HTTP server failed: {0}")]
    Http(#[from] std::io::Error),
}

/// A server that has loaded everything but does not listen yet.
pub struct Server {
    config: Arc<Config>,
    engine: EngineHandle,
    control: Arc<Control>,
    state: AppState,
}

impl Server {
    /// Loads the model, opens state and adapters, starts engine and control loop. Blocks for
    /// seconds; every unusable input is an error here, before a port opens.
    pub fn load(config: Config) -> Result<Self, ServerError> {
        let config = Arc::new(config);
        // A recipe that cannot be trained with is found before the model is loaded.
        recipe(&config.train).map_err(ControlError::Recipe)?;
        let telemetry = Arc::new(Telemetry::new()?);
        let db = Arc::new(StateDb::open(&config.paths.database())?);
        let store = Arc::new(AdapterStore::open(&config.paths.adapters)?);
        let started = Instant::now();
        tracing::info!(model = config.model, "loading the model");
        let loaded = LoadedModel::load(&config.model, &Device::Cpu)?;
        tracing::info!(
            base = &loaded.base_hash[..8],
            layers = loaded.model.spec.layers,
            seconds = started.elapsed().as_secs_f64(),
            training_memory_mb = loaded.model.dense_bytes() >> 20,
            "model loaded; a realignment takes training_memory_mb more for its f32 copy"
        );
        let registry = Arc::new(registry(&store, &loaded));
        let serving = registry.lease_current();
        telemetry
            .metrics()
            .set_initial_generation(&serving.id.0, serving.policy_revision.as_deref());
        tracing::info!(generation = %serving.id, policy_revision = serving.policy_revision, "serving generation");
        let engine = engine::start(
            loaded.model.clone(),
            loaded.tokenizer.clone(),
            engine_config(&config),
        )?;
        let parts = Parts {
            config: config.clone(),
            loaded: loaded.clone(),
            engine: engine.clone(),
            registry: registry.clone(),
            store,
            db,
            telemetry: telemetry.clone(),
        };
        let control = Arc::new(Control::start(parts)?);
        let name = config
            .model_name
            .clone()
            .unwrap_or_else(|| loaded.name.to_string());
        let state = AppState {
            model_name: name.into(),
            compiler: api::Compiler::new(loaded.tokenizer.clone()),
            tokenizer: loaded.tokenizer,
            chat: loaded.chat,
            engine: Arc::new(engine.clone()),
            embeddings: api::Embeddings::new(Arc::new(engine::Embedder::new(loaded.model))),
            moderation: control.clone(),
            registry,
            admin: control.clone(),
            telemetry,
            api_key: config.server.api_key.as_deref().map(Into::into),
            admin_key: config.server.admin_key.as_deref().map(Into::into),
            ready: Arc::new(AtomicBool::new(true)),
            max_body_bytes: config.server.max_body_bytes,
            started_at: api::unix_seconds(),
        };
        Ok(Self {
            config,
            engine,
            control,
            state,
        })
    }

    /// Listens and serves until SIGTERM or SIGINT, then drains: not ready any more, running
    /// requests finish within 30 s, a running realignment is left to be resumed.
    pub async fn run(self) -> Result<(), ServerError> {
        let address = self.config.server.address;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ServerError::Listen { address, source })?;
        let address = listener.local_addr()?;
        tracing::info!(%address, model = &*self.state.model_name, "listening: http://{address}/v1");
        let ready = self.state.ready.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let app = api::router(self.state).into_make_service_with_connect_info::<SocketAddr>();
        let drain = async move {
            terminated().await;
            ready.store(false, Ordering::Release);
            tracing::info!("draining: no new requests are taken");
            // The receiver has gone only if serving has ended already.
            let _ended = stop.send(());
        };
        let serving = axum::serve(listener, app).with_graceful_shutdown(drain);
        tokio::select! {
            result = async { serving.await } => result?,
            () = async { if stopped.await.is_ok() { tokio::time::sleep(DRAIN).await } else { std::future::pending().await } } => {
                tracing::warn!("some requests did not finish in time");
            }
        }
        let (control, engine) = (self.control, self.engine);
        // Both wait for their threads, at most one training step or one forward pass each.
        let ended = tokio::task::spawn_blocking(move || {
            control.shutdown();
            engine.shutdown();
        });
        if let Err(error) = ended.await {
            tracing::error!(%error, "shutdown did not end well");
        }
        Ok(())
    }
}

fn registry(store: &Arc<AdapterStore>, loaded: &LoadedModel) -> Registry {
    let base = Generation {
        id: base_id(&loaded.base_hash),
        base_hash: loaded.base_hash.to_string(),
        policy_revision: None,
        adapter: None,
    };
    let current = initial_generation(store, loaded);
    let (store, model) = (store.clone(), loaded.clone());
    let loader =
        Box::new(move |id: &_| load_generation(&store, &model, id).map_err(|e| e.to_string()));
    let registry = Registry::new(Arc::new(base), LOADED_GENERATIONS).with_loader(loader);
    if current.adapter.is_some() {
        // Nothing serves yet, so the swap without an expectation cannot conflict.
        let _first = registry.swap(Arc::new(current), None);
    }
    registry
}

fn engine_config(config: &Config) -> EngineConfig {
    EngineConfig {
        max_model_len: config.engine.max_model_len,
        max_running: config.engine.max_running,
        max_waiting: config.engine.max_waiting,
        kv_cache_bytes: config.engine.kv_cache_mb << 20,
        step_tokens: config.engine.prefill_budget_tokens,
        threads: match config.engine.threads {
            Some(threads) => threads,
            None => EngineConfig::default().threads,
        },
    }
}

/// Waits for SIGTERM or SIGINT.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be handled; SIGINT can");
            // Without a handler the process ends at once, which is what is left.
            let _interrupted = tokio::signal::ctrl_c().await;
        }
    }
}
