//! Target policy agreement: fresh answers to held-out prompts, judged by the oracle.

use serde::Serialize;

use crate::oracle::{Exchange, Oracle};

/// A prompt that training never saw.
#[derive(Clone, Debug)]
pub struct HeldOutPrompt {
    /// What the oracle judges as the prompt.
    pub text: String,
    /// The rendered prompt.
    pub tokens: Vec<u32>,
}

/// Answers and how many of them comply.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    /// Compliant share, 0 to 1.
    pub ratio: f64,
    /// (prompt, answer, complies) in the prompts' order.
    pub answers: Vec<(String, String, bool)>,
}

/// Agreement cannot be measured on nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no held-out prompt concerns this policy set: mark pairs with \"meta\": {{\"holdout\": true}} or add data"
)]
pub struct NoPrompts;

impl Agreement {
    /// Judges one answer per prompt, in the prompts' order.
    ///
    /// # Errors
    /// [`NoPrompts`] if there are none.
    pub fn judge(
        prompts: &[HeldOutPrompt],
        answers: Vec<String>,
        oracle: &dyn Oracle,
    ) -> Result<Self, NoPrompts> {
        let judged = prompts.iter().zip(answers).map(|(prompt, answer)| {
            let complies = oracle
                .judge(&Exchange {
                    prompt: &prompt.text,
                    response: &answer,
                    labels: &[],
                })
                .complies();
            (prompt.text.clone(), answer, complies)
        });
        let answers: Vec<_> = judged.collect();
        if answers.is_empty() {
            return Err(NoPrompts);
        }
        let compliant = answers.iter().filter(|a| a.2).count();
        Ok(Self {
            ratio: compliant as f64 / answers.len() as f64,
            answers,
        })
    }
}
