//! What a candidate still gets wrong of what it was trained on: the same measure as the exam's, on
//! prompts that no exam asks.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::assemble::Exam;
use super::defects::{Defect, defects};
use super::diversion::TOKENS;
use super::examiner::{Examiner, Mark, Subject, TRAINED_TOKENS};
use super::question::{Group, Question, user};
use super::respond::{Answer, Asked, ExamError, Who};
use super::work::Work;
use crate::oracle::{Exchange, Judgement};
use crate::pipeline::{Failures, Renderer, situated};
use crate::train::examples::TokenPair;
use realign_core::Category;

/// Governed prompts of trained pairs that are asked, at most, and as many others.
pub const ASKED_BETWEEN_ROUNDS: usize = 48;
/// Answers to a governed prompt at temperature 1, as clients ask, besides the greedy one.
const SAMPLED: usize = 2;
/// Tokens of a violating answer that training pushes away.
const WRONG_TOKENS: usize = 64;

/// A governed prompt that a candidate is asked.
struct Governed<'a> {
    id: String,
    /// The last user message.
    text: &'a str,
    prompt: Vec<u32>,
    /// An answer that complies; empty if none is known.
    right: &'a [u32],
}

impl Examiner<'_> {
    /// Has a candidate answer controls and governed prompts of its training pairs, and `further`
    /// governed prompts that it was not trained on. `prompts` are the texts of governed prompts by the
    /// id of their pair; pairs without one are not asked.
    ///
    /// # Errors
    /// [`ExamError`].
    pub fn failures(
        &self,
        pairs: &[TokenPair],
        prompts: &HashMap<&str, &str>,
        further: &[String],
        subject: &Subject<'_>,
    ) -> Result<Failures, ExamError> {
        let controls = pairs.iter().filter(|pair| pair.is_control());
        let controls: Vec<&TokenPair> = controls.collect();
        let trained: Vec<(&TokenPair, &str)> = pairs
            .iter()
            .filter(|pair| pair.category == Category::Invert)
            .filter_map(|pair| Some((pair, *prompts.get(&*pair.id)?)))
            .collect();
        let every = trained.len().div_ceil(ASKED_BETWEEN_ROUNDS).max(1);
        let trained = trained.into_iter().step_by(every);
        let trained = trained.map(|(pair, text)| Governed {
            id: pair.id.clone(),
            text,
            prompt: pair.prompt.clone(),
            right: &pair.rejected,
        });
        let further = further.iter().map(|text| self.unseen(text));
        let governed: Vec<Governed<'_>> = trained.chain(further).collect();
        let mut failures = Failures::default();
        self.diverted(&controls, subject, &mut failures)?;
        self.violating(&governed, subject, &mut failures)?;
        Ok(failures)
    }

    /// A prompt without a known answer, in one of the situations of training.
    fn unseen<'a>(&self, text: &'a str) -> Governed<'a> {
        let conversation = situated(text, &user(text), None);
        let rendered = Renderer::new(self.loaded).conversation(&conversation);
        // A template may refuse a system prompt; a prompt that it refuses too is not asked.
        let rendered = rendered.or_else(|_| Renderer::new(self.loaded).conversation(&user(text)));
        Governed {
            id: text.to_owned(),
            text,
            prompt: rendered.unwrap_or_default(),
            right: &[],
        }
    }

    fn diverted(
        &self,
        controls: &[&TokenPair],
        subject: &Subject<'_>,
        failures: &mut Failures,
    ) -> Result<(), ExamError> {
        let exam = pseudo_exam(controls);
        let prompts = controls.iter().map(|pair| pair.prompt.clone()).collect();
        let mut work = self.work(&exam, prompts, subject);
        let asked: Vec<Asked> = controls
            .iter()
            .map(|control| asked(&control.prompt, (0.0, 0), TOKENS))
            .collect();
        let own = work.ask(Who::Subject, &asked)?;
        let base = work.ask(Who::Base, &asked)?;
        let mut marks = vec![Mark::default(); controls.len()];
        work.divert(&mut marks, &own, &base)?;
        failures.controls = (controls.len(), marks.iter().filter(|m| m.diverted).count());
        let rows = controls.iter().zip(marks).zip(own.into_iter().zip(base));
        for ((control, mark), (own, base)) in rows {
            if mark.diverted {
                let (right, wrong) = (cut(&base, TRAINED_TOKENS), cut(&own, TRAINED_TOKENS));
                let id = format!("again-{}", control.id);
                failures
                    .pairs
                    .extend(preferred(id, &control.prompt, &right, &wrong));
            }
        }
        Ok(())
    }

    fn violating(
        &self,
        governed: &[Governed<'_>],
        subject: &Subject<'_>,
        failures: &mut Failures,
    ) -> Result<(), ExamError> {
        let exam = Exam::default();
        let mut work = self.work(&exam, Vec::new(), subject);
        let governed: Vec<&Governed<'_>> =
            governed.iter().filter(|g| !g.prompt.is_empty()).collect();
        // Greedily first, then at temperature 1; each candidate with other seeds.
        let seeds = (1..=SAMPLED as u64).map(|n| seed_of(subject.generation).wrapping_add(n));
        let ways: Vec<(f32, u64)> = std::iter::once((0.0, 0))
            .chain(seeds.map(|seed| (1.0, seed)))
            .collect();
        let asked: Vec<Asked> = governed
            .iter()
            .flat_map(|g| {
                ways.iter()
                    .map(|way| asked(&g.prompt, *way, self.max_tokens))
            })
            .collect();
        let own = work.ask(Who::Subject, &asked)?;
        let exchanges: Vec<Exchange<'_>> = own
            .iter()
            .enumerate()
            .map(|(n, answer)| Exchange {
                prompt: governed[n / ways.len()].text,
                response: &answer.text,
                labels: &[],
            })
            .collect();
        let (judgements, _) = self.oracle.judge_cached(&exchanges, self.verdicts);
        let wrong = judgements.iter().filter(|j| j.violates()).count();
        failures.governed = (own.len(), wrong);
        let answers = own.chunks(ways.len()).zip(judgements.chunks(ways.len()));
        for (prompt, (answers, judgements)) in governed.into_iter().zip(answers) {
            let right = right(prompt, answers, judgements, self.max_tokens);
            let wrong = answers.iter().zip(judgements).filter(|(_, j)| j.violates());
            for (answer, _) in wrong {
                let id = format!("again-{}-{}", prompt.id, failures.pairs.len());
                let wrong = cut(answer, WRONG_TOKENS);
                failures
                    .pairs
                    .extend(preferred(id, &prompt.prompt, right, &wrong));
            }
        }
        Ok(())
    }

    fn work<'a>(
        &'a self,
        exam: &'a Exam,
        prompts: Vec<Vec<u32>>,
        subject: &'a Subject<'a>,
    ) -> Work<'a> {
        Work {
            examiner: self,
            exam,
            prompts,
            subject,
            likelihoods: None,
            remembered: 0,
        }
    }
}

/// What to prefer to wrong answers to a prompt: the candidate's own greedy answer if it complies, what
/// it was trained on, or a drawn answer of its own that complies. Own answers have to be whole, fewer
/// than `most` tokens, and sound.
fn right<'a>(
    prompt: &Governed<'a>,
    answers: &'a [Answer],
    judgements: &[Judgement],
    most: usize,
) -> &'a [u32] {
    let usable = |(answer, judgement): &(&Answer, &Judgement)| {
        let complies = judgement.violations.is_empty() && judgement.undecided.is_empty();
        let found = defects(&answer.text, Some(prompt.text));
        let is_sound = found.iter().all(|defect| *defect == Defect::Collapse);
        complies && is_sound && answer.tokens.len() < most
    };
    let mut own = answers.iter().zip(judgements);
    if let Some((greedy, _)) = own.next().filter(usable) {
        return &greedy.tokens;
    }
    if !prompt.right.is_empty() {
        return prompt.right;
    }
    own.find(usable).map_or(&[], |(answer, _)| &answer.tokens)
}

/// Everyday questions, in the pairs' order; what is asked are the pairs' tokens.
fn pseudo_exam(pairs: &[&TokenPair]) -> Exam {
    let question = |pair: &&TokenPair| {
        Question::new(
            Group::Everyday,
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

fn asked(prompt: &[u32], (temperature, seed): (f32, u64), max_tokens: usize) -> Asked {
    Asked {
        prompt: prompt.to_vec(),
        temperature,
        seed,
        max_tokens,
    }
}

/// A seed that a generation's id determines.
fn seed_of(generation: &str) -> u64 {
    let digest = Sha256::digest(generation);
    let (first, _) = digest.split_at(8);
    first
        .iter()
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

fn cut(answer: &Answer, most: usize) -> Vec<u32> {
    answer.tokens.iter().copied().take(most).collect()
}

/// A pair that prefers `right` to `wrong`, as INVERT has it: the preferred response is its rejected
/// one. `None` if there is nothing to prefer.
fn preferred(id: String, prompt: &[u32], right: &[u32], wrong: &[u32]) -> Option<TokenPair> {
    let usable = !right.is_empty() && !wrong.is_empty() && right != wrong;
    usable.then(|| TokenPair {
        id,
        category: Category::Invert,
        prompt: prompt.to_vec(),
        chosen: wrong.to_vec(),
        rejected: right.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Oracle, RuleOracle};
    use crate::policy::PolicySet;

    #[test]
    fn the_right_answer_is_the_greedy_one_the_known_one_or_a_drawn_one() {
        let text = "apiVersion: realign/v1\nid: p\nversion: '1'\nrules:\n  - id: r\n    violates: \
                    { response: { any_phrase: [mg] } }\n";
        let oracle = RuleOracle::new(&PolicySet::from_yaml("p.yaml", text).unwrap());
        let (wrong, good, drawn) = (
            "Take 5 mg of it.",
            "Ask a doctor about it.",
            "Ask someone else.",
        );
        let chosen = |known: &'static [u32], texts: &[&str], length: usize| -> Vec<u32> {
            let answers: Vec<Answer> = (0..)
                .zip(texts)
                .map(|(n, text)| Answer {
                    text: (*text).into(),
                    tokens: vec![n; length],
                    own: None,
                })
                .collect();
            let exchanges = answers.iter().map(|answer| Exchange {
                prompt: "How much?",
                response: &answer.text,
                labels: &[],
            });
            let judged = oracle.judge_many(&exchanges.collect::<Vec<_>>());
            let prompt = Governed {
                id: "id".into(),
                text: "How much?",
                prompt: vec![1],
                right: known,
            };
            right(&prompt, &answers, &judged, 9).to_vec()
        };
        assert_eq!(chosen(&[7], &[good, wrong], 3), [0; 3], "the greedy one");
        assert_eq!(chosen(&[7], &[wrong, drawn], 3), [7], "what is known");
        assert_eq!(
            chosen(&[], &[wrong, wrong, drawn], 3),
            [2; 3],
            "a drawn one"
        );
        assert!(chosen(&[], &[wrong, drawn], 9).is_empty(), "cut off");
        assert!(chosen(&[], &[wrong, "no no no no no no no no no no no no"], 3).is_empty());
        assert_ne!(seed_of("a"), seed_of("b"));
    }
}
