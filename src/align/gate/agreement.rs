//! Target policy agreement: fresh answers to held-out prompts, judged by the oracle.

use serde::Serialize;

use crate::oracle::{Exchange, Oracle};

/// A prompt that was not trained on.
#[derive(Clone, Debug)]
pub struct HeldOutPrompt {
    /// The last user message, which the oracle judges as the prompt.
    pub text: String,
    /// Token ids of the rendered prompt.
    pub tokens: Vec<u32>,
}

/// Judged answers, and the share of them that complies.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    /// Compliant share, 0 to 1.
    pub ratio: f64,
    /// (prompt, answer, complies) in the prompts' order.
    pub answers: Vec<(String, String, bool)>,
}

/// There are no held-out prompts to measure agreement on.
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
        let answers: Vec<_> = prompts
            .iter()
            .zip(answers)
            .map(|(prompt, answer)| {
                let exchange = Exchange {
                    prompt: &prompt.text,
                    response: &answer,
                    labels: &[],
                };
                let complies = oracle.judge(&exchange).complies();
                (prompt.text.clone(), answer, complies)
            })
            .collect();
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
