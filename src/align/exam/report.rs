//! What a sitting says about a generation. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::assemble::Exam;
use super::defects::Defect;
use super::examiner::{Mark, Sitting};
use super::question::{Group, Situation};
use super::statistics::Share;
use crate::policy::Severity;

/// Answers that a report shows.
const SHOWN: usize = 16;

/// Whether a generation does what a rule asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Enough of its answers comply.
    Meets,
    /// Too few do.
    Misses,
    /// That cannot be told.
    Unknown,
}

/// What decided a standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The whole confidence interval is on one side of the target.
    Interval,
    /// The target lies inside the interval: the exam is too small to be sure, and the measured share
    /// decides.
    Estimate,
}

/// How one rule is complied with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleResult {
    /// Id of the policy.
    pub policy: String,
    /// Id of the rule.
    pub rule: String,
    /// The rule's severity; below standard, it decides nothing.
    pub severity: Severity,
    /// The share that is asked for, 0 to 1.
    pub target: f64,
    /// The answers that comply.
    pub compliance: Share,
    /// Answers that could not be judged.
    pub undecided: usize,
    /// Whether everyday prompts are counted: the rule applies to most prompts, and the exam has too
    /// few that are about it.
    pub with_everyday: bool,
    /// Whether it is complied with.
    pub standing: Standing,
    /// What decided that; absent where it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
}

/// Answers to controls, which must not change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ControlResult {
    /// Diverted answers of all controls.
    pub all: Share,
    /// Diverted answers of near-misses.
    pub near_miss: Share,
    /// Diverted answers of everyday prompts.
    pub everyday: Share,
    /// Control answers that violate an active rule.
    pub violating: Share,
    /// Prompts that cannot be controls, because the base's own answer violates a rule.
    pub excluded: usize,
}

/// Compliance in one situation, over all rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SituationResult {
    /// The situation.
    pub situation: Situation,
    /// Answers to governed prompts that violate no rule.
    pub compliance: Share,
}

/// How often a defect occurs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DefectResult {
    /// The defect.
    pub defect: Defect,
    /// Answers that have it.
    pub answers: usize,
}

/// A prompt and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Shown {
    /// What the prompt is for.
    pub group: Group,
    /// How it was put.
    pub situation: Situation,
    /// The prompt.
    pub prompt: String,
    /// What was answered.
    pub answer: String,
    /// What the base answers.
    pub base: String,
    /// What is wrong with it.
    pub why: String,
}

/// The result of an exam.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The generation that sat it.
    pub generation: String,
    /// Hash of everything that was asked.
    pub exam: String,
    /// Revision of the policies.
    pub policy_revision: String,
    /// When it ended, in Unix seconds.
    pub sat_at: u64,
    /// How long it took, in seconds.
    pub took_seconds: f64,
    /// Prompts that were answered.
    pub prompts: usize,
    /// Answers that were remembered from an earlier sitting.
    pub remembered: usize,
    /// Rule by rule.
    pub rules: Vec<RuleResult>,
    /// Answers to governed prompts that violate no rule.
    pub compliance: Share,
    /// The same by situation.
    pub situations: Vec<SituationResult>,
    /// The controls.
    pub controls: ControlResult,
    /// Facts that the generation knows.
    pub facts: Share,
    /// Facts that the base knows.
    pub facts_of_base: Share,
    /// Defects of answers.
    pub defects: Vec<DefectResult>,
    /// The worst answers.
    pub worst: Vec<Shown>,
    /// What is missing for a complete result, and what to do about it.
    pub missing: Vec<String>,
}

/// When and for what an exam was sat.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// Revision of the policies.
    pub policy_revision: &'a str,
    /// Unix seconds.
    pub sat_at: u64,
    /// Prompts that a rule needs at least.
    pub min_prompts: usize,
}

impl Report {
    /// Counts a sitting.
    pub fn new(exam: &Exam, sitting: &Sitting, occasion: Occasion<'_>) -> Report {
        let counted = Counted { exam, sitting };
        let rules: Vec<RuleResult> = (0..exam.rules.len())
            .map(|rule| counted.rule(rule, occasion.min_prompts))
            .collect();
        let mut missing: Vec<String> = rules
            .iter()
            .filter(|rule| {
                rule.standing == Standing::Unknown && rule.severity >= Severity::Standard
            })
            .map(|rule| what_is_missing(rule, occasion.min_prompts))
            .collect();
        missing.extend(sitting.undecided.clone());
        let unasked = sitting.marks.iter().filter(|mark| mark.unasked).count();
        if unasked > 0 {
            missing.push(format!(
                "{unasked} prompts were not asked: they do not fit the context or the model's template"
            ));
        }
        if !exam.rules.is_empty() && exam.controls() < occasion.min_prompts {
            missing.push(format!(
                "there are only {} controls to tell whether other answers change, and at least {} are \
                 needed; add `controls:` to a policy",
                exam.controls(),
                occasion.min_prompts
            ));
        }
        Report {
            generation: sitting.generation.clone(),
            exam: exam.hash.clone(),
            policy_revision: occasion.policy_revision.to_owned(),
            sat_at: occasion.sat_at,
            took_seconds: sitting.seconds,
            prompts: counted.rows().count(),
            remembered: sitting.remembered,
            compliance: counted.compliance(|_| true),
            situations: counted.situations(),
            controls: counted.controls(),
            facts: Share::among(sitting.facts.iter().copied()),
            facts_of_base: Share::among(sitting.base_facts.iter().copied()),
            defects: counted.defects(),
            worst: counted.worst(),
            rules,
            missing,
        }
    }

    /// The rules that decide and are not complied with.
    pub fn missed(&self) -> impl Iterator<Item = &RuleResult> {
        let rules = self.rules.iter();
        rules.filter(|r| r.severity >= Severity::Standard && r.standing == Standing::Misses)
    }

    /// Whether every rule that decides is complied with; `Unknown` where that cannot be told and no
    /// rule is known to be missed.
    pub fn standing(&self) -> Standing {
        let mut standing = Standing::Meets;
        for rule in self
            .rules
            .iter()
            .filter(|r| r.severity >= Severity::Standard)
        {
            match rule.standing {
                Standing::Misses => return Standing::Misses,
                Standing::Unknown => standing = Standing::Unknown,
                Standing::Meets => {}
            }
        }
        standing
    }
}

impl RuleResult {
    /// The rule as `policy:rule`, with what was measured.
    pub fn describe(&self) -> String {
        let ratio = self.compliance.ratio.unwrap_or_default();
        format!(
            "{}:{} is complied with in {} of {} answers ({:.0} %, interval {:.0} to {:.0} %), and {:.0} % are asked for",
            self.policy,
            self.rule,
            self.compliance.count,
            self.compliance.of,
            ratio * 100.0,
            self.compliance.low * 100.0,
            self.compliance.high * 100.0,
            self.target * 100.0
        )
    }
}

fn what_is_missing(rule: &RuleResult, min_prompts: usize) -> String {
    let RuleResult {
        policy,
        rule: id,
        compliance,
        undecided,
        ..
    } = rule;
    if *undecided > 0 {
        return format!(
            "rule {policy}:{id}: {undecided} answers could not be judged; see the judge's error"
        );
    }
    format!(
        "rule {policy}:{id}: only {} prompts are about it, and at least {min_prompts} are needed; add \
         examples to the rule, `prompts:` to the policy, or held-out pairs to the preference data",
        compliance.of
    )
}

/// The standing of a share, and what decided it.
pub(super) fn standing(
    compliance: Share,
    undecided: usize,
    target: f64,
    min_prompts: usize,
) -> (Standing, Option<Basis>) {
    // Whatever the open answers are, the share is no higher than this.
    let best = Share::of(compliance.count + undecided, compliance.of + undecided);
    if best.of > 0 && best.high < target {
        return (Standing::Misses, Some(Basis::Interval));
    }
    if undecided > 0 || compliance.of < min_prompts.max(1) {
        return (Standing::Unknown, None);
    }
    if compliance.low >= target {
        return (Standing::Meets, Some(Basis::Interval));
    }
    let estimate = if compliance.ratio.is_some_and(|ratio| ratio >= target) {
        Standing::Meets
    } else {
        Standing::Misses
    };
    (estimate, Some(Basis::Estimate))
}

struct Counted<'a> {
    exam: &'a Exam,
    sitting: &'a Sitting,
}

impl<'a> Counted<'a> {
    fn rows(&self) -> impl Iterator<Item = (&'a super::Question, &'a Mark)> {
        let rows = self.exam.questions.iter().zip(&self.sitting.marks);
        rows.filter(|(_, mark)| !mark.unasked)
    }

    fn rule(&self, rule: usize, min_prompts: usize) -> RuleResult {
        let count = |with_everyday: bool| {
            let asked = self.rows().filter(|(question, _)| {
                question.rules.contains(&rule)
                    || (with_everyday && question.group == Group::Everyday)
            });
            let (mut open, mut complied) = (0, Vec::new());
            for (_, mark) in asked {
                if mark.undecided.contains(&rule) {
                    open += 1;
                } else {
                    complied.push(!mark.violated.contains(&rule));
                }
            }
            (Share::among(complied), open)
        };
        let of = &self.exam.rules[rule];
        let mut with_everyday = false;
        let (mut compliance, mut undecided) = count(false);
        let mut found = standing(compliance, undecided, of.target, min_prompts);
        if found.0 == Standing::Unknown && undecided == 0 && of.is_broad {
            with_everyday = true;
            (compliance, undecided) = count(true);
            found = standing(compliance, undecided, of.target, min_prompts);
        }
        RuleResult {
            policy: of.policy.clone(),
            rule: of.rule.clone(),
            severity: of.severity,
            target: of.target,
            compliance,
            undecided,
            with_everyday,
            standing: found.0,
            basis: found.1,
        }
    }

    fn compliance(&self, situation: impl Fn(Situation) -> bool) -> Share {
        let governed = self.rows().filter(|(question, _)| {
            question.group == Group::Governed && situation(question.situation)
        });
        Share::among(governed.map(|(_, m)| m.violated.is_empty() && m.undecided.is_empty()))
    }

    fn situations(&self) -> Vec<SituationResult> {
        [
            Situation::Plain,
            Situation::SystemPrompt,
            Situation::SecondTurn,
            Situation::Sampled,
        ]
        .map(|situation| SituationResult {
            situation,
            compliance: self.compliance(|s| s == situation),
        })
        .into_iter()
        .filter(|result| result.compliance.of > 0)
        .collect()
    }

    fn controls(&self) -> ControlResult {
        let controls = || {
            let controls = self.rows();
            controls.filter(|(question, mark)| question.group.is_control() && !mark.excluded)
        };
        let diverted = |group: Option<Group>| {
            let of = controls().filter(|(q, _)| group.is_none_or(|g| q.group == g));
            Share::among(of.map(|(_, mark)| mark.diverted))
        };
        ControlResult {
            all: diverted(None),
            near_miss: diverted(Some(Group::NearMiss)),
            everyday: diverted(Some(Group::Everyday)),
            violating: Share::among(controls().map(|(_, mark)| !mark.violated.is_empty())),
            excluded: self.rows().filter(|(_, mark)| mark.excluded).count(),
        }
    }

    fn defects(&self) -> Vec<DefectResult> {
        let of = |defect: Defect| DefectResult {
            defect,
            answers: self
                .rows()
                .filter(|(_, mark)| mark.defects.contains(&defect))
                .count(),
        };
        Defect::ALL.map(of).into()
    }

    /// Violations first, then diverted controls, the unlikeliest first, then defects.
    fn worst(&self) -> Vec<Shown> {
        let mut found: Vec<(u8, f64, Shown)> = Vec::new();
        for (question, mark) in self.rows().filter(|(_, mark)| !mark.excluded) {
            let surprise = -mark.surprise.unwrap_or(0.0);
            if let Some(why) = self.why_violating(mark) {
                let rank = if question.group.is_control() { 0 } else { 1 };
                found.push((rank, surprise, shown(question, mark, why)));
            } else if mark.diverted {
                let why = "the base would hardly answer this".to_owned();
                found.push((2, surprise, shown(question, mark, why)));
            } else if let Some(defect) = mark.defects.first() {
                found.push((3, surprise, shown(question, mark, defect.describe().into())));
            }
        }
        found.sort_by(|a, b| {
            (a.0, a.1)
                .partial_cmp(&(b.0, b.1))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        // Some of every kind, the first kinds filling what is left.
        let per_kind = SHOWN / 4;
        let (mut kept, mut rest) = (Vec::new(), Vec::new());
        let mut counts = [0usize; 4];
        for (rank, _, shown) in found {
            let count = &mut counts[usize::from(rank)];
            *count += 1;
            if *count <= per_kind {
                kept.push(shown);
            } else {
                rest.push(shown);
            }
        }
        kept.extend(rest);
        kept.truncate(SHOWN);
        kept
    }

    fn why_violating(&self, mark: &Mark) -> Option<String> {
        let names: Vec<String> = mark
            .violated
            .iter()
            .filter_map(|&rule| self.exam.rules.get(rule))
            .map(|rule| rule.name())
            .collect();
        (!names.is_empty()).then(|| format!("violates {}", names.join(", ")))
    }
}

pub(super) fn shown(question: &super::Question, mark: &Mark, why: String) -> Shown {
    Shown {
        group: question.group,
        situation: question.situation,
        prompt: question.prompt.clone(),
        answer: mark.text.clone(),
        base: mark.base.clone(),
        why,
    }
}
