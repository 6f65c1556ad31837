//! `realign gateway`: one address in front of engines that serve the same generation.
//!
//! A request leases a generation, goes to the least busy target that answers by it, and comes back as
//! it arrives. The rollout that moves all targets to the next generation runs in the same process, so
//! what serves is one pointer: no answer mixes generations.

mod client;
mod desk;
mod endpoints;
mod judge;
mod operators;
mod outcome;
mod proxy;
mod scan;
mod source;
mod status;
mod upload;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use realign_core::ListenerRole;
use realign_core::lock::{DirLock, Holder};
use realign_engine::adapter::AdapterStore;
use realign_fleet::{Event, Runner, Settings, StateFile, TargetId};
use realign_store::Store;
use tokio::sync::watch;

use super::listen::{Connections, Listening};
use super::operations::{self, access};
use super::tls::Tls;
use super::{FLUSH, GIVE_UP, LOOK, SLACK, ServerError, bind, files, signals};
use crate::api::Access;
use crate::config::{Config, ConfigError, FleetConfig};
use crate::state::state_place;
use crate::telemetry::Telemetry;
use desk::Desk;
use endpoints::Endpoint;
use judge::Judge;
use proxy::Limits;
use source::Source;

/// How long a gateway waits for another one that ends.
const MOMENT: Duration = Duration::from_secs(2);
/// Time between two looks at the addresses of names.
const RESOLVE: Duration = Duration::from_secs(5);

/// Routes that are passed on. All of them name a `model` in a JSON body.
const PASSED_ON: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
];

/// A gateway that has read its state. It listens only in [`GatewayServer::run`].
pub struct GatewayServer {
    config: Arc<Config>,
    tls: Option<Arc<Tls>>,
    gateway: Arc<Gateway>,
    source: Arc<Source>,
    _lock: DirLock,
}

/// What requests share.
struct Gateway {
    /// The served name.
    name: Arc<str>,
    fleet: FleetConfig,
    desk: Arc<Desk>,
    runner: Runner,
    access: Arc<Access>,
    telemetry: Arc<Telemetry>,
    limits: Limits,
    endpoints: Arc<Mutex<HashMap<TargetId, Endpoint>>>,
    /// Judges answers that have passed, if there is one.
    judge: Option<Judge>,
    open: AtomicBool,
    /// Requests without a key, counted: what such a request gets is drawn by it.
    unkeyed: AtomicU64,
    /// Why it is not known what should serve, or where targets are, if so.
    problems: Mutex<Problems>,
}

#[derive(Clone, Debug, Default)]
struct Problems {
    source: Option<String>,
    names: Option<String>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GatewayServer {
    /// Reads the state and looks for the targets. What should serve is looked at in
    /// [`GatewayServer::run`].
    ///
    /// # Errors
    /// Everything unusable, before a port opens.
    pub fn load(config: Config) -> Result<Self, ServerError> {
        let wrong = |key, allowed| ConfigError::Value {
            key,
            value: "missing".into(),
            allowed,
        };
        let fleet = config.fleet.clone().ok_or(wrong(
            "fleet.targets",
            "a gateway needs at least one: targets = [{ kind = \"vllm\", url = \"http://HOST:PORT\" }]",
        ))?;
        let name: Arc<str> = config
            .model_name
            .clone()
            .ok_or(wrong(
                "model_name",
                "a gateway loads no model: set the name that clients ask for",
            ))?
            .into();
        for target in &fleet.targets {
            target.keys()?;
        }
        let dir = config.paths.state.join("gateway");
        let holder = Holder::this_process(None);
        let dir_lock = DirLock::take(state_place(&dir), &holder, MOMENT)?;
        let access = Arc::new(access(&config)?);
        let tls = config.server.tls.as_ref().map(Tls::load).transpose()?;
        let telemetry = Arc::new(operations::telemetry(&config)?);
        let adapters = AdapterStore::open(&config.paths.adapters)?;
        let source = match &config.store {
            None => Source::Directory(adapters),
            Some(store) => Source::Store(Store::open(&store.url)?, adapters),
        };
        let desk = Arc::new(Desk::default());
        let endpoints: Arc<Mutex<HashMap<TargetId, Endpoint>>> = Arc::default();
        let (shown, heard, known) = (desk.clone(), desk.clone(), endpoints.clone());
        let runner = Runner::start(Settings {
            rules: fleet.rules(&name),
            file: StateFile::new(dir.join("fleet.json")),
            connect: Box::new(move |id| endpoints::connect(&lock(&known), id)),
            show: Box::new(move |view| shown.show(view)),
            hear: Box::new(move || heard.hear()),
        })?;
        let limits = Limits {
            max_body_bytes: config.server.max_body_bytes,
            body_timeout: config.server.body_timeout,
            max_request: fleet.max_request,
        };
        let judge = match &fleet.judge {
            None => None,
            Some(judge) => {
                let parts = (desk.clone(), telemetry.clone());
                Some(Judge::start(judge, judge.key()?, parts)?)
            }
        };
        let gateway = Gateway {
            name,
            judge,
            fleet,
            desk,
            runner,
            access,
            telemetry,
            limits,
            endpoints,
            open: AtomicBool::new(true),
            unkeyed: AtomicU64::new(0),
            problems: Mutex::default(),
        };
        Ok(Self {
            config: Arc::new(config),
            tls: tls.map(Arc::new),
            gateway: Arc::new(gateway),
            source: Arc::new(source),
            _lock: dir_lock,
        })
    }

    /// Listens and serves until SIGTERM or SIGINT; then takes no more requests, and lets those that
    /// run end within `server.drain_timeout_s`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn run(self) -> Result<(), ServerError> {
        let drain = self.config.server.drain_timeout;
        let limit = drain.saturating_add(GIVE_UP + FLUSH + SLACK);
        let mut terminated = signals::terminations(limit)?;
        let closing = watch::Sender::new(false);
        let mut serving = self.listen(&closing).await?;
        let looks = [
            tokio::spawn(resolve(self.gateway.clone())),
            tokio::spawn(follow(self.gateway.clone(), self.source.clone())),
        ];
        let failed = tokio::select! {
            _ = terminated.wait_for(|terminated| *terminated) => false,
            _ = serving.join_next() => true,
        };
        self.gateway.open.store(false, Ordering::Release);
        let running = || self.gateway.access.running();
        tracing::info!(running = running(), "draining: no new requests are taken");
        let idle = async {
            while running() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(drain, idle).await.is_err() {
            tracing::warn!(running = running(), "some requests did not finish in time");
        }
        closing.send_replace(true);
        let flushed = async { while serving.join_next().await.is_some() {} };
        if tokio::time::timeout(FLUSH, flushed).await.is_err() {
            tracing::debug!("connections were cut off");
        }
        looks.iter().for_each(tokio::task::JoinHandle::abort);
        match failed {
            false => Ok(()),
            true => Err(ServerError::Listener("it returned".into())),
        }
    }

    async fn listen(
        &self,
        closing: &watch::Sender<bool>,
    ) -> Result<tokio::task::JoinSet<()>, ServerError> {
        let server = &self.config.server;
        let limits = &self.config.limits;
        let operators = server.admin_address.as_ref();
        let of_operators = operators.map_or(0, |_| limits.max_admin_connections);
        // Every request has two connections.
        let wanted = limits.max_connections.saturating_mul(2);
        let of_clients = files::connections(wanted, of_operators) / 2;
        let mut serving = tokio::task::JoinSet::new();
        let clients = bind(&server.address).await?;
        let address = clients.address()?;
        let url = clients.url(&address, self.tls.is_some());
        tracing::info!(%address, model = &*self.gateway.name, "listening: {url}v1");
        let with_operators = operators.is_none();
        let app = self.gateway.router(true, with_operators);
        let listening = self.listening(ListenerRole::Clients, of_clients.max(1), closing);
        serving.spawn(listening.serve(clients, app));
        if let Some(address) = operators {
            let listener = bind(address).await?;
            let address = listener.address()?;
            let url = listener.url(&address, self.tls.is_some());
            tracing::info!(%address, "operators: {url}");
            let app = self.gateway.router(false, true);
            let listening = self.listening(ListenerRole::Operators, of_operators, closing);
            serving.spawn(listening.serve(listener, app));
        }
        Ok(serving)
    }

    fn listening(
        &self,
        whose: ListenerRole,
        most: usize,
        closing: &watch::Sender<bool>,
    ) -> Listening {
        let telemetry = self.gateway.telemetry.clone();
        let connections = Connections::new(whose, most, telemetry, Arc::default());
        Listening::new(
            &self.config.server,
            self.tls.clone(),
            connections,
            closing.subscribe(),
        )
    }
}

impl std::fmt::Debug for GatewayServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayServer")
            .field("name", &self.gateway.name)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Whether requests are taken.
    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn endpoint(&self, target: &TargetId) -> Option<Endpoint> {
        lock(&self.endpoints).get(target).cloned()
    }

    fn router(self: &Arc<Self>, clients: bool, operators: bool) -> Router {
        let mut router = Router::new()
            .route("/health", get(status::health))
            .route("/ready", get(status::ready));
        if clients {
            router = router
                .route("/v1/models", get(status::models))
                .route("/v1/models/{*id}", get(status::model));
            for path in PASSED_ON {
                router = router.route(path, post(proxy::proxy));
            }
        }
        if operators {
            router = router
                .route("/metrics", get(status::metrics))
                .route("/admin/v1/fleet", get(status::fleet))
                .route("/admin/v1/fleet/verdicts", post(operators::verdicts))
                .route("/admin/v1/fleet/{command}", post(operators::order));
        }
        router.fallback(status::not_found).with_state(self.clone())
    }
}

/// Looks again and again at which targets there are.
async fn resolve(gateway: Arc<Gateway>) {
    loop {
        let own = gateway.clone();
        let looked = tokio::task::spawn_blocking(move || {
            // Not under the lock: looking a name up may take long.
            let before = lock(&own.endpoints).clone();
            let (found, problem) = endpoints::find(&own.fleet.targets, &before);
            let ids: BTreeSet<TargetId> = found.keys().cloned().collect();
            let is_new = ids != before.keys().cloned().collect();
            *lock(&own.endpoints) = found;
            lock(&own.problems).names = problem;
            if is_new {
                tracing::info!(targets = ids.len(), "the targets are others than before");
                own.runner.deliver(Event::Targets(ids));
            }
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "the look-up of targets failed");
        }
        tokio::time::sleep(RESOLVE).await;
    }
}

/// Looks again and again at what should serve.
async fn follow(gateway: Arc<Gateway>, source: Arc<Source>) {
    loop {
        let (own, source) = (gateway.clone(), source.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let seen = source.look(&own.runner.durable());
            let problem = match seen {
                Ok(Some(release)) => {
                    own.runner.deliver(Event::Desired(release));
                    None
                }
                Ok(None) => Some("no controller has published anything into the store yet".into()),
                Err(why) => Some(why),
            };
            let mut problems = lock(&own.problems);
            if problems.source != problem
                && let Some(why) = &problem
            {
                tracing::error!(why, "it is not known what should serve; what serves stays");
            }
            problems.source = problem;
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "the look at what should serve failed");
        }
        tokio::time::sleep(gateway.fleet.poll).await;
    }
}
