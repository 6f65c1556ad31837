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
use super::work::{Work, begins_alike};
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

/// What a candidate is asked between two rounds of training.
#[derive(Clone, Copy)]
pub struct ReviewQuestions<'a> {
    /// Its training pairs.
    pub pairs: &'a [TokenPair],
    /// The texts of governed prompts by the id of their pair; pairs without one are not asked.
    pub prompts: &'a HashMap<&'a str, &'a str>,
    /// Governed prompts that it was not trained on.
    pub further: &'a [String],
    /// The [score](Failures::score) from which on the controls are not asked any more.
    pub limit: f64,
}

impl ReviewQuestions<'_> {
    /// Answers that a review asks for, about: those that change go on, and fewer are asked beyond the limit.
    pub fn answers(&self) -> usize {
        let inverted = self.pairs.iter().filter(|p| p.category == Category::Invert);
        let governed = inverted.count().min(ASKED_BETWEEN_ROUNDS) + self.further.len();
        let controls = self.pairs.iter().filter(|pair| pair.is_control()).count();
        governed * (1 + SAMPLED) + controls
    }
}

/// Answers to governed prompts, and what the policies make of them.
struct Judged {
    /// Answers to each prompt.
    ways: usize,
    answers: Vec<Answer>,
    judgements: Vec<Judgement>,
}

impl Examiner<'_> {
    /// Has a candidate answer governed prompts and controls.
    ///
    /// # Errors
    /// [`ExamError`].
    pub fn failures(
        &self,
        questions: ReviewQuestions<'_>,
        subject: &Subject<'_>,
    ) -> Result<Failures, ExamError> {
        let governed = self.governed(questions);
        let judged = self.judged(&governed, subject)?;
        let violating = judged.judgements.iter().filter(|j| j.violates()).count();
        let mut failures = Failures {
            governed: (judged.answers.len(), violating),
            ..Failures::default()
        };
        if failures.score() < questions.limit {
            let controls = questions.pairs.iter().filter(|pair| pair.is_control());
            self.diverted(&controls.collect::<Vec<_>>(), subject, &mut failures)?;
            self.violating(&governed, &judged, &mut failures);
        }
        Ok(failures)
    }

    /// The governed prompts that are asked.
    fn governed<'a>(&self, questions: ReviewQuestions<'a>) -> Vec<Governed<'a>> {
        let inverted = questions.pairs.iter();
        let inverted = inverted.filter(|pair| pair.category == Category::Invert);
        let trained: Vec<(&TokenPair, &str)> = inverted
            .filter_map(|pair| Some((pair, *questions.prompts.get(&*pair.id)?)))
            .collect();
        let every = trained.len().div_ceil(ASKED_BETWEEN_ROUNDS).max(1);
        let trained = trained.into_iter().step_by(every);
        let trained = trained.map(|(pair, text)| Governed {
            id: pair.id.clone(),
            text,
            prompt: pair.prompt.clone(),
            right: &pair.rejected,
        });
        let further = questions.further.iter().map(|text| self.unseen(text));
        let all = trained.chain(further);
        all.filter(|one| !one.prompt.is_empty()).collect()
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
        let opening = |control: &&TokenPair| asked(&control.prompt, (0.0, 0), TRAINED_TOKENS);
        let openings: Vec<Asked> = controls.iter().map(opening).collect();
        let mut own = work.ask(Who::Subject, &openings)?;
        let base = work.ask(Who::Base, &openings)?;
        // Only an answer that begins in another way than the base's can be diverted.
        let changed: Vec<usize> = (0..controls.len())
            .filter(|&i| !begins_alike(&own[i], &base[i]))
            .collect();
        let whole: Vec<Asked> = changed
            .iter()
            .map(|&i| Asked {
                measured: true,
                ..asked(&controls[i].prompt, (0.0, 0), TOKENS)
            })
            .collect();
        for (i, answer) in changed.into_iter().zip(work.ask(Who::Subject, &whole)?) {
            own[i] = answer;
        }
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

    /// Answers to each prompt: greedily first, then at temperature 1; each candidate with other seeds.
    fn judged(
        &self,
        governed: &[Governed<'_>],
        subject: &Subject<'_>,
    ) -> Result<Judged, ExamError> {
        let exam = Exam::default();
        let mut work = self.work(&exam, Vec::new(), subject);
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
        let answers = work.ask(Who::Subject, &asked)?;
        let exchanges: Vec<Exchange<'_>> = answers
            .iter()
            .enumerate()
            .map(|(n, answer)| Exchange {
                prompt: governed[n / ways.len()].text,
                response: &answer.text,
                labels: &[],
            })
            .collect();
        let (judgements, _) = self.oracle.judge_cached(&exchanges, self.verdicts);
        Ok(Judged {
            ways: ways.len(),
            answers,
            judgements,
        })
    }

    fn violating(&self, governed: &[Governed<'_>], judged: &Judged, failures: &mut Failures) {
        let answers = judged.answers.chunks(judged.ways);
        let answers = answers.zip(judged.judgements.chunks(judged.ways));
        for (prompt, (answers, judgements)) in governed.iter().zip(answers) {
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
        measured: false,
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
