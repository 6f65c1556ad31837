//! How long a realignment takes on this machine, from a few answers and steps of the model.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::report::{Plan, Sources};
use crate::eval::workbench::Workbench;
use crate::learning::Learning;
use crate::progress::Progress;
use crate::{CliError, GlobalArgs, recipes};
use realign_align::exam::Exam;
use realign_align::oracle::RuleOracle;
use realign_align::pipeline::Selection;
use realign_align::pipeline::{self, Learner, PipelineError, Run};
use realign_align::train::{self, Recipe, StepReport, memory};
use realign_model::host_memory::Headroom;
use realign_model::{Backend, LoadedModel, ModelSource};
use realign_server::control::inputs;

/// How long measuring steps may take; the first step is always measured.
const BUDGET: Duration = Duration::from_secs(3);
/// Answers that are measured first, and then, if they came quickly.
const ANSWERS: [usize; 2] = [2, 16];
/// What counts as quickly.
const QUICK: Duration = Duration::from_millis(600);
/// Governed answers that a round is reviewed by, at most.
const GOVERNED: usize = 2 * 64;
/// Answers that gathering draws for every pair that it may make.
const DRAWS: usize = 2;

/// How long a realignment takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Estimate {
    /// Answers per second, judged and scored.
    answers_per_second: f64,
    /// Seconds of an optimiser step, with what the base says of its pairs.
    step_seconds: f64,
    /// Seconds from the policy to the swap if one round of training is enough.
    least_seconds: f64,
    /// The same if every round is needed.
    most_seconds: f64,
    /// Seconds of gathering, if it is needed; counted in neither.
    gather_seconds: Option<f64>,
}

impl Estimate {
    /// The estimate for people.
    pub(super) fn text(&self) -> String {
        let gathering = self.gather_seconds.map(|seconds| {
            format!(
                "; gathering, where it is needed, about {}",
                minutes(seconds)
            )
        });
        format!(
            "about {} to {} on this machine when it is idle ({:.1} answers a second, {:.2} s a step, \
             measured now){}\n",
            minutes(self.least_seconds),
            minutes(self.most_seconds),
            self.answers_per_second,
            self.step_seconds,
            gathering.unwrap_or_default()
        )
    }
}

fn minutes(seconds: f64) -> String {
    if seconds < 90.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.0} minutes", seconds / 60.0)
    }
}

/// Measures the model and multiplies. `oracle` judges the answers; it should ask no judge.
///
/// # Errors
/// If the model is not there or does not answer. Nothing is downloaded.
pub(super) fn estimate(
    global: &GlobalArgs,
    from: Sources<'_>,
    (oracle, plan): (RuleOracle, &Plan),
) -> Result<Estimate, CliError> {
    let progress = Progress::new(global).spinner("measuring");
    let learning = load(from)?;
    let bench = Workbench::without_controls(&learning, from.set, oracle)?;
    let answers_per_second = answers_per_second(&bench);
    bench.shutdown();
    let answers_per_second = answers_per_second?;
    let step_seconds = step_seconds(&learning)?;
    progress.finish_and_clear();
    let answers = |count: usize| count as f64 / answers_per_second;
    let steps = |count: usize| count as f64 * step_seconds;
    // What serves and the candidate sit the exam, and the base answers the controls.
    let first = answers(2 * plan.exam_prompts + plan.controls) + steps(plan.steps);
    let review = answers(plan.controls + GOVERNED);
    let reviews = if plan.rounds > 1 { review } else { 0.0 };
    let later = (plan.rounds - 1) as f64 * (review + steps(plan.later_steps));
    let gather = &from.config.gather;
    let draws = DRAWS * gather.max_pairs * gather.samples_per_prompt;
    let gathers = !plan.gathers_for.is_empty();
    Ok(Estimate {
        answers_per_second,
        step_seconds,
        least_seconds: first + reviews,
        most_seconds: first + reviews + later,
        gather_seconds: gathers.then(|| answers(draws)),
    })
}

/// The model and what it would learn, without asking a judge or the corrective endpoint.
fn load(from: Sources<'_>) -> Result<Learning, CliError> {
    let config = from.config;
    if let Ok(ModelSource::Hub { .. }) = ModelSource::parse(&config.model) {
        let why = "the model is on a hub, and plan downloads nothing";
        return Err(CliError::Eval(why.into()));
    }
    let device = realign_backend::open(config.engine.device)?;
    let loaded = LoadedModel::load(config.model_choice(), &*device)?;
    let recipe = recipes::for_model(&config.train, loaded.spec())?;
    let inputs = inputs(config, &loaded.base_hash, from.set, &recipe)?;
    let selection = Selection {
        dataset: &inputs.dataset.pairs,
        categories: &from.triage.categories(),
        train: &inputs.train,
    };
    let selected = selection.select(&loaded, &recipe, None)?;
    Ok(Learning {
        config: config.clone(),
        loaded,
        recipe,
        inputs,
        triage: from.triage.clone(),
        selected,
    })
}

/// The base answers a few prompts of the exam.
fn answers_per_second(bench: &Workbench<'_>) -> Result<f64, CliError> {
    let exam = bench.exam();
    let mut asked = Vec::new();
    let mut rate = None;
    for count in ANSWERS {
        // Answers are remembered, so the second sitting asks other prompts than the first.
        let some = spread(exam.questions.len(), count, &asked);
        if some.is_empty() {
            break;
        }
        let few = Exam {
            questions: some.iter().map(|at| exam.questions[*at].clone()).collect(),
            facts: Vec::new(),
            ..exam.clone()
        };
        let began = Instant::now();
        bench.sit(&few, &bench.base)?;
        let took = began.elapsed();
        rate = Some(some.len() as f64 / took.as_secs_f64().max(1e-6));
        if took > QUICK {
            break;
        }
        asked = some;
    }
    let none = "there is no prompt in the exam to measure answers with";
    rate.ok_or_else(|| CliError::Eval(none.into()))
}

/// About `count` of `of` places, spread over all of them, and none of `but`.
fn spread(of: usize, count: usize, but: &[usize]) -> Vec<usize> {
    let every = of.div_ceil(count).max(1);
    let all = (0..of).step_by(every);
    all.filter(|at| !but.contains(at)).collect()
}

/// Trains a few steps on the selected pairs.
fn step_seconds(learning: &Learning) -> Result<f64, CliError> {
    let recipe = Recipe {
        max_steps: 3,
        min_steps: 0,
        epochs: 1,
        rounds: 1,
        ..learning.recipe.clone()
    };
    let wanted = 3 * recipe.pairs_per_step.max(1) * recipe.accumulation.max(1);
    let every = learning.selected.pairs.len().div_ceil(wanted).max(1);
    let pairs: Vec<_> = learning
        .selected
        .pairs
        .iter()
        .step_by(every)
        .cloned()
        .collect();
    let run = Run {
        pairs: &pairs,
        recipe: &recipe,
        weights: None,
    };
    let watch = Watch {
        memory_mb: learning.config.train.memory_mb,
        since: Instant::now(),
        steps: RefCell::default(),
    };
    if pairs.is_empty() {
        return Ok(0.0);
    }
    let ran = Learner::new(&learning.loaded).run(&run, &watch);
    let before = match ran {
        Ok(candidate) => candidate.reference_seconds + candidate.impact_seconds,
        Err(PipelineError::Cancelled) => 0.0,
        Err(error) => return Err(error.into()),
    };
    let steps = watch.steps.into_inner();
    let count = steps.len().max(1) as f64;
    // The first step also makes memory.
    let rest = if steps.len() > 1 {
        &steps[1..]
    } else {
        &steps[..]
    };
    let mean = rest.iter().sum::<f64>() / rest.len().max(1) as f64;
    Ok(mean + before / count)
}

/// Notes how long steps take, and ends the run when the budget is spent.
struct Watch {
    memory_mb: Option<u64>,
    since: Instant,
    steps: RefCell<Vec<f64>>,
}

impl train::Observer for Watch {
    fn proceed(&self) -> bool {
        self.steps.borrow().is_empty() || self.since.elapsed() < BUDGET
    }
    fn on_step(&self, report: &StepReport) {
        self.steps.borrow_mut().push(report.seconds);
    }
    fn memory(&self, backend: &dyn Backend) -> Option<Headroom> {
        memory::limit(self.memory_mb, backend)
    }
}

impl pipeline::Observer for Watch {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sitting_asks_prompts_that_the_other_did_not() {
        for of in [1, 2, 3, 16, 17, 100] {
            let few = spread(of, ANSWERS[0], &[]);
            assert!((1..=ANSWERS[0]).contains(&few.len()), "{of}: {few:?}");
            let more = spread(of, ANSWERS[1], &few);
            assert!(more.iter().all(|at| *at < of && !few.contains(at)));
            assert_eq!(more.is_empty(), of <= few.len(), "{of}: {more:?}");
        }
        assert!(spread(0, ANSWERS[0], &[]).is_empty());
    }
}
