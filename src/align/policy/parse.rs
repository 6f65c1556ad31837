//! One policy file's text → a validated [`Policy`], or every error found in it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Location, MergeKeyPolicy, Options, Spanned};

use super::compile::Compiler;
use super::error::PolicyError;
use super::labelled::FileReader;
use super::matchers::Labelled;
use super::model::{
    Example, ExampleVerdict, Gate, Minimum, Policy, Rule, SourceLocation, verdict_hash,
};
use super::prompts;
use super::raw::{
    API_VERSION, RawCondition, RawExample, RawGate, RawHeader, RawMinimum, RawPolicy, RawPrompts,
    RawRule,
};
use super::thinking::Thinking;

/// Parses a policy. `file` is used only in messages and source locations; `reader` reads the files
/// that the policy names.
pub(super) fn parse(
    file: &Path,
    text: &str,
    reader: FileReader<'_>,
) -> Result<Policy, Vec<PolicyError>> {
    check_api_version(file, text).map_err(|error| vec![error])?;
    let raw: RawPolicy = read_yaml(file, text).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    let policy = resolve(file, raw, reader, &mut errors);
    match policy {
        Some(policy) if errors.is_empty() => Ok(policy),
        _ => Err(errors),
    }
}

fn read_yaml<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, PolicyError> {
    serde_saphyr::from_str_with_options(text, yaml_options())
        .map_err(|error| PolicyError::yaml(file, &error))
}

/// Policies are small, flat documents; the limits stop alias bombs and deep nesting long before
/// they cost memory or stack.
pub(super) fn yaml_options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 48,
            max_nodes: 100_000,
            max_events: 250_000,
            max_anchors: 256,
            max_aliases: 1_024,
            // Two, so that a second document gets a specific error.
            max_documents: 2,
            max_merge_keys: 256,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        with_snippet: false,
    }
}

fn check_api_version(file: &Path, text: &str) -> Result<(), PolicyError> {
    if text.trim().is_empty() {
        return Err(PolicyError::file(
            file,
            "the file is empty; write a policy or remove it",
        ));
    }
    let header: RawHeader = read_yaml(file, text)?;
    match header.api_version {
        Some(version) if version.value == API_VERSION => Ok(()),
        Some(version) => {
            let message = format!(
                "apiVersion `{}` is not known; this version reads `{API_VERSION}`",
                version.value
            );
            Err(PolicyError::at(file, version.referenced, message))
        }
        // The full parse reports a missing key together with a misspelt one.
        None => Ok(()),
    }
}

fn resolve(
    file: &Path,
    raw: RawPolicy,
    reader: FileReader<'_>,
    errors: &mut Vec<PolicyError>,
) -> Option<Policy> {
    check_id(file, "policy", &raw.id, errors);
    if raw.version.value.trim().is_empty() {
        errors.push(PolicyError::at(
            file,
            raw.version.referenced,
            "`version` is empty",
        ));
    }
    if raw.rules.value.is_empty() {
        let message = "`rules` is empty; a policy needs at least one rule";
        errors.push(PolicyError::at(file, raw.rules.referenced, message));
    }
    let mut seen: BTreeMap<String, Location> = BTreeMap::new();
    let mut rules = Vec::new();
    for raw_rule in raw.rules.value {
        let id = &raw_rule.value.id;
        check_id(file, "rule", id, errors);
        let key = id.value.to_ascii_lowercase();
        if let Some(first) = seen.get(&key) {
            let line = first.line();
            let message = format!(
                "rule id `{}` is used already on line {line}; upper and lower case count as equal",
                id.value
            );
            errors.push(PolicyError::at(file, id.referenced, message));
        } else {
            seen.insert(key, id.referenced);
        }
        rules.push(resolve_rule(
            (file, raw.thinking),
            raw_rule.value,
            reader,
            errors,
        ));
    }
    let gate = resolve_gate(file, &raw.gate, errors);
    let mut listed = |key: &str, raw: Option<Spanned<RawPrompts>>| match raw {
        Some(raw) => prompts::resolve(file, key, raw, reader, errors),
        None => Vec::new(),
    };
    let prompts = listed("prompts", raw.prompts);
    let controls = listed("controls", raw.controls);
    Some(Policy {
        source: source(file, raw.id.referenced),
        id: raw.id.value,
        version: raw.version.value,
        description: raw.description,
        enforcement: raw.enforcement,
        thinking: raw.thinking,
        rules: rules.into_iter().collect::<Option<_>>()?,
        gate,
        prompts,
        controls,
        allow_contradictions: raw.allow_contradictions,
    })
}

fn source(file: &Path, at: Location) -> SourceLocation {
    SourceLocation {
        file: file.to_owned(),
        line: at.line(),
        column: at.column(),
    }
}

fn check_id(file: &Path, what: &str, id: &Spanned<String>, errors: &mut Vec<PolicyError>) {
    let allowed = |c: char| c.is_ascii_alphanumeric();
    // Ids become labels, paths of routes and names of files: a part is never empty, `.` or `..`.
    let part = |part: &str| {
        part.starts_with(allowed)
            && !part.ends_with('.')
            && part.chars().all(|c| allowed(c) || "._-".contains(c))
    };
    if id.value.len() > 128 || !id.value.split('/').all(part) {
        let message = format!(
            "{what} id `{}` is not valid: use A-Z, a-z, 0-9, `.`, `_` and `-`, in parts divided by `/`; each part begins with a letter or digit and does not end with `.`; at most 128 in all",
            id.value
        );
        errors.push(PolicyError::at(file, id.referenced, message));
    }
}

fn resolve_rule(
    (file, thinking): (&Path, Thinking),
    raw: RawRule,
    reader: FileReader<'_>,
    errors: &mut Vec<PolicyError>,
) -> Option<Rule> {
    let minimum = raw
        .minimum
        .as_ref()
        .map(|m| resolve_minimum(file, m, errors));
    let examples: Vec<Example> = raw
        .examples
        .into_iter()
        .map(|e| resolve_example(file, e))
        .collect();
    let labelled: Vec<Labelled> = examples.iter().map(|e| to_labelled(e, thinking)).collect();
    let mut compiler = Compiler {
        file,
        rule: &raw.id.value,
        description: &raw.description,
        examples: &labelled,
        thinking,
        reader,
        errors,
    };
    let mut compile = |node: &Spanned<RawCondition>| compiler.condition(node);
    // Compile everything before giving up, so that all errors of the rule are reported together.
    let when = raw.when.as_ref().map(&mut compile);
    let violates = compile(&raw.violates);
    let exceptions: Vec<_> = raw.exceptions.iter().map(&mut compile).collect();
    let when = match when {
        None => None,
        Some(compiled) => Some(compiled?),
    };
    let violates = violates?;
    let exceptions = exceptions.into_iter().collect::<Option<Vec<_>>>()?;
    Some(Rule {
        hash: thinking.hash_of(verdict_hash(when.as_ref(), &violates, &exceptions)),
        thinking,
        id: raw.id.value,
        severity: raw.severity,
        description: raw.description,
        when,
        violates,
        exceptions,
        examples,
        minimum,
    })
}

fn to_labelled(example: &Example, thinking: Thinking) -> Labelled {
    Labelled {
        prompt: example.prompt.clone(),
        response: thinking.seen(&example.response).to_owned(),
        violates: example.verdict == ExampleVerdict::Violates,
    }
}

fn resolve_minimum(
    file: &Path,
    raw: &Spanned<RawMinimum>,
    errors: &mut Vec<PolicyError>,
) -> Minimum {
    let RawMinimum {
        accuracy,
        precision,
        recall,
    } = raw.value;
    let figures = [accuracy, precision, recall];
    let message = if figures.iter().all(Option::is_none) {
        Some("`minimum` needs `accuracy`, `precision`, `recall` or several of them")
    } else if figures.iter().flatten().any(|v| !(0.0..=1.0).contains(v)) {
        Some("a figure of `minimum` must be between 0 and 1")
    } else {
        None
    };
    errors.extend(message.map(|m| PolicyError::at(file, raw.referenced, m)));
    Minimum {
        accuracy,
        precision,
        recall,
    }
}

fn resolve_example(file: &Path, raw: Spanned<RawExample>) -> Example {
    Example {
        source: source(file, raw.referenced),
        prompt: raw.value.prompt,
        response: raw.value.response,
        verdict: raw.value.verdict,
        labels: raw.value.labels,
    }
}

fn resolve_gate(file: &Path, raw: &RawGate, errors: &mut Vec<PolicyError>) -> Gate {
    let default = Gate::default();
    let mut field = |name: &str, value: &Option<Spanned<f64>>, max: f64| -> Option<f64> {
        let value = value.as_ref()?;
        if !(0.0..=max).contains(&value.value) {
            let range = if max < f64::MAX {
                format!("between 0 and {max}")
            } else {
                "0 or more".to_owned()
            };
            let message = format!("gate: `{name}` is {}, but must be {range}", value.value);
            errors.push(PolicyError::at(file, value.referenced, message));
        }
        Some(value.value)
    };
    let gain = field(
        "min_policy_agreement_gain",
        &raw.min_policy_agreement_gain,
        1.0,
    );
    let perplexity = field("max_perplexity_rise", &raw.max_perplexity_rise, f64::MAX);
    let kl = field("max_kl", &raw.max_kl, f64::MAX);
    let min_compliance = field("min_compliance", &raw.min_compliance, 1.0);
    let max_control_diverted = field("max_control_diverted", &raw.max_control_diverted, 1.0);
    Gate {
        min_policy_agreement_gain: gain.unwrap_or(default.min_policy_agreement_gain),
        max_perplexity_rise: perplexity.unwrap_or(default.max_perplexity_rise),
        max_kl: kl,
        min_compliance,
        max_control_diverted,
    }
}
