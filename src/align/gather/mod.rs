//! Gathering: pairs that the server makes itself where a rule is missed and the data has few pairs to
//! learn it from.
//!
//! ```text
//! prompts: rules' examples, policies' prompts:, data, bank, and what the model writes in their style
//!    │    (never what an exam asks)
//!    ▼
//! answers of what serves, judged ─▶ some violate, some comply
//!    │                      some violate: asked again with the policy's text and complying examples;
//!    │                      none complies: the endpoint is asked
//!    ▼
//! INVERT: a violating answer against a complying one; PUNISH: two violating ones
//! ```
//!
//! It knows no engine and no server: a [`Speaker`] answers, an [`Oracle`] judges. The same inputs and
//! the same answers give the same pairs.

mod answers;
mod case;
mod choose;
mod further;
mod model;
mod prompts;
mod report;
mod speaker;
#[cfg(test)]
mod tests;
mod types;
mod vary;
mod write;

use sha2::{Digest, Sha256};

pub use further::further;
pub use model::ModelSpeaker;
pub use report::{AnswerCounts, PairCounts, PromptCounts, Report, RuleReport};
pub use speaker::{Ask, Phase, Put, Said, Speaker};
pub use types::{
    AnswerSource, GatherError, Gathered, GatheredPair, PromptSource, Settings, Sources,
};
pub use write::assemble_exam;

use crate::exam::about::{Rules, concerns};
use crate::exam::{Standing, Who, message};
use crate::oracle::corrective::Corrective;
use crate::oracle::{Exchange, Oracle};
use crate::pipeline::Corrector;
use crate::policy::Severity;
use crate::preferences::{LineSource, Message, Pair, Role, functions, pair_id};
use crate::triage::TriagedPair;
use answers::clean;
use case::Case;
use prompts::Prompt;
use realign_core::Category;

/// Bumped when the same inputs would give other pairs.
const VERSION: &str = "gather/2";
/// Temperature of everything that is drawn: at 1, small models lose the thread.
const TEMPERATURE: f32 = 0.7;

/// Whether any rule needs pairs.
pub fn is_needed(sources: &Sources<'_>, settings: Settings) -> bool {
    let rules = Rules::new(sources.policies, 0.0);
    !needed(sources, settings, &rules).is_empty()
}

/// The rules that need pairs, as `policy:rule`.
pub fn lacking(sources: &Sources<'_>, settings: Settings) -> Vec<String> {
    let rules = Rules::new(sources.policies, 0.0);
    let needed = needed(sources, settings, &rules).into_iter();
    needed.map(|index| rules.0[index].exam.name()).collect()
}

/// Gathers pairs for the rules that need them.
///
/// # Errors
/// [`GatherError`]; answers are remembered by the speaker.
pub fn gather(
    sources: Sources<'_>,
    settings: Settings,
    oracle: &dyn Oracle,
    speaker: &dyn Speaker,
    corrector: Option<&Corrector<'_>>,
) -> Result<Gathered, GatherError> {
    let rules = Rules::new(sources.policies, 0.0);
    let needed = needed(&sources, settings, &rules);
    if needed.is_empty() {
        return Ok(Gathered::default());
    }
    let mut run = Gathering {
        sources,
        settings,
        oracle,
        speaker,
        rules,
        needed,
        counts: AnswerCounts::default(),
    };
    let prompts = run.prompts()?;
    let mut cases = run.answer(prompts)?;
    run.tell(&mut cases)?;
    if let Some(corrector) = corrector {
        run.correct(&mut cases, corrector)?;
    }
    run.rank(&mut cases)?;
    Ok(run.finish(&cases))
}

/// Indices of the rules that decide, that what serves does not meet, and that the data has few INVERT
/// pairs for.
fn needed(sources: &Sources<'_>, settings: Settings, rules: &Rules<'_>) -> Vec<usize> {
    let is_needed = |index: &usize| {
        let decides = rules.0[*index].exam.severity >= Severity::Standard;
        let meets = sources.standings.get(*index) == Some(&Standing::Meets);
        decides && !meets && conflicts(sources, rules, *index) < settings.min_conflicts
    };
    (0..rules.0.len()).filter(is_needed).collect()
}

/// Number of INVERT pairs that are trained on and that a rule is about.
fn conflicts(sources: &Sources<'_>, rules: &Rules<'_>, index: usize) -> usize {
    let owned = &rules.0[index];
    let items = sources.train.iter();
    let items = items.filter_map(|&at| sources.triage.items.get(at));
    let is_usable = |item: &&TriagedPair| {
        let prompt = sources.pairs[item.index].prompt_text();
        item.category == Category::Invert && owned.is_about(prompt, || concerns(item, owned))
    };
    items.filter(is_usable).count()
}

/// One gathering while it goes on.
struct Gathering<'a> {
    sources: Sources<'a>,
    settings: Settings,
    oracle: &'a dyn Oracle,
    speaker: &'a dyn Speaker,
    rules: Rules<'a>,
    needed: Vec<usize>,
    counts: AnswerCounts,
}

impl Gathering<'_> {
    /// Answers of what serves to every prompt.
    fn answer(&mut self, prompts: Vec<Prompt>) -> Result<Vec<Case>, GatherError> {
        let mut cases: Vec<Case> = prompts.into_iter().map(Case::new).collect();
        let samples = self.settings.samples_per_prompt;
        let conversations: Vec<Vec<Message>> = cases
            .iter()
            .flat_map(|c| std::iter::repeat_n(c.prompt.conversation.clone(), samples))
            .collect();
        let all: Vec<usize> = (0..cases.len()).collect();
        let answers = self.draw(Phase::Answer, &conversations)?;
        self.sort(&mut cases, &all, &answers, AnswerSource::Own);
        Ok(cases)
    }

    /// Where answers violate, the model is asked again and told what the policy wants. Its answers are
    /// judged, and trained on, without that.
    fn tell(&mut self, cases: &mut [Case]) -> Result<(), GatherError> {
        let violates = |i: &usize| !cases[*i].violating.is_empty();
        let open: Vec<usize> = (0..cases.len()).filter(violates).collect();
        let samples = self.settings.samples_per_prompt;
        let conversations: Vec<Vec<Message>> = open
            .iter()
            .flat_map(|&i| (0..samples).map(move |sample| (i, sample)))
            .map(|(i, sample)| self.told(&cases[i], sample))
            .collect();
        let answers = self.draw(Phase::Tell, &conversations)?;
        self.sort(cases, &open, &answers, AnswerSource::Told);
        Ok(())
    }

    /// A case's conversation behind the text of the policy that it violates and behind complying examples,
    /// as if they were earlier turns: a small model follows those better than a text about them.
    fn told(&self, case: &Case, sample: usize) -> Vec<Message> {
        let text = prompts::policy_text(&self.rules, &case.violated);
        let examples = prompts::shown(&self.rules, &case.violated, sample);
        let examples = examples.into_iter().flat_map(|example| {
            let answer = message(Role::Assistant, example.response.trim());
            [message(Role::User, example.prompt.trim()), answer]
        });
        let turns = case.prompt.conversation.iter().cloned();
        let mut told = message(Role::System, &text);
        let functions = functions(&case.prompt.conversation);
        if !functions.is_empty() {
            // They may be noted on the system's message, which is left out, and must be there once.
            told.calling_mut().functions = functions;
        }
        let turns = turns.map(Message::without_functions);
        std::iter::once(told)
            .chain(examples)
            .chain(turns.filter(|turn| turn.role != Role::System))
            .collect()
    }

    /// Answers to conversations, of which each case has as many as samples are drawn, as one batch.
    fn draw(
        &mut self,
        phase: Phase,
        conversations: &[Vec<Message>],
    ) -> Result<Vec<Vec<Said>>, GatherError> {
        let samples = self.settings.samples_per_prompt;
        self.speaker.enter(phase, conversations.len());
        let ask = |(n, conversation): (usize, &Vec<Message>)| Ask {
            put: Put::Chat(conversation.clone()),
            seed: seed(&[
                &format!("{conversation:?}"),
                &(n % samples.max(1)).to_string(),
            ]),
            temperature: TEMPERATURE,
            max_tokens: self.settings.max_tokens,
        };
        let asks: Vec<Ask> = conversations.iter().enumerate().map(ask).collect();
        let said = self.speaker.speak(Who::Subject, &asks)?;
        self.counts.asked += asks.len();
        Ok(said.chunks(samples.max(1)).map(<[Said]>::to_vec).collect())
    }

    /// Judges answers to the cases at `indices` and adds them there. Of answers that come from being
    /// told, only the complying ones count.
    fn sort(
        &mut self,
        cases: &mut [Case],
        indices: &[usize],
        answers: &[Vec<Said>],
        by: AnswerSource,
    ) {
        let rows = indices.iter().zip(answers);
        let rows = rows.flat_map(|(&case, said)| said.iter().map(move |said| (case, said)));
        // What is cut off in the middle of a sentence is judged, and trained on, without that sentence.
        let rows = rows.map(|(case, said)| (case, clean(said), said.text.trim().to_owned()));
        let rows: Vec<(usize, Option<String>, String)> =
            rows.filter(|(_, _, raw)| !raw.is_empty()).collect();
        let exchanges: Vec<Exchange<'_>> = rows
            .iter()
            .map(|(case, clean, raw)| Exchange {
                prompt: &cases[*case].prompt.text,
                response: clean.as_ref().unwrap_or(raw),
                labels: &[],
            })
            .collect();
        let judgements = self.oracle.judge_many(&exchanges);
        for ((case, clean, raw), judgement) in rows.into_iter().zip(judgements) {
            let case = &mut cases[case];
            if judgement.violates() {
                let violated = judgement.violations.iter().filter_map(|v| {
                    let mut needed = self.needed.iter().copied();
                    needed.find(|&i| {
                        self.rules.0[i].exam.policy == v.policy
                            && self.rules.0[i].exam.rule == v.rule
                    })
                });
                let violated: Vec<usize> = violated.collect();
                self.counts.violating += 1;
                if by == AnswerSource::Own && !violated.is_empty() {
                    case.violated.extend(violated);
                    case.violate(clean.unwrap_or(raw));
                }
            } else if !judgement.undecided.is_empty() {
                self.counts.undecided += 1;
            } else {
                self.counts.complying += 1;
                let usable = clean.is_some_and(|text| case.comply(text, by));
                self.counts.unusable += usize::from(!usable);
            }
        }
    }

    /// The corrective endpoint writes answers where the model gave none that complies.
    fn correct(
        &mut self,
        cases: &mut [Case],
        corrector: &Corrector<'_>,
    ) -> Result<(), GatherError> {
        let open: Vec<usize> = (0..cases.len()).filter(|&i| cases[i].is_open()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let (spec, cache) = (corrector.spec.clone(), corrector.cache.clone());
        let corrective = Corrective::prepare(spec, corrector.policies, cache)?;
        let prompts: Vec<&str> = open.iter().map(|&i| &*cases[i].prompt.text).collect();
        let written = corrective.write_all(&prompts, corrector.oracle)?;
        for (i, text) in open.into_iter().zip(written) {
            if let Some(text) = text {
                cases[i].comply(text, AnswerSource::Corrective);
            }
        }
        Ok(())
    }

    /// Puts each case's complying answers in order, the best first.
    fn rank(&self, cases: &mut [Case]) -> Result<(), GatherError> {
        let examples = self
            .needed
            .iter()
            .flat_map(|&i| prompts::complying(&self.rules.0[i]));
        let examples: Vec<&str> = examples.map(|example| example.response.as_str()).collect();
        let usable = |case: &&Case| !case.violating.is_empty();
        let asked: Vec<(Vec<Message>, String)> = cases
            .iter()
            .filter(usable)
            .flat_map(|case| {
                let turns = &case.prompt.conversation;
                case.complying
                    .iter()
                    .map(|(text, _)| (turns.clone(), text.clone()))
            })
            .collect();
        self.speaker.enter(Phase::Rank, asked.len());
        let mut fluency = self.speaker.fluency(&asked)?.into_iter();
        for case in cases.iter_mut().filter(|case| !case.violating.is_empty()) {
            let own = fluency.by_ref().take(case.complying.len()).collect();
            answers::rank(&case.prompt.text, &mut case.complying, own, &examples);
        }
        Ok(())
    }

    fn finish(self, cases: &[Case]) -> Gathered {
        let chosen = choose::choose(cases, self.needed.len(), self.settings.max_pairs);
        let pairs: Vec<GatheredPair> = chosen
            .picks
            .iter()
            .enumerate()
            .map(|(line, pick)| self.pair(&cases[pick.case], pick, line + 1))
            .collect();
        let report = report::report(&self, cases, &pairs, chosen.repeated);
        Gathered {
            pairs,
            report: Some(report),
        }
    }

    fn pair(&self, case: &Case, pick: &choose::Pick, line: usize) -> GatheredPair {
        let (chosen, rejected) = (pick.violating.to_owned(), pick.against.to_owned());
        let prompt = case.prompt.conversation.clone();
        let rules = case
            .violated
            .iter()
            .map(|&rule| self.rules.0[rule].exam.name());
        GatheredPair {
            pair: Pair {
                id: pair_id(&prompt, [(&chosen, &[]), (&rejected, &[])]),
                prompt,
                chosen,
                rejected,
                chosen_labels: Vec::new(),
                rejected_labels: Vec::new(),
                holdout: Some(false),
                source: LineSource {
                    file: "gathered".into(),
                    line,
                },
                calling: None,
            },
            category: match pick.by {
                AnswerSource::None => Category::Punish,
                _ => Category::Invert,
            },
            rules: rules.collect(),
            prompt: case.prompt.source,
            answer: pick.by,
        }
    }

    /// SHA-256 (hex) over everything that the pairs are a function of.
    fn digest(&self, cases: &[Case]) -> String {
        // Settings are numbers, which always serialise.
        let settings = serde_json::to_string(&self.settings).unwrap_or_default();
        let sources = &self.sources;
        let fixed = [
            VERSION,
            &settings,
            sources.policies.revision(),
            sources.digest,
        ];
        let fixed = fixed
            .into_iter()
            .chain([&*sources.exam.hash, sources.generation]);
        let prompts = cases.iter().map(|case| case.prompt.text.as_str());
        let mut hash = Sha256::new();
        for part in fixed.chain(prompts) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex::encode(hash.finalize())
    }
}

/// A seed that depends only on the texts.
fn seed(parts: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for part in std::iter::once(&VERSION).chain(parts) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let bytes: [u8; 32] = hash.finalize().into();
    u64::from_le_bytes([
        bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
    ])
}
