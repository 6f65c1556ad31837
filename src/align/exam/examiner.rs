//! Has a generation answer an exam, and marks the answers.

use std::time::Instant;

use super::assemble::Exam;
use super::defects::{Defect, defects};
use super::question::{Question, user};
use super::respond::{Answer, Asked, ExamCache, ExamError, Respond, Who};
use super::work::{OPENING, Work};
use crate::oracle::{Exchange, Judgement, RuleOracle, VerdictCache};
use crate::pipeline::Renderer;
use crate::train::examples::{CONTROL, TokenPair};
use realign_core::Category;
use realign_core::thoughts::answer_of;
use realign_model::{LoadedModel, Staged};

/// Longest prompt that is asked, in tokens: what the likelihoods' cache holds twice.
const LONGEST_PROMPT: usize = 2048;
/// Tokens of the base's answers that training keeps: an answer is diverted at its beginning.
pub(super) const TRAINED_TOKENS: usize = OPENING;

/// A generation that sits an exam.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub generation: &'a str,
    /// The base's id.
    pub base: &'a str,
    /// Its adapter as the backend staged it; `None` of the base.
    pub adapter: Option<&'a Staged>,
}

/// How one answer was marked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    /// What was answered.
    pub text: String,
    /// What the base answers.
    pub base: String,
    /// Indices of the rules that it violates.
    pub violated: Vec<usize>,
    /// Indices of the rules that could not be decided.
    pub undecided: Vec<usize>,
    /// What is wrong with it whatever it says.
    pub defects: Vec<Defect>,
    /// By how much the base finds it less likely than the generation that gave it, in nats per token;
    /// `None` where it is the base's own answer or not a control.
    pub surprise: Option<f64>,
    /// Whether it is a control's answer that the base would not give.
    pub diverted: bool,
    /// Whether it is a control that cannot be one: the base's own answer violates a rule.
    pub excluded: bool,
    /// Whether it was not asked, because it does not fit the context or the model's template.
    pub unasked: bool,
}

/// What a generation answered, question by question, and how it was marked.
#[derive(Clone, Debug, Default)]
pub struct Sitting {
    /// The generation.
    pub generation: String,
    /// Marks in the order of the exam's questions.
    pub marks: Vec<Mark>,
    /// Whether each fact was known.
    pub facts: Vec<bool>,
    /// The same of the base.
    pub base_facts: Vec<bool>,
    /// Why rules were not decided, if any were not.
    pub undecided: Option<String>,
    /// Seconds it took.
    pub seconds: f64,
    /// Answers that were remembered from an earlier sitting.
    pub remembered: usize,
}

/// Examines generations of one model.
pub struct Examiner<'a> {
    /// The model.
    pub loaded: &'a LoadedModel,
    /// Judges answers.
    pub oracle: &'a RuleOracle,
    /// Verdicts of earlier sittings.
    pub verdicts: &'a dyn VerdictCache,
    /// Answers and likelihoods of earlier sittings.
    pub cache: &'a dyn ExamCache,
    /// Answers.
    pub engine: &'a dyn Respond,
    /// Threads that compute likelihoods.
    pub threads: usize,
    /// Most tokens of an answer to a governed prompt; controls have at most [`TOKENS`].
    pub max_tokens: usize,
}

impl Examiner<'_> {
    /// Has a generation sit an exam.
    ///
    /// # Errors
    /// [`ExamError`]; what was answered is remembered.
    pub fn sit(&self, exam: &Exam, subject: &Subject<'_>) -> Result<Sitting, ExamError> {
        let started = Instant::now();
        let prompts: Vec<Vec<u32>> = exam.questions.iter().map(|q| self.render(q)).collect();
        let fits = |tokens: &Vec<u32>| {
            (1..=LONGEST_PROMPT).contains(&tokens.len())
                && self.engine.fits(tokens.len(), self.max_tokens)
        };
        let asked: Vec<usize> = (0..prompts.len()).filter(|&i| fits(&prompts[i])).collect();
        let mut work = Work {
            examiner: self,
            exam,
            prompts,
            subject,
            likelihoods: None,
            remembered: 0,
        };
        let own = work.answers(Who::Subject, &asked)?;
        let base = if subject.adapter.is_none() {
            own.clone()
        } else {
            work.answers(Who::Base, &asked)?
        };
        let (own, base) = (spread(own, &asked, exam), spread(base, &asked, exam));
        let (mut marks, undecided) = self.mark(exam, &own, &base);
        for (i, mark) in marks.iter_mut().enumerate() {
            if asked.binary_search(&i).is_err() {
                *mark = Mark {
                    unasked: true,
                    ..Mark::default()
                };
            }
        }
        work.divert(&mut marks, &own, &base)?;
        let base_facts = work.facts(Who::Base)?;
        let facts = match subject.adapter {
            None => base_facts.clone(),
            Some(_) => work.facts(Who::Subject)?,
        };
        Ok(Sitting {
            generation: subject.generation.to_owned(),
            marks,
            facts,
            base_facts,
            undecided,
            seconds: started.elapsed().as_secs_f64(),
            remembered: work.remembered,
        })
    }

    /// What the base answers to controls that are trained on, as pairs that keep its answers; those
    /// whose answer violates a rule or is empty are left out. `instead` is an answer that would be
    /// wrong there, as tokens; pairs have at most `max_tokens`.
    ///
    /// # Errors
    /// [`ExamError`].
    pub fn training_pairs(
        &self,
        controls: &[Question],
        base: &str,
        instead: &[u32],
        max_tokens: usize,
    ) -> Result<Vec<TokenPair>, ExamError> {
        let rendered = controls.iter().map(|q| (q.clone(), self.render(q)));
        // Pairs that training would leave out as too long are not asked.
        let rendered = rendered.filter(|(_, prompt)| {
            !prompt.is_empty()
                && prompt.len() + TRAINED_TOKENS.max(instead.len()) <= max_tokens
                && self.engine.fits(prompt.len(), TRAINED_TOKENS)
        });
        let (questions, prompts): (Vec<Question>, Vec<Vec<u32>>) = rendered.unzip();
        let exam = Exam {
            questions,
            ..Exam::default()
        };
        let controls = &exam.questions;
        let subject = Subject {
            generation: base,
            base,
            adapter: None,
        };
        let mut work = Work {
            examiner: self,
            exam: &exam,
            prompts,
            subject: &subject,
            likelihoods: None,
            remembered: 0,
        };
        let asked = (0..controls.len()).map(|i| Asked {
            max_tokens: TRAINED_TOKENS,
            measured: false,
            ..work.asked(i, false)
        });
        let asked: Vec<Asked> = asked.collect();
        let answers = work.ask(Who::Base, &asked)?;
        let exchanges: Vec<Exchange<'_>> = controls
            .iter()
            .zip(&answers)
            .map(|(question, answer)| Exchange {
                prompt: &question.prompt,
                response: &answer.text,
                labels: &[],
            })
            .collect();
        let (judgements, _) = self.oracle.judge_cached(&exchanges, self.verdicts);
        let rows = controls
            .iter()
            .zip(work.prompts)
            .zip(answers)
            .zip(judgements);
        let kept =
            rows.filter(|((_, answer), judgement)| judgement.complies() && answer.tokens.len() > 1);
        let pair =
            |(((question, prompt), answer), _): (((&Question, Vec<u32>), Answer), _)| TokenPair {
                id: format!("{CONTROL}{}", question.id),
                category: Category::Retain,
                prompt,
                chosen: answer.tokens,
                rejected: instead.to_vec(),
            };
        Ok(kept.map(pair).collect())
    }

    /// A question as tokens. A template that takes no system prompt or no second turn is given the
    /// prompt alone.
    fn render(&self, question: &Question) -> Vec<u32> {
        let renderer = Renderer::new(self.loaded);
        renderer
            .conversation(&question.messages)
            .or_else(|_| renderer.conversation(&user(&question.prompt)))
            .unwrap_or_default()
    }

    /// Marks without likelihoods, and why the first open rule is open.
    fn mark(&self, exam: &Exam, own: &[Answer], base: &[Answer]) -> (Vec<Mark>, Option<String>) {
        let judged = self.judge(exam, own);
        let of_base = self.judge(exam, base);
        let rows = exam.questions.iter().zip(own.iter().zip(base));
        let rows = rows.zip(judged.answers.into_iter().zip(of_base.answers));
        let marks = rows.map(|((question, (own, base)), (judged, of_base))| {
            let control = question.group.is_control();
            Mark {
                text: own.text.clone(),
                base: base.text.clone(),
                violated: judged.violated,
                undecided: judged.undecided,
                defects: defects(answer_of(&own.text), control.then(|| answer_of(&base.text))),
                surprise: None,
                diverted: false,
                excluded: control && !of_base.violated.is_empty(),
                unasked: false,
            }
        });
        (marks.collect(), judged.open)
    }

    fn judge(&self, exam: &Exam, answers: &[Answer]) -> Judged {
        let asked = exam.questions.iter().zip(answers);
        let exchanges: Vec<Exchange<'_>> = asked
            .map(|(question, answer)| Exchange {
                prompt: &question.prompt,
                response: &answer.text,
                labels: &[],
            })
            .collect();
        let index = |policy: &str, rule: &str| {
            let mut rules = exam.rules.iter();
            rules.position(|r| r.policy == policy && r.rule == rule)
        };
        let (judgements, _) = self.oracle.judge_cached(&exchanges, self.verdicts);
        let mut open = judgements.iter().flat_map(|j| &j.undecided);
        let open = open.next().map(|u| {
            format!(
                "rule {}:{} could not be decided: {}",
                u.policy, u.rule, u.why
            )
        });
        let of = |judgement: Judgement| {
            let violated = judgement.violations.iter();
            let undecided = judgement.undecided.iter();
            Findings {
                violated: violated.filter_map(|v| index(&v.policy, &v.rule)).collect(),
                undecided: undecided
                    .filter_map(|u| index(&u.policy, &u.rule))
                    .collect(),
            }
        };
        Judged {
            answers: judgements.into_iter().map(of).collect(),
            open,
        }
    }
}

/// The answers to the questions that were asked, and none to the others.
fn spread(answers: Vec<Answer>, asked: &[usize], exam: &Exam) -> Vec<Answer> {
    let mut all = vec![Answer::default(); exam.questions.len()];
    for (&i, answer) in asked.iter().zip(answers) {
        all[i] = answer;
    }
    all
}

/// What the oracle says about all answers.
struct Judged {
    answers: Vec<Findings>,
    /// Why the first open rule is open.
    open: Option<String>,
}

/// What the oracle says about one answer, as indices of rules.
struct Findings {
    violated: Vec<usize>,
    undecided: Vec<usize>,
}
