//! `realign eval gate`: whether the gate refuses spoiled candidates and lets good ones pass.

mod cases;

use std::io::Write;
use std::time::Instant;

use serde::Serialize;

use super::workbench::{Workbench, failed};
use crate::learning::Learning;
use crate::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs};
use cases::Case;
use realign_align::exam::{Bounds, Compared, Exam, Occasion, Report, Sitting, outcomes};
use realign_align::gate::{self, Measured};
use realign_align::pipeline::{Learner, PipelineError, Run};
use realign_align::policy::PolicySet;
use realign_model::LoraWeights;

/// Tokens of neutral text that perplexity is measured on.
const NEUTRAL_TOKENS: usize = 1024;

/// Flags of `eval gate`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GateArgs {
    /// Good candidates, each with a seed of its own
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) good: u64,
    /// Only these candidates, by name [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What the gate said about one candidate.
#[derive(Serialize)]
struct Row {
    name: String,
    good: bool,
    promoted: bool,
    right: bool,
    reason: String,
    compliance: Option<f64>,
    diverted: Option<f64>,
    facts: Option<f64>,
    seconds: f64,
}

/// Candidates and the exam that they sit.
struct Bench<'a> {
    work: Workbench<'a>,
    exam: Exam,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(super) fn run(
    args: &GateArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let learning = Learning::load(global, None)?;
    let set = PolicySet::load_dir(&learning.config.paths.policies)?;
    let work = Workbench::start(&learning, &set)?;
    let exam = work.exam();
    let bench = Bench { work, exam };
    let before = bench.work.sit(&bench.exam, &bench.work.base)?;
    let good = (0..args.good).map(|n| Case::Good(learning.recipe.seed + n));
    let cases = Case::SABOTAGED.into_iter().chain(good);
    let wanted = |case: &Case| args.only.is_empty() || args.only.contains(&case.name());
    let mut all_right = true;
    for case in cases.filter(wanted) {
        let row = bench.judge(case, &before, global)?;
        all_right &= row.right;
        if global.json {
            writeln!(out, "{}", serde_json::to_string(&row)?)?;
        } else {
            let verdict = if row.promoted { "promoted" } else { "refused" };
            let right = if row.right {
                "as it should be"
            } else {
                "WRONG"
            };
            writeln!(
                out,
                "{:<24} {verdict:<9} {right:<16} {:>4.0} s  {}",
                row.name, row.seconds, row.reason
            )?;
        }
        out.flush()?;
    }
    bench.work.shutdown();
    Ok(if all_right { EXIT_OK } else { EXIT_FAILED })
}

impl Bench<'_> {
    fn report(&self, sitting: &Sitting) -> Report {
        let occasion = Occasion {
            policy_revision: self.work.set.revision(),
            sat_at: 0,
            min_prompts: self.work.learning.config.gate.min_prompts,
        };
        Report::new(&self.exam, sitting, occasion)
    }

    /// Makes a candidate and has the gate judge it.
    fn judge(&self, case: Case, before: &Sitting, global: &GlobalArgs) -> Result<Row, CliError> {
        let started = Instant::now();
        let recipe = case.recipe(&self.work.learning.recipe);
        let pairs = case.pairs(&self.work)?;
        let run = Run {
            pairs: &pairs,
            recipe: &recipe,
            weights: None,
        };
        let row = |promoted: bool, reason: String, report: Option<&Report>| Row {
            name: case.name(),
            good: case.is_good(),
            promoted,
            right: promoted == case.is_good(),
            reason,
            compliance: report.and_then(|r| r.compliance.ratio),
            diverted: report.and_then(|r| r.controls.all.ratio),
            facts: report.and_then(|r| r.facts.ratio),
            seconds: started.elapsed().as_secs_f64(),
        };
        // Spoiled candidates are not to be mended.
        let trained = if case.is_good() {
            self.work.learn(&run, global)
        } else {
            self.work.learn_once(&run, global)
        };
        let trained = match trained {
            Ok(trained) => trained,
            // A run that ends by itself makes no candidate: that is refused as well.
            Err(PipelineError::Train(error)) => return Ok(row(false, error.to_string(), None)),
            Err(error) => return Err(error.into()),
        };
        let (reasons, report) = self.refusals(trained.weights, before)?;
        let promoted = reasons.is_empty();
        let reason = if promoted {
            "every check passed".into()
        } else {
            reasons.join("; ")
        };
        Ok(row(promoted, reason, Some(&report)))
    }

    fn refusals(
        &self,
        weights: LoraWeights,
        before: &Sitting,
    ) -> Result<(Vec<String>, Report), CliError> {
        let loaded = &self.work.learning.loaded;
        let text = gate::paragraphs(&loaded.tokenizer, gate::NEUTRAL_TEXT, NEUTRAL_TOKENS);
        let learner = Learner::new(loaded);
        let capability = gate::capability(learner.backend(), &weights, &text, &|| true);
        let Some(capability) = capability.map_err(failed)? else {
            return Err(CliError::Eval("the measurement stopped".into()));
        };
        let candidate = self.work.stage(weights)?;
        let after = self.work.sit(&self.exam, &candidate)?;
        let (of_before, report) = (self.report(before), self.report(&after));
        let policies = outcomes(&of_before, &report);
        let compared = Compared {
            exam: &self.exam,
            before,
            after: &after,
            report: &report,
            policies: &policies,
        };
        let config = &self.work.learning.config.gate;
        let bounds = self.work.set.gate();
        let exam_bounds = Bounds {
            max_control_diverted: bounds
                .max_control_diverted()
                .unwrap_or(config.max_control_diverted),
            min_prompts: config.min_prompts,
            all_or_nothing: config.all_or_nothing,
        };
        let measured = Measured {
            prompts: report.compliance.of,
            agreement_before: of_before.compliance.ratio.unwrap_or_default(),
            agreement_after: report.compliance.ratio.unwrap_or_default(),
            perplexity_base: capability.perplexity_base,
            perplexity_after: capability.perplexity_candidate,
            kl_to_base: capability.kl,
        };
        let mut refusals = compared.refusals(exam_bounds);
        refusals.extend(gate::judge(&measured, &bounds));
        Ok((refusals.into_iter().map(|r| r.reason).collect(), report))
    }
}
