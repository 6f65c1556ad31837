//! The policy oracle behind `POST /v1/moderations`.

use super::Control;
use crate::api::{ModerationPort, Moderations};
use realign_align::oracle::{Exchange, Oracle, RuleOracle};
use realign_align::policy::RuleExplanation;

impl ModerationPort for Control {
    fn unavailable(&self) -> Option<String> {
        let active = self.context.active();
        match active.refused {
            _ if active.loaded => None,
            Some(why) => Some(format!(
                "no policies are active, so nothing can be judged: {why}"
            )),
            None => Some("the policies are being loaded; retry in a moment".into()),
        }
    }

    fn moderate(&self, prompt: &str, responses: &[String]) -> Moderations {
        let oracle = self.context.oracle();
        let rules: Vec<(String, String)> = oracle
            .rules()
            .map(|(policy, rule)| (policy.id.clone(), rule.id.clone()))
            .collect();
        let judge = |response: &String| {
            let judgement = oracle.judge(&Exchange {
                prompt,
                response,
                labels: &[],
            });
            let violated = |(policy, rule): &(String, String)| {
                let mut violations = judgement.violations.iter();
                violations.any(|v| v.policy == *policy && v.rule == *rule)
            };
            rules.iter().map(violated).collect()
        };
        Moderations {
            revision: oracle.revision().to_string(),
            results: responses.iter().map(judge).collect(),
            categories: rules.into_iter().map(|(p, r)| format!("{p}/{r}")).collect(),
        }
    }

    fn explain(&self, exchange: &Exchange<'_>) -> (String, Vec<RuleExplanation>) {
        let active = self.context.active();
        let oracle = RuleOracle::with_dryrun(&active.set).with_matchers(active.matchers);
        (active.set.revision().to_owned(), oracle.explain(exchange))
    }
}
