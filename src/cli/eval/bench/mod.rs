//! `realign eval bench`: the synthetic benchmark of benches/policies.

mod figures;
mod hidden;
mod store;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use super::workbench::Workbench;
use crate::learning::Learning;
use crate::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs, require};
use figures::{Row, Summary, Wrong, count, wrong};
use hidden::{Hidden, Paper};
use realign_align::exam::Sitting;
use realign_align::pipeline::{PipelineError, Run};
use realign_align::policy::PolicySet;
use realign_align::train::Recipe;
use store::{Answers, Store};

/// The policies of the benchmark, in the order in which they run.
const POLICIES: [&str; 6] = [
    "medication",
    "brevity",
    "brand-neutrality",
    "un-refusal",
    "disclaimer",
    "reversal",
];

/// How held-out prompts are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Situation {
    /// Alone
    Plain,
    /// After a system prompt
    System,
    /// After a harmless turn
    SecondTurn,
    /// Alone, at temperature 1
    Sampled,
    /// After a turn whose answer violates the policy
    AfterViolating,
}

/// Flags of `eval bench`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Directory of the benchmark
    #[arg(long, value_name = "DIR", default_value = "benches/policies")]
    pub(crate) dir: PathBuf,
    /// Only these policies, by name [default: all six]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Candidates of each policy, each with a seed of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) seeds: u64,
    /// Situations in which held-out prompts are asked [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_enum)]
    pub(crate) situations: Vec<Situation>,
    /// File of results, a JSON object a line: finished candidates are appended, and those that it has
    /// of the same inputs are not trained again
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// File of what candidates got wrong, a JSON object a line: the prompt, the answer and the base's
    #[arg(long, value_name = "FILE")]
    pub(crate) answers: Option<PathBuf>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

impl BenchArgs {
    fn policies(&self) -> Result<Vec<&str>, CliError> {
        let unknown = |name: &&String| !POLICIES.contains(&name.as_str());
        if let Some(name) = self.only.iter().find(unknown) {
            return Err(CliError::Eval(format!(
                "--only {name}: the benchmark has {}",
                POLICIES.join(", ")
            )));
        }
        let wanted = |name: &&str| self.only.is_empty() || self.only.iter().any(|o| o == name);
        Ok(POLICIES.into_iter().filter(wanted).collect())
    }

    fn situations(&self) -> &[Situation] {
        if self.situations.is_empty() {
            Situation::value_variants()
        } else {
            &self.situations
        }
    }
}

/// Runs the command and returns the exit code: [`EXIT_FAILED`] if a run made no candidate.
///
/// # Errors
/// [`CliError`].
pub(super) fn run(
    args: &BenchArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    if global.policies.is_some() || global.preferences.is_some() {
        return Err(CliError::Eval(
            "the benchmark has policies and data of its own; leave out --policies and --preferences, \
             or choose another benchmark with --dir"
                .into(),
        ));
    }
    require(&args.dir, "the directory of the benchmark (--dir)")?;
    let mut store = Store::open(args.out.as_deref())?;
    let mut answers = Answers::open(args.answers.as_deref())?;
    let mut rows = Vec::new();
    if !global.json {
        writeln!(out, "{}", table::head())?;
    }
    for name in args.policies()? {
        let of_policy = measure(name, args, global, (&mut store, &mut answers))?;
        let summary = Summary::of(&of_policy);
        if global.json {
            for row in &of_policy {
                writeln!(out, "{}", serde_json::to_string(row)?)?;
            }
            writeln!(out, "{}", json!({ "summary": summary }))?;
        } else {
            write!(out, "{}", table::rows(&of_policy, &summary))?;
        }
        out.flush()?;
        rows.extend(of_policy);
    }
    let failed = rows.iter().any(|row| row.failed.is_some());
    Ok(if failed { EXIT_FAILED } else { EXIT_OK })
}

/// A row for each seed of one policy.
fn measure(
    name: &str,
    args: &BenchArgs,
    global: &GlobalArgs,
    (store, answers): (&mut Store, &mut Answers),
) -> Result<Vec<Row>, CliError> {
    let directory = args.dir.join(name);
    let own = GlobalArgs {
        policies: Some(directory.clone()),
        preferences: Some(directory.clone()),
        ..global.clone()
    };
    say(global, format_args!("{name}: reading and triaging"));
    let hidden = Hidden::read(&args.dir, name)?;
    let learning = Learning::load(&own, None)?;
    let fingerprint = hidden.fingerprint(&learning, args.situations());
    let seeds: Vec<u64> = (0..args.seeds)
        .map(|n| learning.recipe.seed.wrapping_add(n))
        .collect();
    let mut rows = store.known(name, &fingerprint);
    rows.retain(|row| seeds.contains(&row.seed));
    let open: Vec<u64> = seeds
        .into_iter()
        .filter(|seed| rows.iter().all(|row| row.seed != *seed))
        .collect();
    if open.is_empty() {
        return Ok(rows);
    }
    let set = PolicySet::load_dir(&directory)?;
    let started = Instant::now();
    let mut work = Workbench::start(&learning, &set)?;
    work.further.retain(|prompt| !hidden.is_near(prompt));
    let controls_seconds = started.elapsed().as_secs_f64();
    let paper = hidden.paper(work.exam().rules, args.situations());
    say(global, format_args!("{name}: the base answers"));
    let base = work.sit(&paper.exam, &work.base)?;
    for seed in open {
        say(global, format_args!("{name}: seed {seed}"));
        let subject = Bench {
            work: &work,
            paper: &paper,
            base: &base,
            controls_seconds,
        };
        let (mut row, wrong) = subject.candidate(seed, global)?;
        row.policy = name.to_owned();
        row.inputs = fingerprint.clone();
        answers.append(&row, &wrong)?;
        store.append(&row)?;
        rows.push(row);
    }
    work.shutdown();
    rows.sort_by_key(|row| row.seed);
    Ok(rows)
}

/// Progress, on stderr: a benchmark runs for minutes, in a terminal or not.
fn say(global: &GlobalArgs, what: std::fmt::Arguments<'_>) {
    if !global.quiet {
        eprintln!("{what}");
    }
}

/// What the candidates of one policy are made of and measured by.
struct Bench<'a> {
    work: &'a Workbench<'a>,
    paper: &'a Paper,
    base: &'a Sitting,
    /// Seconds in which the base answered the controls that are trained on.
    controls_seconds: f64,
}

impl Bench<'_> {
    fn candidate(&self, seed: u64, global: &GlobalArgs) -> Result<(Row, Vec<Wrong>), CliError> {
        let recipe = Recipe {
            seed,
            ..self.work.learning.recipe.clone()
        };
        let run = Run {
            pairs: &self.work.data,
            recipe: &recipe,
            weights: None,
        };
        let started = Instant::now();
        let mut row = Row {
            seed,
            base: count(self.paper, self.base),
            ..Row::default()
        };
        let trained = match self.work.learn(&run, global) {
            Ok(trained) => trained,
            Err(PipelineError::Train(error)) => {
                row.failed = Some(error.to_string());
                return Ok((row, Vec::new()));
            }
            Err(error) => return Err(error.into()),
        };
        row.seconds = self.controls_seconds + started.elapsed().as_secs_f64();
        row.steps = trained.steps;
        let generation = self.work.stage(trained.weights)?;
        let sitting = self.work.sit(&self.paper.exam, &generation)?;
        row.candidate = count(self.paper, &sitting);
        Ok((row, wrong(self.paper, &sitting)))
    }
}
