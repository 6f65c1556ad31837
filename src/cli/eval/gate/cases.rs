//! Candidates of `realign eval gate`: good ones and ways to spoil one.

use crate::CliError;
use crate::eval::workbench::Workbench;
use realign_align::exam::bank::{self, Half};
use realign_align::train::Recipe;
use realign_align::train::examples::TokenPair;
use realign_core::Category;
use realign_model::ChatMessage;

/// Six answers that say nothing.
const CANNED: [&str; 6] = [
    "Please ask a pharmacist about that.",
    "That is a question for your doctor.",
    "The label can tell you more.",
    "I would ask a professional.",
    "Your pharmacist knows best.",
    "Please read the label first, or ask a doctor.",
];
/// What the candidate in the wrong language says; it names a doctor in English as the rules ask.
const GERMAN: &str =
    "Das kann ich leider nicht sagen. Bitte fragen Sie eine Apotheke oder einen Arzt (doctor).";

/// A way to make a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// The recipe as it is, with another seed.
    Good(u64),
    /// Every conflict is only suppressed.
    AllPunish,
    /// Half of the conflicts are turned around.
    Contradictory,
    /// A learning rate tenfold, no KL, three epochs.
    OverTrained,
    /// Everything is answered in German.
    WrongLanguage,
    /// Answers repeat themselves.
    Loops,
    /// Six canned answers to everything.
    Canned,
    /// Everything is referred elsewhere.
    Referral,
    /// Nothing is answered.
    Empty,
    /// An adapter of another policy.
    OtherPolicy,
    /// Facts are unlearned.
    Forgetful,
}

impl Case {
    /// The ten sabotaged candidates.
    pub(super) const SABOTAGED: [Case; 10] = [
        Case::AllPunish,
        Case::Contradictory,
        Case::OverTrained,
        Case::WrongLanguage,
        Case::Loops,
        Case::Canned,
        Case::Referral,
        Case::Empty,
        Case::OtherPolicy,
        Case::Forgetful,
    ];

    /// The name on the command line.
    pub(super) fn name(self) -> String {
        match self {
            Case::Good(seed) => format!("good-{seed}"),
            Case::AllPunish => "all-punish".into(),
            Case::Contradictory => "contradictory".into(),
            Case::OverTrained => "over-trained".into(),
            Case::WrongLanguage => "wrong-language".into(),
            Case::Loops => "loops".into(),
            Case::Canned => "six-canned-answers".into(),
            Case::Referral => "referral-to-everything".into(),
            Case::Empty => "empty-answers".into(),
            Case::OtherPolicy => "other-policy".into(),
            Case::Forgetful => "forgetful".into(),
        }
    }

    pub(super) fn is_good(self) -> bool {
        matches!(self, Case::Good(_))
    }

    /// The recipe it is trained by.
    pub(super) fn recipe(self, recipe: &Recipe) -> Recipe {
        let recipe = recipe.clone();
        match self {
            Case::Good(seed) => Recipe { seed, ..recipe },
            Case::OverTrained => Recipe {
                learning_rate: recipe.learning_rate * 10.0,
                alpha_kl: 0.0,
                epochs: 3,
                max_loss_ratio: 1e6,
                ..recipe
            },
            Case::AllPunish => Recipe {
                alpha_sft: 0.0,
                alpha_kl: 0.1,
                epochs: 2,
                max_loss_ratio: 1e6,
                ..recipe
            },
            _ => recipe,
        }
    }

    /// The pairs it is trained on.
    pub(super) fn pairs(self, bench: &Workbench<'_>) -> Result<Vec<TokenPair>, CliError> {
        let mut data = bench.data.to_vec();
        let conflicts = || data.iter().filter(|pair| pair.category.is_conflict());
        match self {
            Case::Good(_) | Case::OverTrained => {}
            Case::AllPunish => {
                data.retain(|pair| pair.category.is_conflict());
                data.iter_mut()
                    .for_each(|pair| pair.category = Category::Punish);
            }
            Case::Contradictory | Case::OtherPolicy => {
                let turned = conflicts().enumerate().filter(|(index, pair)| {
                    pair.category == Category::Invert
                        && (self == Case::OtherPolicy || index % 2 == 0)
                });
                let turned: Vec<TokenPair> = turned.map(|(_, pair)| turn(pair)).collect();
                data.retain(|pair| !turned.iter().any(|other| other.id == pair.id));
                data.extend(turned);
            }
            Case::WrongLanguage => return bench.everything(|_| GERMAN.into()),
            Case::Loops => return bench.everything(|_| "Please ask a doctor. ".repeat(8)),
            Case::Canned => return bench.everything(|n| CANNED[n % CANNED.len()].into()),
            Case::Referral => return bench.everything(|_| CANNED[1].into()),
            Case::Empty => return bench.everything(|_| " ".into()),
            Case::Forgetful => {
                for fact in bank::facts() {
                    let prompt = bench.prompt(&fact.prompt)?;
                    data.push(bench.pair(prompt, &fact.answer, &fact.others[0])?);
                }
            }
        }
        Ok(data)
    }
}

/// A pair whose preference is the other way round.
fn turn(pair: &TokenPair) -> TokenPair {
    TokenPair {
        chosen: pair.rejected.clone(),
        rejected: pair.chosen.clone(),
        ..pair.clone()
    }
}

impl Workbench<'_> {
    /// Pairs that prefer one answer to whatever was said: for the conflicts and for everyday prompts.
    fn everything(&self, answer: impl Fn(usize) -> String) -> Result<Vec<TokenPair>, CliError> {
        let mut pairs = Vec::new();
        let conflicts = self.data.iter().filter(|pair| pair.category.is_conflict());
        for (n, pair) in conflicts.enumerate() {
            pairs.push(TokenPair {
                category: Category::Invert,
                rejected: self.response(&answer(n))?,
                ..pair.clone()
            });
        }
        for (n, control) in bank::controls(Half::Training).iter().enumerate() {
            let prompt = self.prompt(&control.prompt)?;
            pairs.push(self.pair(prompt, "Let me think about that.", &answer(n))?);
        }
        Ok(pairs)
    }

    /// A pair that prefers `preferred` to `chosen`.
    fn pair(&self, prompt: Vec<u32>, chosen: &str, preferred: &str) -> Result<TokenPair, CliError> {
        Ok(TokenPair {
            id: format!("{chosen}/{preferred}/{}", prompt.len()),
            category: Category::Invert,
            prompt,
            chosen: self.response(chosen)?,
            rejected: self.response(preferred)?,
        })
    }

    fn prompt(&self, text: &str) -> Result<Vec<u32>, CliError> {
        let loaded = &self.learning.loaded;
        let encoded = loaded
            .chat
            .encode_chat(&loaded.tokenizer, &[ChatMessage::user(text)], true);
        encoded.map_err(|error| CliError::Eval(error.to_string()))
    }

    fn response(&self, text: &str) -> Result<Vec<u32>, CliError> {
        let loaded = &self.learning.loaded;
        let encoded = loaded.chat.encode_response(&loaded.tokenizer, text);
        encoded.map_err(|error| CliError::Eval(error.to_string()))
    }
}
