//! `realign gather`: the pairs that a server would make itself, as preference data.

use std::cell::RefCell;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use indicatif::ProgressBar;

use super::progress::Progress;
use super::{
    CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs, oracle, require, require_absent,
};
use realign_align::exam::{self, ExamCache, MemoryExamCache, Standing};
use realign_align::gather::{self, Gathered, ModelSpeaker, Phase, Sources};
use realign_align::oracle::{RuleOracle, prepare_trusted};
use realign_align::pipeline::{Corrector, Inputs};
use realign_align::policy::PolicySet;
use realign_align::train::choices::ModelSize;
use realign_align::triage::{Triage, triage_cached};
use realign_engine::adapter::base_id;
use realign_engine::adapter::generation::Generation;
use realign_engine::{EngineConfig, EngineHandle};
use realign_model::LoadedModel;
use realign_server::config::Config;
use realign_server::control::{EngineAnswers, inputs};
use realign_server::state::StateDb;

/// Flags of `gather`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
The base model answers prompts that the rules are about: examples and `prompts:` of the policies,
prompts of the data, and further ones that it writes in their style. An answer that violates becomes
`chosen`, one that complies `rejected`: triage turns such pairs around. Where no answer complies, the
model is asked again with the policy's text, and then [train.corrective], if it is set. Prompts that
exams ask are left out. A rule that has min_conflicts INVERT pairs in the data gets none ([gather] in
realign.toml). A server does the same by itself, for rules that what it serves misses.

Examples:
  realign gather --out preferences/gathered.jsonl    look at them, correct them, keep what is good
  realign gather --policies staging/ --json          one pair a line, the report on stderr
Answers are kept in the state directory: a run that was interrupted goes on where it stopped.
Exit code 1: a rule that needs pairs got none; the report says why.")]
pub(crate) struct GatherArgs {
    /// File to write the pairs to, which must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Draw all answers again, and remember none
    #[arg(long)]
    pub(crate) no_resume: bool,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &GatherArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    require_absent(args.out.as_ref())?;
    let bench = Bench::load(global)?;
    let memory = MemoryExamCache::default();
    let cache: &dyn ExamCache = match args.no_resume {
        true => &memory,
        false => bench.db.as_ref(),
    };
    let engine = bench.start()?;
    let gathered = bench.gather(&engine, cache, Progress::new(global));
    engine.shutdown();
    let gathered = gathered?;
    write(&gathered, args, out)?;
    let Some(report) = &gathered.report else {
        eprintln!(
            "every rule has gather.min_conflicts INVERT pairs in the data, or decides nothing"
        );
        return Ok(EXIT_OK);
    };
    if !global.quiet {
        eprintln!("{}", report.describe());
    }
    if args.out.is_some() && global.json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
    }
    let is_whole = report.rules.iter().all(|rule| rule.why.is_none());
    Ok(if is_whole { EXIT_OK } else { EXIT_FAILED })
}

fn write(gathered: &Gathered, args: &GatherArgs, out: &mut dyn Write) -> Result<(), CliError> {
    let generation = gathered
        .report
        .as_ref()
        .map_or("", |report| &report.generation);
    let lines = gathered.pairs.iter();
    let lines: String = lines
        .map(|pair| format!("{}\n", pair.line(generation)))
        .collect();
    match &args.out {
        Some(path) => std::fs::write(path, lines)?,
        None => out.write_all(lines.as_bytes())?,
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Eval(error.to_string())
}

/// Model, policies and data.
struct Bench {
    config: Config,
    loaded: LoadedModel,
    set: PolicySet,
    oracle: RuleOracle,
    inputs: Inputs,
    triage: Triage,
    base: Arc<Generation>,
    db: Arc<StateDb>,
}

impl Bench {
    fn load(global: &GlobalArgs) -> Result<Self, CliError> {
        let config = global.resolve()?;
        require(
            &config.paths.policies,
            "a directory of policies (--policies)",
        )?;
        let device = realign_backend::open(config.engine.device)?;
        let loaded = LoadedModel::load(config.model_choice(), &*device)?;
        let set = PolicySet::load_dir(&config.paths.policies)?;
        let prepared = prepare_trusted(&set, &oracle::services(&config, &set)?)?;
        let oracle = prepared.oracle(&set);
        let recipe = config.train.recipe(ModelSize::from(loaded.spec()));
        let inputs = inputs(&config, &loaded.base_hash, &set, recipe)?;
        let db = Arc::new(StateDb::open_for_command(&config.paths.database())?);
        let triage = triage_cached(&inputs.dataset.pairs, &oracle, db.as_ref()).0;
        let base = Arc::new(Generation {
            id: base_id(&loaded.base_hash),
            base_hash: loaded.base_hash.to_string(),
            policy_revision: None,
            adapter: None,
        });
        Ok(Self {
            config,
            loaded,
            set,
            oracle,
            inputs,
            triage,
            base,
            db,
        })
    }

    fn threads(&self) -> usize {
        let defaults = EngineConfig::default();
        self.config.engine.threads.unwrap_or(defaults.threads)
    }

    fn start(&self) -> Result<EngineHandle, CliError> {
        let limits = EngineConfig {
            kv_cache_bytes: match self.config.engine.kv_cache_mb {
                Some(mb) => mb << 20,
                None => EngineConfig::default().kv_cache_bytes,
            },
            threads: self.threads(),
            kv_type: self.config.engine.kv_type,
            precision: self.config.engine.precision,
            ..EngineConfig::default()
        };
        let loaded = &self.loaded;
        realign_engine::start(&*loaded.backend, loaded.tokenizer.clone(), limits).map_err(failed)
    }

    fn gather(
        &self,
        engine: &EngineHandle,
        cache: &dyn ExamCache,
        progress: Progress,
    ) -> Result<Gathered, CliError> {
        let answers = EngineAnswers {
            engine,
            base: &self.base,
            subject: &self.base,
            proceed: &|| true,
            answered: &|| (),
        };
        let bar = RefCell::new((None, ProgressBar::hidden()));
        let shown = |phase: Phase, done: usize, of: usize| {
            let mut bar = bar.borrow_mut();
            if bar.0 != Some((phase, of)) {
                bar.1.finish_and_clear();
                *bar = (Some((phase, of)), progress.bar(of, name(phase)));
            }
            bar.1.set_position(done as u64);
        };
        let ids = [&*self.base.id.0; 2];
        let threads = self.threads();
        let speaker = ModelSpeaker::new(&self.loaded, (&answers, cache), ids, threads, &shown);
        let gathered = self.gather_from(&speaker);
        bar.borrow().1.finish_and_clear();
        gathered
    }

    fn gather_from(&self, speaker: &ModelSpeaker<'_>) -> Result<Gathered, CliError> {
        let exam = exam::Sources {
            policies: &self.set,
            pairs: &self.inputs.dataset.pairs,
            triage: &self.triage,
            holdout: &self.inputs.holdout,
            live: &[],
        };
        let exam = gather::assemble_exam(exam, self.config.exam_settings(), speaker);
        let exam = exam.map_err(failed)?;
        // What the base does is not measured here: every rule may be missed.
        let standings = vec![Standing::Unknown; exam.rules.len()];
        let sources = Sources {
            policies: &self.set,
            pairs: &self.inputs.dataset.pairs,
            triage: &self.triage,
            train: &self.inputs.train,
            digest: &self.inputs.dataset.digest,
            exam: &exam,
            standings: &standings,
            generation: &self.base.id.0,
        };
        let spec = self.config.train.corrective.as_ref();
        let corrector = spec.map(|spec| Corrector {
            spec,
            policies: &self.set,
            oracle: &self.oracle,
            cache: self.db.clone(),
        });
        let settings = self.config.gather_settings();
        gather::gather(sources, settings, &self.oracle, speaker, corrector.as_ref()).map_err(failed)
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Write => "write",
        Phase::Answer => "answer",
        Phase::Tell => "tell",
        Phase::Rank => "rank",
    }
}
