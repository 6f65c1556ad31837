//! Putting the parts together: model, engine, generations, control loop, HTTP.

mod builder;
mod embedding;
mod engines;
mod files;
pub mod gateway;
mod listen;
mod memory;
mod operations;
pub mod preflight;
mod signals;
mod supervisor;
mod threads;
pub mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{self, AppState, Bounds, Cut, CutSignal, LogPort};
use crate::config::admin_key::AdminKeyError;
use crate::config::keys::KeyFileError;
use crate::config::{Address, Config, ConfigError, WeightsPlace};
use crate::control::{Control, ControlError, Member, Parts, initial_generation, load_generation};
use crate::locks::Locks;
use crate::state::{StateDb, StateError};
use crate::telemetry::compliance::DecisionLogError;
pub use builder::ServerBuilder;
use listen::{Connections, Listener, Listening};
use operations::{access, compliance, decision_log, reload, telemetry};
use realign_backend::DeviceError;
use realign_core::ListenerRole as Role;
use realign_core::clock::unix_seconds;
use realign_core::lock::LockError;
use realign_engine::adapter::generation::Generation;
use realign_engine::adapter::{AdapterError, AdapterStore, Registry, base_id};
use realign_engine::merged::PrepareError;
use realign_engine::{EngineError, EngineHandle};
use realign_model::{LoadedModel, ModelError, TimeSlices};
pub use signals::{EXIT_STUCK, keep_hangups};
use supervisor::Supervisor;
pub use threads::Stuck;
use threads::{AlignmentWatch, END_LIMIT, Threads};
use tls::{Tls, TlsError};

/// Why nothing is answered before the store was asked.
const UNCONFIRMED: &str = "the store that servers share (store.url) has not confirmed yet what should serve; \
     requests may name the base or a generation";
/// Generations kept in memory beside the base.
const LOADED_GENERATIONS: usize = 4;
/// How often the end of the running requests is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long requests that are given up have to end.
const GIVE_UP: Duration = Duration::from_secs(2);
/// What a shutdown may take in addition to the limits of its parts.
const SLACK: Duration = Duration::from_secs(5);
/// How long connections have to take what was written to them, once every request has ended.
const FLUSH: Duration = Duration::from_secs(2);

/// Why the server did not start or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process uses the state or the adapter directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The model is unusable.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device that was asked for does not compute.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device has no room for what is configured.
    #[error(transparent)]
    Memory(#[from] realign_model::memory::TooLarge),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What should serve first cannot be loaded into the engine.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The adapter directory is unusable.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The state database is unusable.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store that servers share cannot be opened.
    #[error(transparent)]
    Store(#[from] realign_store::StoreError),
    /// The state of a gateway's rollout is unusable.
    #[error(transparent)]
    Fleet(#[from] realign_fleet::StateError),
    /// The control loop did not start.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The metrics could not be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; choose another with {}",
        choose(address)
    )]
    Listen {
        /// The address.
        address: Address,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The certificate cannot be served.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key file is unusable.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// The operators' key cannot be read or made.
    #[error(transparent)]
    AdminKey(#[from] AdminKeyError),
    /// A key of the configuration is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The decision log cannot be opened.
    #[error(transparent)]
    DecisionLog(#[from] DecisionLogError),
    /// The server has shut down, but for parts that did not stop.
    #[error("the shutdown is not complete: {0}")]
    Stuck(#[from] Stuck),
    /// A listener ended although nothing asked it to.
    #[error("a listener has stopped: {0}")]
    Listener(String),
    /// The system refused a thread or a socket.
    #[error("the server cannot go on: {0}")]
    System(#[from] std::io::Error),
}

/// A server that has loaded everything: it generates, watches its policies and realigns, and its
/// routes can be served. It listens only in [`Server::run`].
///
/// Dropping it ends its threads as [`Server::shutdown`] does, but lets no request finish, and blocks
/// meanwhile.
pub struct Server {
    config: Arc<Config>,
    tls: Option<Arc<Tls>>,
    cut: watch::Sender<Option<Cut>>,
    state: AppState,
    threads: Arc<Threads>,
}

impl Server {
    /// Settings of a server, all at their defaults.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Loads the model, opens state and adapters, starts engine and control loop. Blocks for
    /// seconds; every unusable input is an error here, before a port opens.
    pub fn load(config: Config, logs: Arc<dyn LogPort>) -> Result<Self, ServerError> {
        let config = Arc::new(config);
        // Before anything in the directories is read: another server may be writing them.
        let locks = Locks::take(&config.paths)?;
        // What is quickly found to be unusable is found before the model is loaded.
        let access = Arc::new(access(&config)?);
        let tls = config.server.tls.as_ref().map(Tls::load).transpose()?;
        let decisions = decision_log(&config.compliance)?;
        let telemetry = Arc::new(telemetry(&config)?);
        let db = Arc::new(StateDb::open(&config.paths.database())?);
        let store = AdapterStore::open_locked(&config.paths.adapters, locks.adapters())?;
        let store = Arc::new(store);
        let device = realign_backend::open(config.engine.device)?;
        let kv_bytes = memory::check(&config, &*device)?;
        let started = Instant::now();
        tracing::info!(model = config.model, "loading the model");
        if config.engine.weights_cache == WeightsPlace::Homeless {
            tracing::info!(
                "packed weights are not kept for the next start: the user has no cache directory \
                 (XDG_CACHE_HOME, HOME). Set engine.weights_cache to a directory, or to \"off\""
            );
        }
        let slices = TimeSlices::new(config.train.share, config.train.nice);
        let loaded = LoadedModel::load_sharing(config.model_choice(), &*device, Arc::new(slices))?;
        tracing::info!(
            base = &loaded.base_hash[..8],
            layers = loaded.spec().layers,
            seconds = started.elapsed().as_secs_f64(),
            parameters = loaded.spec().parameters(),
            "model loaded; a realignment learns from the same weights"
        );
        let (registry, fallback) = registry(&store, &loaded);
        let registry = Arc::new(registry);
        let kv_bytes = kv_bytes.unwrap_or_else(|| memory::on_host(&config, loaded.spec()));
        tracing::info!(
            mb = kv_bytes >> 20,
            "memory for keys and values (engine.kv_cache_mb)"
        );
        let engine = engines::start(&config, &loaded, kv_bytes)?;
        let fallback = prepare_first(&engine, &registry, fallback)?;
        let member = Member::open(&config, &loaded, &engine, store.clone())?;
        if member.is_some() {
            registry.withhold(UNCONFIRMED);
        }
        let serving = registry.lease_current();
        telemetry
            .metrics()
            .set_initial_generation(&serving.id.0, serving.policy_revision.as_deref());
        tracing::info!(generation = %serving.id, policy_revision = serving.policy_revision, "serving generation");
        engine.serve(&serving.id);
        let parts = Parts {
            config: config.clone(),
            loaded: loaded.clone(),
            engine: engine.clone(),
            registry: registry.clone(),
            store,
            db,
            telemetry: telemetry.clone(),
            fallback,
            member,
        };
        let control = Arc::new(Control::start(parts)?);
        let compliance = compliance(&config.compliance, &control, decisions, &telemetry)?;
        let alignment = Arc::new(AlignmentWatch::start(control.clone(), telemetry.clone())?);
        let mut vitals = control.vitals();
        vitals.push(alignment.vital());
        vitals.extend(engine.vital());
        vitals.extend(compliance.iter().map(|c| c.vital()));
        vitals.extend(telemetry.exporter().map(|e| e.vital()));
        let (cut, cut_signal) = CutSignal::new();
        let supervisor = Supervisor::start(vitals, control.clone(), cut.clone())?;
        let supervisor = Arc::new(supervisor);
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
            embeddings: api::Embeddings::new(Arc::new(
                realign_engine::Embedder::new(loaded.backend, engine.health().clone())
                    .with_threads(config.engine.threads.unwrap_or_else(cores))
                    .with_precision(config.engine.precision),
            )),
            moderation: control.clone(),
            registry,
            admin: control.clone(),
            telemetry,
            access,
            compliance,
            logs,
            cors_origins: config.server.cors_origins.clone().into(),
            body_timeout: config.server.body_timeout,
            ready: Arc::new(AtomicBool::new(true)),
            closing: watch::Sender::new(false),
            health: supervisor.clone(),
            cut: cut_signal,
            max_body_bytes: config.server.max_body_bytes,
            clamp_max_tokens: config.limits.clamp_max_tokens,
            schema_bounds: Bounds {
                items: config.limits.json_items,
                length: config.limits.json_characters,
            },
            unknown_fields: config.server.unknown_fields,
            tokenizer_info: config.server.tokenizer_info,
            responses: config
                .responses
                .map(|c| Arc::new(api::ResponseStore::new(c))),
            started_at: unix_seconds(),
            connections: Arc::default(),
        };
        let threads = Threads {
            ready: state.ready.clone(),
            alignment,
            supervisor,
            control,
            engine,
            compliance: state.compliance.clone(),
            telemetry: state.telemetry.clone(),
            locks,
        };
        Ok(Self {
            config,
            tls: tls.map(Arc::new),
            cut,
            state,
            threads: Arc::new(threads),
        })
    }

    /// Listens and serves until SIGTERM or SIGINT, then drains: not ready any more, running
    /// requests finish within `server.drain_timeout_s` and are given up with an error after that, a
    /// running realignment is left to be resumed. Probes are answered until the end, so that load
    /// balancers see it.
    ///
    /// A second signal ends the process at once, with exit code 128 + its number. A shutdown that
    /// exceeds its limits ends the process with [`EXIT_STUCK`].
    ///
    /// # Errors
    /// [`ServerError::Stuck`] if parts did not stop within their limits; the process should exit.
    pub async fn run(self) -> Result<(), ServerError> {
        let hangups = signals::hangups();
        let mut terminated = signals::terminations(self.shutdown_limit())?;
        let mut serving = self.listen().await?;
        let reload = tokio::spawn(reload(
            hangups,
            self.config.clone(),
            self.threads.control.clone(),
            self.state.access.clone(),
            self.tls.clone(),
        ));
        let failed = tokio::select! {
            _ = terminated.wait_for(|terminated| *terminated) => None,
            ended = serving.join_next() => Some(ended),
        };
        self.drain().await;
        self.state.closing.send_replace(true);
        let flushed = async { while serving.join_next().await.is_some() {} };
        if tokio::time::timeout(FLUSH, flushed).await.is_err() {
            tracing::debug!("connections were cut off");
        }
        drop(serving);
        reload.abort();
        self.end().await?;
        match failed {
            None => Ok(()),
            Some(Some(Err(error))) => Err(ServerError::Listener(error.to_string())),
            Some(_) => Err(ServerError::Listener("it returned".into())),
        }
    }

    /// The longest that a shutdown may take.
    fn shutdown_limit(&self) -> Duration {
        let drain = self.config.server.drain_timeout;
        drain.saturating_add(GIVE_UP + FLUSH + END_LIMIT + SLACK)
    }

    /// Serves all listeners, until the server closes.
    async fn listen(&self) -> Result<JoinSet<()>, ServerError> {
        let limits = &self.config.limits;
        let operators = self.config.server.admin_address.as_ref();
        let operators = operators.map_or(0, |_| limits.max_admin_connections);
        let clients = files::connections(limits.max_connections, operators);
        let mut serving = JoinSet::new();
        let listeners = self.listeners().await?;
        for (listener, what, app) in listeners {
            let address = listener.address()?;
            let url = listener.url(&address, self.tls.is_some());
            let most = match what {
                Role::Clients => {
                    self.threads.locks.listening(&address.to_string());
                    tracing::info!(%address, model = &*self.state.model_name, "listening: {url}v1");
                    clients
                }
                Role::Operators if self.config.clients => {
                    tracing::info!(%address, "operators: {url}");
                    operators
                }
                Role::Operators => {
                    self.threads.locks.listening(&address.to_string());
                    tracing::info!(%address, "operators: {url} (realign control: no clients are served)");
                    files::connections(limits.max_admin_connections, 0)
                }
            };
            serving.spawn(self.listening(what, most).serve(listener, app));
        }
        Ok(serving)
    }

    fn listening(&self, whose: Role, most: usize) -> Listening {
        let open = Arc::clone(&self.state.connections);
        let connections = Connections::new(whose, most, self.state.telemetry.clone(), open);
        let closing = self.state.closing.subscribe();
        Listening::new(&self.config.server, self.tls.clone(), connections, closing)
    }

    /// Clients and operators on one listener, or on one each; without clients, operators alone.
    async fn listeners(&self) -> Result<Vec<(Listener, Role, Router)>, ServerError> {
        let server = &self.config.server;
        let state = || self.state.clone();
        if !self.config.clients {
            let address = server.admin_address.as_ref().unwrap_or(&server.address);
            let app = api::control_router(state());
            return Ok(vec![(bind(address).await?, Role::Operators, app)]);
        }
        let clients = bind(&server.address).await?;
        Ok(match &server.admin_address {
            None => vec![(clients, Role::Clients, api::router(state()))],
            Some(address) => vec![
                (
                    bind(address).await?,
                    Role::Operators,
                    api::operator_router(state()),
                ),
                (clients, Role::Clients, api::client_router(state())),
            ],
        })
    }

    /// Takes no more work and waits for what runs, as long as it may take; what is left then is given
    /// up with an error.
    async fn drain(&self) {
        self.state.ready.store(false, Ordering::Release);
        let running = || self.state.access.running();
        tracing::info!(running = running(), "draining: no new requests are taken");
        if !self.is_idle_within(self.config.server.drain_timeout).await {
            tracing::warn!(running = running(), "some requests did not finish in time");
        }
        self.cut.send_replace(Some(Cut::Draining));
        if !self.is_idle_within(GIVE_UP).await {
            tracing::warn!(running = running(), "some requests could not be ended");
        }
    }

    /// Waits until no request runs; false if some still do at the end of `limit`.
    async fn is_idle_within(&self, limit: Duration) -> bool {
        let idle = async {
            while self.state.access.running() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(limit, idle).await.is_ok()
    }

    async fn end(&self) -> Result<(), Stuck> {
        let (told, ended) = tokio::sync::oneshot::channel();
        let threads = self.threads.clone();
        let run = move || {
            let _nobody_waits = told.send(threads.end());
        };
        let spawned = std::thread::Builder::new().name("ending".into()).spawn(run);
        match spawned {
            Ok(_) => ended.await.unwrap_or_else(|_| {
                tracing::error!("shutdown did not end well");
                Ok(())
            }),
            // Without another thread, this one.
            Err(_) => self.threads.end(),
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("model_name", &self.state.model_name)
            .finish_non_exhaustive()
    }
}

async fn bind(address: &Address) -> Result<Listener, ServerError> {
    let listener = Listener::bind(address).await;
    listener.map_err(|source| ServerError::Listen {
        address: address.clone(),
        source,
    })
}

/// The settings that choose an address.
fn choose(address: &Address) -> &'static str {
    match address {
        Address::Tcp(_) => "--port or server.port",
        Address::Unix(_) => "--host or server.host",
    }
}

/// The generations in memory, and why what should serve does not, if so.
fn registry(store: &Arc<AdapterStore>, loaded: &LoadedModel) -> (Registry, Option<String>) {
    let base = Generation {
        id: base_id(&loaded.base_hash),
        base_hash: loaded.base_hash.to_string(),
        policy_revision: None,
        adapter: None,
    };
    let (current, fallback) = initial_generation(store, loaded);
    let (store, model) = (store.clone(), loaded.clone());
    let loader = Box::new(move |id: &_| load_generation(&store, &model, id));
    let registry = Registry::new(Arc::new(base), LOADED_GENERATIONS).with_loader(loader);
    if current.adapter.is_some() {
        // Nothing serves yet, so the swap without an expectation cannot conflict.
        let _first = registry.swap(Arc::new(current), None);
    }
    (registry, fallback)
}

/// Prepares what serves first. Where the engine cannot serve an adapter, the base serves. Returns why
/// what should serve does not, if so.
fn prepare_first(
    engine: &EngineHandle,
    registry: &Registry,
    fallback: Option<String>,
) -> Result<Option<String>, PrepareError> {
    let serving = registry.lease_current();
    let Err(error) = engine.prepare(&serving, &|_| true) else {
        return Ok(fallback);
    };
    let base = registry.base().clone();
    if serving.id == base.id {
        return Err(error);
    }
    tracing::error!(%error, "the current generation is unusable: the base model serves");
    engine.prepare(&base, &|_| true)?;
    // Nothing serves yet, so the swap without an expectation cannot conflict.
    let _first = registry.swap(base, None);
    Ok(Some(error.to_string()))
}

/// The processor's cores, as far as that can be told.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
