//! What a realignment and the operator API share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::alignment::Board;
use super::error::ControlError;
use super::fleet::{Member, SharedFile};
use super::live::Live;
use super::pointer::{CurrentFile, Pointer};
use super::supervised::LONGEST_EVENT;
use crate::config::Config;
use crate::state::{Act, Activation, StateDb, StateError};
use crate::telemetry::event::PolicyRevision;
use crate::telemetry::{Event, Outcome, Telemetry};
use realign_align::oracle::{FeatureSource, Matchers, Prepared, RuleTrust};
use realign_align::pipeline::Inputs;
use realign_align::policy::PolicySet;
use realign_align::preferences::DatasetError;
use realign_align::train::Recipe;
use realign_align::train::choices::ModelSize;
use realign_core::clock::unix_seconds;
use realign_core::supervision::Vital;
use realign_core::{Thread, Trigger};
use realign_engine::EngineHandle;
use realign_engine::adapter::generation::{Generation, GenerationId, StagedAdapter};
use realign_engine::adapter::{AdapterError, AdapterStore, Registry, base_id, validate};
use realign_model::LoadedModel;

/// What the control loop is built from.
pub struct Parts {
    /// The resolved configuration.
    pub(crate) config: Arc<Config>,
    /// The base model.
    pub(crate) loaded: LoadedModel,
    /// The serving engine, which also answers the gate's prompts.
    pub(crate) engine: EngineHandle,
    /// The generations in memory.
    pub(crate) registry: Arc<Registry>,
    /// The generations on disk.
    pub(crate) store: Arc<AdapterStore>,
    /// Jobs, verdicts, scores.
    pub(crate) db: Arc<StateDb>,
    /// Events to logs and metrics.
    pub(crate) telemetry: Arc<Telemetry>,
    /// Why the generation that `CURRENT` names does not serve, if it does not.
    pub(crate) fallback: Option<String>,
    /// This server's part in a store that several share, if it has one.
    pub(crate) member: Option<Arc<Member>>,
}

/// [`Parts`] plus what the loop decides.
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) loaded: LoadedModel,
    pub(crate) engine: EngineHandle,
    pub(crate) registry: Arc<Registry>,
    pub(crate) store: Arc<AdapterStore>,
    pub(crate) db: Arc<StateDb>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) recipe: Recipe,
    /// Hidden states of the base model, once a probe has asked for them.
    pub(crate) features: Mutex<Option<Arc<dyn FeatureSource>>>,
    /// What the exams said.
    pub(super) board: Mutex<Board>,
    /// How live answers comply, and recent prompts.
    pub(super) live: Live,
    /// What serves.
    pub(super) pointer: Pointer,
    /// This server's part in a store that several share, if it has one.
    pub(super) member: Option<Arc<Member>>,
    /// Whether the first look at the policies has ended, with nothing that was ever accepted.
    pub(super) has_looked: AtomicBool,
    /// Set when the server shuts down: what is asked of others is given up.
    pub(super) closing: Arc<AtomicBool>,
    /// Whether a request to read the policies again waits for the loop.
    pub(super) reload_waits: AtomicBool,
    /// The signs of life of the loop.
    pub(super) vital: Arc<Vital>,
    policies: RwLock<Active>,
}

/// The active policy set, and why the last look at the directory was refused, if it was.
#[derive(Clone, Default)]
pub(crate) struct Active {
    pub(crate) set: Arc<PolicySet>,
    /// Its probes and judges.
    pub(crate) matchers: Arc<Matchers>,
    /// How its rules did on their examples.
    pub(crate) trust: Vec<RuleTrust>,
    /// What its `dryrun` policies say about the data, if it has any.
    pub(crate) dryrun: Option<serde_json::Value>,
    /// Whether a set was ever activated.
    pub(crate) loaded: bool,
    /// Why the last look at the directory was refused, if it was.
    pub(crate) refused: Option<String>,
}

impl Context {
    pub(crate) fn new(parts: Parts) -> Result<Self, ControlError> {
        let size = ModelSize::from(parts.loaded.spec());
        let recipe = parts.config.train.recipe(size).clone();
        recipe.check_layers(parts.loaded.spec().layers)?;
        let Parts {
            config,
            loaded,
            engine,
            registry,
            store,
            db,
            telemetry,
            fallback,
            member,
        } = parts;
        let file: Arc<dyn CurrentFile> = match &member {
            None => store.clone(),
            Some(member) => Arc::new(SharedFile {
                member: member.clone(),
                local: store.clone(),
            }),
        };
        let pointer = Pointer::new(registry.clone(), db.clone(), file, fallback);
        let live = Live::new(config.exam.live_prompts, config.drift);
        Ok(Self {
            config,
            loaded,
            engine,
            registry,
            store,
            db,
            telemetry,
            recipe,
            features: Mutex::default(),
            board: Mutex::default(),
            live,
            pointer,
            member,
            has_looked: AtomicBool::new(false),
            closing: Arc::default(),
            reload_waits: AtomicBool::new(false),
            vital: Arc::new(Vital::new(Thread::Control, LONGEST_EVENT)),
            policies: RwLock::default(),
        })
    }

    /// What a realignment to a set would be a function of.
    pub(super) fn inputs(&self, policies: &PolicySet) -> Result<Inputs, DatasetError> {
        let inputs = super::inputs(&self.config, &self.loaded.base_hash, policies, &self.recipe)?;
        self.emit(Event::DataRead {
            pairs: inputs.dataset.pairs.len(),
            refused: inputs.dataset.skipped.len(),
            not_read: inputs.dataset.unread.len(),
        });
        Ok(inputs)
    }

    pub(crate) fn emit(&self, event: Event) {
        self.telemetry.emit(event);
    }

    /// The active policy set.
    pub(crate) fn policies(&self) -> Arc<PolicySet> {
        self.active().set
    }

    /// The active policy set with what its rules may ask.
    pub(crate) fn active(&self) -> Active {
        self.policies
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why the policy directory as it is now was refused; `None` if it is active.
    pub(crate) fn refused(&self) -> Option<String> {
        self.policies
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .refused
            .clone()
    }

    pub(crate) fn activate_policies(&self, set: PolicySet, prepared: Prepared) {
        let policies = set.policies().iter();
        let policies = policies
            .map(|p| PolicyRevision {
                policy: p.id.clone(),
                revision: p.version.clone(),
            })
            .collect();
        self.emit(Event::PolicyReloaded {
            revision: set.revision().into(),
            policies,
        });
        *self
            .policies
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Active {
            set: Arc::new(set),
            matchers: prepared.matchers,
            trust: prepared.trust,
            dryrun: None,
            loaded: true,
            refused: None,
        };
    }

    /// Recent prompts of clients, where the operator allows keeping them.
    pub(super) fn live_prompts(&self) -> Vec<String> {
        self.live.prompts()
    }

    /// Keeps what the `dryrun` policies of a set say, for the operator to see, while it is active.
    pub(super) fn keep_dryrun(&self, set: &Arc<PolicySet>, report: Option<serde_json::Value>) {
        let mut active = self
            .policies
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&active.set, set) {
            active.dryrun = report;
        }
    }

    pub(crate) fn refuse_policies(&self, error: String) {
        self.policies
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .refused = Some(error.clone());
        self.emit(Event::PolicyReloadFailed { error });
    }

    /// Whether the newest realignment had these inputs and ended for good. Where an operator replaced
    /// what it led to and let go of that since, it is due again.
    pub(crate) fn has_ended(&self, inputs_hash: &str) -> bool {
        let newest = self
            .log(self.db.realignments(1))
            .unwrap_or_default()
            .into_iter()
            .next();
        newest.is_some_and(|row| {
            // A refused candidate may pass a gate whose settings have changed since.
            let settled = matches!(row.outcome, Some(Outcome::Succeeded | Outcome::NoConflict));
            let serving = self.registry.lease_current().id.clone();
            let serves = row.generation.is_some_and(|id| id == serving.0);
            row.inputs_hash == inputs_hash && settled && (serves || !self.was_let_go())
        })
    }

    /// Whether what serves is an operator's choice that is pinned no more.
    fn was_let_go(&self) -> bool {
        let newest = self.log(self.db.activations(1)).unwrap_or_default();
        let by_operator = |row: &Activation| matches!(row.act, Act::Activate | Act::Rollback);
        self.pinned().is_none() && newest.first().is_some_and(by_operator)
    }

    /// Records how a realignment ended (the generation it led to, and what an operator should know),
    /// in the database, the log and the metrics. False if the database cannot be written.
    pub(crate) fn finish(
        &self,
        id: &str,
        outcome: Outcome,
        (generation, detail): (Option<String>, Option<String>),
        (trigger, took): (Trigger, Duration),
    ) -> bool {
        let result = (generation.as_deref(), detail.as_deref());
        let written = self.log(
            self.db
                .finish_realignment(id, outcome, result, unix_seconds()),
        );
        self.emit(Event::RealignmentFinished {
            id: id.into(),
            outcome,
            trigger: Some(trigger),
            generation,
            detail,
            took,
        });
        written.is_some()
    }

    /// State that cannot be written costs a repetition later, never the server.
    pub(crate) fn log<T>(&self, result: Result<T, StateError>) -> Option<T> {
        result
            .inspect_err(|error| tracing::error!(%error, "the state database failed"))
            .ok()
    }

    /// Whether the server shuts down.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether this server only serves what a store names.
    pub(crate) fn follows(&self) -> bool {
        self.member.as_ref().is_some_and(|member| member.follows())
    }

    /// Why no realignment may begin here, if what it led to could not be published.
    pub(super) fn may_not_realign(&self) -> Option<String> {
        self.member.as_ref()?.may_not_realign()
    }

    /// A generation from the store, on the serving device.
    pub(super) fn load_generation(&self, id: &GenerationId) -> Result<Generation, AdapterError> {
        load_generation(&self.store, &self.loaded, id)
    }
}

/// Reads and validates a stored generation; the base model's own id gives the base.
pub fn load_generation(
    store: &AdapterStore,
    loaded: &LoadedModel,
    id: &GenerationId,
) -> Result<Generation, AdapterError> {
    let base_hash = loaded.base_hash.to_string();
    if *id == base_id(&base_hash) {
        return Ok(Generation {
            id: id.clone(),
            base_hash,
            policy_revision: None,
            adapter: None,
        });
    }
    let stored = store.load(id, &base_hash)?;
    let spec = loaded.spec();
    validate(&stored.weights, &|site| spec.site_shape(site))?;
    Ok(Generation {
        id: id.clone(),
        base_hash,
        policy_revision: stored.manifest.policy_revision,
        adapter: Some(StagedAdapter::new(&*loaded.backend, stored.weights)?),
    })
}

/// What serves first: the generation that `CURRENT` names, or the base if there is none or it
/// cannot be used, with the reason.
pub fn initial_generation(
    store: &AdapterStore,
    loaded: &LoadedModel,
) -> (Generation, Option<String>) {
    let base = Generation {
        id: base_id(&loaded.base_hash),
        base_hash: loaded.base_hash.to_string(),
        policy_revision: None,
        adapter: None,
    };
    first(base, store.current(), |id| {
        load_generation(store, loaded, id)
    })
}

/// As [`initial_generation`], from what `CURRENT` names.
pub(super) fn first(
    base: Generation,
    named: Result<Option<GenerationId>, AdapterError>,
    load: impl FnOnce(&GenerationId) -> Result<Generation, AdapterError>,
) -> (Generation, Option<String>) {
    let id = match named {
        Ok(None) => return (base, None),
        Ok(Some(id)) => id,
        Err(error) => {
            tracing::error!(%error, "CURRENT is unreadable: the base model serves");
            return (base, Some(format!("CURRENT is unreadable: {error}")));
        }
    };
    match load(&id) {
        Ok(generation) => (generation, None),
        Err(error) => {
            tracing::error!(%error, generation = %id, "the current generation is unusable: the base model serves");
            let why = format!("generation {id}, which should serve, cannot be used: {error}");
            (base, Some(why))
        }
    }
}
