//! The gate's decision; pure.

use serde::Serialize;

use crate::exam::{Check, Refusal};
use crate::policy::Gate;

/// Measurements of a candidate and of the generation that serves now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Held-out prompts that both answered.
    pub prompts: usize,
    /// Share of compliant answers of the generation that serves now, 0 to 1.
    pub agreement_before: f64,
    /// Share of compliant answers of the candidate, 0 to 1.
    pub agreement_after: f64,
    /// Perplexity of the base model on neutral text.
    pub perplexity_base: f64,
    /// Perplexity of the candidate on the same text.
    pub perplexity_after: f64,
    /// Mean KL(base ‖ candidate) per token of that text, in nats.
    pub kl_to_base: f64,
}

impl Measured {
    /// Relative rise of perplexity over the base model; 0.1 is ten per cent.
    pub fn perplexity_rise(&self) -> f64 {
        self.perplexity_after / self.perplexity_base - 1.0
    }
}

/// Every bound of the policy set that the measurements miss; none if the candidate may serve.
///
/// The required gain is capped if there is no room for it: a generation that complies in 95 % of
/// cases cannot gain 30 points. The candidate must then reach 1 − gain without losing agreement.
pub fn judge(measured: &Measured, gate: &Gate) -> Vec<Refusal> {
    let values = [
        measured.agreement_after,
        measured.perplexity_rise(),
        measured.kl_to_base,
    ];
    if let Some(got) = values.into_iter().find(|v| !v.is_finite()) {
        let reason = "a measurement is not a number: the adapter is broken".into();
        return vec![Refusal::new(Check::Finite, got, 0.0, reason)];
    }
    let checks = [
        agreement(measured, gate),
        perplexity(measured, gate),
        kl(measured, gate),
    ];
    checks.into_iter().flatten().collect()
}

fn agreement(measured: &Measured, gate: &Gate) -> Option<Refusal> {
    let gain = gate.min_policy_agreement_gain;
    let floor = (measured.agreement_before + gain)
        .min(1.0 - gain)
        .max(measured.agreement_before);
    let got = measured.agreement_after;
    (got + 1e-9 < floor).then(|| {
        let reason =
            format!("held-out policy agreement is {got:.3}, at least {floor:.3} is asked for");
        Refusal::new(Check::PolicyAgreement, got, floor, reason)
    })
}

fn perplexity(measured: &Measured, gate: &Gate) -> Option<Refusal> {
    let (got, bound) = (measured.perplexity_rise(), gate.max_perplexity_rise);
    (got > bound).then(|| {
        let reason = format!(
            "perplexity on neutral text rises by {:.1} %, at most {:.1} % is allowed",
            got * 100.0,
            bound * 100.0
        );
        Refusal::new(Check::PerplexityRise, got, bound, reason)
    })
}

fn kl(measured: &Measured, gate: &Gate) -> Option<Refusal> {
    let got = measured.kl_to_base;
    let bound = gate.max_kl.filter(|bound| got > *bound)?;
    let reason =
        format!("KL to the base model is {got:.3} nats per token, at most {bound:.3} is allowed");
    Some(Refusal::new(Check::Kl, got, bound, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(before: f64, after: f64, perplexity: f64, kl: f64) -> Measured {
        Measured {
            prompts: 40,
            agreement_before: before,
            agreement_after: after,
            perplexity_base: 10.0,
            perplexity_after: perplexity,
            kl_to_base: kl,
        }
    }

    #[test]
    fn every_bound_decides() {
        let gate = Gate {
            min_policy_agreement_gain: 0.3,
            max_perplexity_rise: 0.25,
            max_kl: Some(0.5),
            ..Gate::default()
        };
        let rejected_by = |m: Measured| judge(&m, &gate).first().map(|refusal| refusal.check);
        for (m, expected) in [
            (measured(0.0, 0.9, 12.0, 0.1), None),
            (measured(0.0, 0.3, 12.0, 0.1), None),
            (measured(0.0, 0.29, 12.0, 0.1), Some(Check::PolicyAgreement)),
            (measured(0.6, 0.7, 12.0, 0.1), None),
            (measured(0.9, 0.89, 12.0, 0.1), Some(Check::PolicyAgreement)),
            (measured(0.9, 0.9, 12.0, 0.1), None),
            (measured(0.0, 0.9, 12.6, 0.1), Some(Check::PerplexityRise)),
            (measured(0.0, 0.9, 12.0, 0.6), Some(Check::Kl)),
            (measured(0.0, 0.9, f64::NAN, 0.1), Some(Check::Finite)),
        ] {
            assert_eq!(rejected_by(m), expected, "{m:?}");
        }
    }
}
