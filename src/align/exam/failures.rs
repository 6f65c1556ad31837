//! What a candidate still gets wrong of what it was trained on: the same measure as the exam's, on
//! prompts that no exam asks.

use std::collections::HashMap;

use super::assemble::Exam;
use super::diversion::TOKENS;
use super::examiner::{Examiner, Mark, Subject, TRAINED_TOKENS};
use super::question::{Group, Question, user};
use super::respond::{Answer, Asked, ExamError, Who};
use super::work::Work;
use crate::oracle::Exchange;
use crate::pipeline::Failures;
use crate::train::examples::TokenPair;
use realign_core::Category;

/// Governed prompts that are asked, at most.
const GOVERNED: usize = 96;
/// Tokens of a violating answer that training pushes away.
const WRONG_TOKENS: usize = 64;

impl Examiner<'_> {
    /// Has a candidate answer controls and governed prompts of its training pairs. `prompts` are the
    /// texts of governed prompts by the id of their pair; pairs without one are not asked.
    ///
    /// # Errors
    /// [`ExamError`].
    pub fn failures(
        &self,
        pairs: &[TokenPair],
        prompts: &HashMap<&str, &str>,
        subject: &Subject<'_>,
    ) -> Result<Failures, ExamError> {
        let controls = pairs.iter().filter(|pair| pair.is_control());
        let controls: Vec<&TokenPair> = controls.collect();
        let governed: Vec<&TokenPair> = pairs
            .iter()
            .filter(|pair| pair.category == Category::Invert && prompts.contains_key(&*pair.id))
            .collect();
        let every = governed.len().div_ceil(GOVERNED).max(1);
        let governed: Vec<&TokenPair> = governed.into_iter().step_by(every).collect();
        let mut failures = Failures::default();
        self.diverted(&controls, subject, &mut failures)?;
        self.violating(&governed, prompts, subject, &mut failures)?;
        Ok(failures)
    }

    fn diverted(
        &self,
        controls: &[&TokenPair],
        subject: &Subject<'_>,
        failures: &mut Failures,
    ) -> Result<(), ExamError> {
        let exam = pseudo_exam(controls, Group::Everyday);
        let mut work = self.work(&exam, controls, subject);
        let asked = requests(controls, TOKENS);
        let own = work.ask(Who::Subject, &asked)?;
        let base = work.ask(Who::Base, &asked)?;
        let mut marks = vec![Mark::default(); controls.len()];
        work.divert(&mut marks, &own, &base)?;
        failures.controls = (controls.len(), marks.iter().filter(|m| m.diverted).count());
        let rows = controls.iter().zip(marks).zip(own.into_iter().zip(base));
        for ((control, mark), (own, base)) in rows {
            if mark.diverted {
                let right = cut(&base, TRAINED_TOKENS);
                failures
                    .pairs
                    .extend(preferred(control, &right, &cut(&own, TRAINED_TOKENS)));
            }
        }
        Ok(())
    }

    fn violating(
        &self,
        governed: &[&TokenPair],
        prompts: &HashMap<&str, &str>,
        subject: &Subject<'_>,
        failures: &mut Failures,
    ) -> Result<(), ExamError> {
        let exam = pseudo_exam(governed, Group::Governed);
        let mut work = self.work(&exam, governed, subject);
        let own = work.ask(Who::Subject, &requests(governed, self.max_tokens))?;
        let exchanges: Vec<Exchange<'_>> = governed
            .iter()
            .zip(&own)
            .map(|(pair, answer)| Exchange {
                prompt: prompts.get(&*pair.id).copied().unwrap_or_default(),
                response: &answer.text,
                labels: &[],
            })
            .collect();
        let (judgements, _) = self.oracle.judge_cached(&exchanges, self.verdicts);
        let wrong: Vec<bool> = judgements
            .iter()
            .map(|j| !j.violations.is_empty())
            .collect();
        failures.governed = (governed.len(), wrong.iter().filter(|wrong| **wrong).count());
        for ((pair, own), wrong) in governed.iter().zip(own).zip(wrong) {
            if wrong {
                failures
                    .pairs
                    .extend(preferred(pair, &pair.rejected, &cut(&own, WRONG_TOKENS)));
            }
        }
        Ok(())
    }

    fn work<'a>(
        &'a self,
        exam: &'a Exam,
        pairs: &[&TokenPair],
        subject: &'a Subject<'a>,
    ) -> Work<'a> {
        Work {
            examiner: self,
            exam,
            prompts: pairs.iter().map(|pair| pair.prompt.clone()).collect(),
            subject,
            likelihoods: None,
            remembered: 0,
        }
    }
}

/// Questions of one group, in the pairs' order; what is asked are the pairs' tokens.
fn pseudo_exam(pairs: &[&TokenPair], group: Group) -> Exam {
    let question = |pair: &&TokenPair| {
        Question::new(
            group,
            super::question::Situation::Plain,
            user(&pair.id),
            Vec::new(),
        )
    };
    Exam {
        questions: pairs.iter().map(question).collect(),
        ..Exam::default()
    }
}

fn requests(pairs: &[&TokenPair], max_tokens: usize) -> Vec<Asked> {
    let request = |pair: &&TokenPair| Asked {
        prompt: pair.prompt.clone(),
        temperature: 0.0,
        seed: 0,
        max_tokens,
    };
    pairs.iter().map(request).collect()
}

fn cut(answer: &Answer, most: usize) -> Vec<u32> {
    answer.tokens.iter().copied().take(most).collect()
}

/// A pair that prefers `right` to `wrong`, as INVERT has it: the preferred response is its rejected
/// one. `None` if there is nothing to prefer.
fn preferred(of: &TokenPair, right: &[u32], wrong: &[u32]) -> Option<TokenPair> {
    let usable = !right.is_empty() && !wrong.is_empty() && right != wrong;
    usable.then(|| TokenPair {
        id: format!("again-{}", of.id),
        category: Category::Invert,
        prompt: of.prompt.clone(),
        chosen: wrong.to_vec(),
        rejected: right.to_vec(),
    })
}
