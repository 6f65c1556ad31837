//! Putting the parts together: model, engine, generations, control loop, HTTP.

mod builder;
mod embedding;
mod engines;
mod listen;
mod memory;
mod operations;
mod signals;
mod threads;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::{self, AppState, LogPort};
use crate::config::admin_key::AdminKeyError;
use crate::config::keys::KeyFileError;
use crate::config::{Config, ConfigError};
use crate::control::{Control, ControlError, Parts, initial_generation, load_generation};
use crate::state::{StateDb, StateError};
use crate::telemetry::compliance::DecisionLogError;
pub use builder::ServerBuilder;
use listen::{Connections, Listening, Timeouts};
use operations::{access, compliance, decision_log, reload, telemetry};
use realign_backend::DeviceError;
use realign_core::clock::unix_seconds;
use realign_engine::EngineError;
use realign_engine::adapter::generation::Generation;
use realign_engine::adapter::{AdapterError, AdapterStore, Registry, base_id};
use realign_engine::merged::PrepareError;
use realign_model::{LoadedModel, ModelError, TimeSlices};
use threads::{AlignmentWatch, Threads};
use tls::{Tls, TlsError};

/// Generations kept in memory beside the base.
const LOADED_GENERATIONS: usize = 4;
/// How often the end of the running requests is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long connections have to take what was written to them, once every request has ended.
const FLUSH: Duration = Duration::from_secs(2);

/// Why the server did not start or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
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
        // What is quickly found to be unusable is found before the model is loaded.
        let access = Arc::new(access(&config)?);
        let tls = config.server.tls.as_ref().map(Tls::load).transpose()?;
        let decisions = decision_log(&config.compliance)?;
        let telemetry = Arc::new(telemetry(&config)?);
        let db = Arc::new(StateDb::open(&config.paths.database())?);
        let store = Arc::new(AdapterStore::open(&config.paths.adapters)?);
        let device = realign_backend::open(config.engine.device)?;
        memory::check(&config, &*device)?;
        let started = Instant::now();
        tracing::info!(model = config.model, "loading the model");
        let slices = TimeSlices::new(config.train.share);
        let loaded = LoadedModel::load_sharing(&config.model, &*device, Arc::new(slices))?;
        tracing::info!(
            base = &loaded.base_hash[..8],
            layers = loaded.spec().layers,
            seconds = started.elapsed().as_secs_f64(),
            parameters = loaded.spec().parameters(),
            "model loaded; a realignment learns from the same weights"
        );
        let (registry, fallback) = registry(&store, &loaded);
        let registry = Arc::new(registry);
        let serving = registry.lease_current();
        telemetry
            .metrics()
            .set_initial_generation(&serving.id.0, serving.policy_revision.as_deref());
        tracing::info!(generation = %serving.id, policy_revision = serving.policy_revision, "serving generation");
        let engine = engines::start(&config, &loaded)?;
        engine.prepare(&serving, &|_| true)?;
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
        };
        let control = Arc::new(Control::start(parts)?);
        let compliance = compliance(&config.compliance, &control, decisions, &telemetry)?;
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
            embeddings: api::Embeddings::new(Arc::new(realign_engine::Embedder::new(
                loaded.backend,
            ))),
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
            max_body_bytes: config.server.max_body_bytes,
            started_at: unix_seconds(),
        };
        let threads = Threads {
            ready: state.ready.clone(),
            alignment: AlignmentWatch::start(control.clone(), state.telemetry.clone())?,
            control,
            engine,
            compliance: state.compliance.clone(),
            telemetry: state.telemetry.clone(),
        };
        Ok(Self {
            config,
            tls: tls.map(Arc::new),
            state,
            threads: Arc::new(threads),
        })
    }

    /// Listens and serves until SIGTERM or SIGINT, then drains: not ready any more, running
    /// requests finish within `server.drain_timeout_s`, a running realignment is left to be
    /// resumed. Probes are answered until the end, so that load balancers see it.
    pub async fn run(self) -> Result<(), ServerError> {
        let hangups = signals::hangups();
        let mut serving = tokio::task::JoinSet::new();
        let listeners = self.listeners().await?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        for (listener, what, app) in listeners {
            let address = listener.local_addr()?;
            match what {
                Role::Clients => {
                    tracing::info!(%address, model = &*self.state.model_name, "listening: {scheme}://{address}/v1");
                }
                Role::Operators => {
                    tracing::info!(%address, "operators: {scheme}://{address}/");
                }
            }
            serving.spawn(self.listening(what).serve(listener, app));
        }
        let reload = tokio::spawn(reload(
            hangups,
            self.config.clone(),
            self.threads.control.clone(),
            self.state.access.clone(),
            self.tls.clone(),
        ));
        signals::terminated().await;
        self.drain().await;
        self.state.closing.send_replace(true);
        let flushed = async { while serving.join_next().await.is_some() {} };
        if tokio::time::timeout(FLUSH, flushed).await.is_err() {
            tracing::debug!("connections were cut off");
        }
        drop(serving);
        reload.abort();
        self.end().await;
        Ok(())
    }

    /// How a listener serves. Each has connections of its own, so that clients cannot take those of
    /// operators and their probes.
    fn listening(&self, role: Role) -> Listening {
        let (server, limits) = (&self.config.server, &self.config.limits);
        let most = match role {
            Role::Clients => limits.max_connections,
            Role::Operators => limits.max_admin_connections,
        };
        Listening {
            timeouts: Timeouts {
                header: server.header_timeout,
                write: server.write_timeout,
            },
            tls: self.tls.clone(),
            connections: Arc::new(Connections::new(most)),
            closing: self.state.closing.subscribe(),
        }
    }

    /// Clients and operators on one listener, or on one each.
    async fn listeners(&self) -> Result<Vec<(TcpListener, Role, Router)>, ServerError> {
        let server = &self.config.server;
        let clients = bind(server.address).await?;
        let state = || self.state.clone();
        Ok(match server.admin_address {
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

    /// Takes no more work and waits for what runs, as long as it may take.
    async fn drain(&self) {
        self.state.ready.store(false, Ordering::Release);
        let running = || self.state.access.running();
        tracing::info!(running = running(), "draining: no new requests are taken");
        let until = Instant::now() + self.config.server.drain_timeout;
        while running() > 0 {
            if Instant::now() >= until {
                tracing::warn!(running = running(), "some requests did not finish in time");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn end(&self) {
        let threads = self.threads.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || threads.end()).await {
            tracing::error!(%error, "shutdown did not end well");
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

/// Who a listener is for.
#[derive(Clone, Copy)]
enum Role {
    Clients,
    Operators,
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServerError::Listen { address, source })
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
