//! Compiles probes, judges and cascades.

use std::path::Path;
use std::sync::Arc;

use realign_core::thoughts::recorded;
use serde_saphyr::Spanned;

use super::Compiler;
use crate::policy::condition::Condition;
use crate::policy::labelled;
use crate::policy::matchers::{CascadeStage, JudgeSpec, Labelled, ProbeSpec, UnsureRange};
use crate::policy::raw::{RawJudge, RawProbe, RawStage};

impl Compiler<'_> {
    pub(super) fn probe(&mut self, raw: &Spanned<RawProbe>) -> Option<Arc<ProbeSpec>> {
        let node = &raw.value;
        let mut training = if node.use_examples {
            self.examples.to_vec()
        } else {
            Vec::new()
        };
        if let Some(name) = &node.data {
            training.extend(self.labelled(name)?);
        } else if !node.use_examples {
            let message = "a probe needs something to be fitted on: give `data`, or leave `use_examples` true";
            self.error(raw.referenced, message);
            return None;
        }
        let threshold = self.share("threshold", node.threshold.as_ref())?;
        Some(Arc::new(ProbeSpec::new(
            training,
            node.use_examples,
            threshold,
        )))
    }

    fn labelled(&mut self, name: &Spanned<String>) -> Option<Vec<Labelled>> {
        if !labelled::is_plain_name(&name.value) {
            let message = format!(
                "`data` is `{}`; give the name of a file in the policy's directory, without slashes",
                name.value
            );
            self.error(name.referenced, message);
            return None;
        }
        let read = (self.reader)(Path::new(&name.value));
        let rows = read
            .map_err(|error| error.to_string())
            .and_then(|bytes| labelled::parse(&bytes).map_err(|error| error.to_string()));
        match rows {
            Ok(mut rows) => {
                // What is fitted on is what is judged.
                for row in &mut rows {
                    let seen = self.thinking.seen(&recorded(&row.response)).to_owned();
                    row.response = seen;
                }
                Some(rows)
            }
            Err(why) => {
                self.error(name.referenced, format!("`data` {}: {why}", name.value));
                None
            }
        }
    }

    pub(super) fn judge(&mut self, raw: &Spanned<RawJudge>) -> Option<Arc<JudgeSpec>> {
        let node = &raw.value;
        let before = self.errors.len();
        let url = node.url.value.trim_end_matches('/');
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            let message = format!("`url` is `{url}`; it begins with http:// or https://");
            self.error(node.url.referenced, message);
        }
        if node.question.value.trim().is_empty() {
            self.error(node.question.referenced, "`question` is empty");
        }
        if let Some(template) = &node.template
            && let Err(error) = check_template(&template.value)
        {
            let message = format!("`template` is not usable: {error}");
            self.error(template.referenced, message);
        }
        let concurrency = match &node.concurrency {
            Some(n) if !(1..=64).contains(&n.value) => {
                let message = format!("`concurrency` is {}, but must be from 1 to 64", n.value);
                self.error(n.referenced, message);
                1
            }
            Some(n) => n.value,
            None => 4,
        };
        let price = [node.price_per_million_in, node.price_per_million_out];
        if price.iter().any(|p| !p.is_finite() || *p < 0.0) {
            self.error(raw.referenced, "a price must be 0 or more");
        }
        let threshold = self.share("threshold", node.threshold.as_ref())?;
        if self.errors.len() > before {
            return None;
        }
        let examples = match threshold {
            Some(_) => Vec::new(),
            None => self.examples.to_vec(),
        };
        Some(Arc::new(JudgeSpec {
            url: url.to_owned(),
            model: node.model.clone(),
            key_env: node.key_env.clone(),
            question: node.question.value.clone(),
            template: node.template.as_ref().map(|t| t.value.clone()),
            policy: self.description.to_owned(),
            threshold,
            concurrency,
            price,
            examples,
        }))
    }

    pub(super) fn cascade(&mut self, raw: &Spanned<Vec<Spanned<RawStage>>>) -> Option<Condition> {
        let stages = self.list(raw.referenced, "cascade", &raw.value, Self::stage)?;
        Some(Condition::Cascade(stages))
    }

    fn stage(&mut self, raw: &Spanned<RawStage>) -> Option<CascadeStage> {
        let node = &raw.value;
        let given = [
            node.yes_if.is_some(),
            node.no_if.is_some(),
            node.probe.is_some(),
            node.judge.is_some(),
        ];
        if given.iter().filter(|given| **given).count() != 1 {
            let message = "a stage has exactly one of `yes_if`, `no_if`, `probe` and `judge`";
            self.error(raw.referenced, message);
            return None;
        }
        let unsure = match &node.unsure {
            None => None,
            Some(range) => Some(self.unsure(range, node)?),
        };
        if let Some(condition) = &node.yes_if {
            return self.condition(condition).map(CascadeStage::YesIf);
        }
        if let Some(condition) = &node.no_if {
            return self.condition(condition).map(CascadeStage::NoIf);
        }
        if let Some(probe) = &node.probe {
            return self
                .probe(probe)
                .map(|probe| CascadeStage::Probe(probe, unsure));
        }
        let judge = node.judge.as_ref()?;
        self.judge(judge)
            .map(|judge| CascadeStage::Judge(judge, unsure))
    }

    fn unsure(&mut self, range: &Spanned<[f64; 2]>, stage: &RawStage) -> Option<UnsureRange> {
        let [low, high] = range.value;
        let message = if stage.probe.is_none() && stage.judge.is_none() {
            "`unsure` belongs to a `probe` or a `judge`; other stages are always sure".to_owned()
        } else if !(0.0 <= low && low <= high && high <= 1.0) {
            format!("`unsure` is [{low}, {high}], but must be two probabilities, the lower first")
        } else {
            return Some(UnsureRange { low, high });
        };
        self.error(range.referenced, message);
        None
    }

    /// Checks an optional number between 0 and 1. The outer `None` means that it is out of range;
    /// the error is recorded.
    fn share(&mut self, name: &str, value: Option<&Spanned<f64>>) -> Option<Option<f64>> {
        match value {
            Some(v) if !(0.0..=1.0).contains(&v.value) => {
                let message = format!("`{name}` is {}, but must be between 0 and 1", v.value);
                self.error(v.referenced, message);
                None
            }
            other => Some(other.map(|v| v.value)),
        }
    }
}

/// Checks a judge's template. Rendering only inserts strings, so only parsing can fail.
fn check_template(source: &str) -> Result<(), minijinja::Error> {
    let mut environment = minijinja::Environment::new();
    environment.add_template("judge", source)
}
