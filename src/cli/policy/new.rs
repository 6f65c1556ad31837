//! `realign policy new`: from a rule in plain words and a few answers to a tested draft.

mod ask;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::test::Tested;
use crate::init::SCHEMA_FILE;
use crate::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs, shell};
use ask::Asker;
use realign_align::draft::{Answered, Brief, Draft, DraftError, JudgeAt, LEAST, draft};
use realign_align::oracle::RuleOracle;
use realign_align::policy::{PolicySet, schema_json};
use realign_align::preferences::{Dataset, Pair};
use realign_align::triage::triage;
use realign_server::config::Config;

/// Conflicting prompts that are shown.
const SHOWN: usize = 3;

/// Flags of `policy new`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct NewArgs {
    /// Name of the policy [default: made of the rule's words]
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// The rule in plain words
    #[arg(long, value_name = "SENTENCE")]
    pub(crate) rule: Option<String>,
    /// A word that a question has where the rule applies; may be repeated [default: it applies to all]
    #[arg(long = "topic", value_name = "WORD")]
    pub(crate) topics: Vec<String>,
    /// A question, for the answers in the same place; may be repeated
    #[arg(long = "question", value_name = "TEXT")]
    pub(crate) questions: Vec<String>,
    /// An answer that breaks the rule; at least three
    #[arg(long, value_name = "TEXT")]
    pub(crate) wrong: Vec<String>,
    /// An answer that keeps it; at least three
    #[arg(long, value_name = "TEXT")]
    pub(crate) right: Vec<String>,
    /// A question that sounds alike, whose answer must stay as it is; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stays: Vec<String>,
    /// An OpenAI-compatible endpoint, up to and including /v1, to judge what patterns cannot
    #[arg(long, value_name = "URL", requires = "judge_model")]
    pub(crate) judge_url: Option<String>,
    /// The endpoint's model
    #[arg(long, value_name = "NAME", requires = "judge_url")]
    pub(crate) judge_model: Option<String>,
    /// Environment variable that holds the endpoint's key
    #[arg(long, value_name = "NAME", requires = "judge_url")]
    pub(crate) judge_key_env: Option<String>,
    /// The file to write [default: drafts/ID.yaml]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Runs the command and returns the exit code.
pub(super) fn run(
    args: &NewArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return with(args, global, out, None);
    }
    let (mut input, mut prompts) = (stdin.lock(), std::io::stderr());
    with(
        args,
        global,
        out,
        Some(&mut Asker::new(&mut input, &mut prompts)),
    )
}

/// With a terminal to ask for what the flags do not say, or without one.
fn with(
    args: &NewArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
    mut asker: Option<&mut Asker<'_>>,
) -> Result<u8, CliError> {
    let config = global.resolve()?;
    let mut brief = given(args, &config)?;
    match &mut asker {
        Some(asker) => asker.complete(args, &mut brief)?,
        None => refuse_gaps(&brief)?,
    }
    if brief.id.is_empty() {
        brief.id = slug(&brief.rule);
    }
    let active = PolicySet::load_dir(&config.paths.policies);
    if active
        .as_ref()
        .is_ok_and(|set| set.get(&brief.id).is_some())
    {
        let dir = config.paths.policies.display();
        let text = format!(
            "{dir} has a policy `{}` already: give another name with --id",
            brief.id
        );
        return Err(CliError::Draft(text));
    }
    let (pairs, unread) = data(&config);
    let mut drafted = loop {
        match (draft(&brief, &pairs), &mut asker) {
            (Ok(drafted), _) => break drafted,
            (Err(error @ DraftError::OffTopic { .. }), Some(asker)) => {
                asker.say(&error.to_string())?;
                brief.topics = asker.topics()?;
            }
            (Err(error), _) => return Err(CliError::Draft(error.to_string())),
        }
    };
    drafted.notes.extend(unread);
    let file = match &args.out {
        Some(file) => file.clone(),
        None => Path::new("drafts").join(format!("{}.yaml", brief.id.replace('/', "-"))),
    };
    write(&file, &drafted.yaml)?;
    report(&file, &drafted, &pairs, (&config, global), out)
}

/// What the flags say.
fn given(args: &NewArgs, config: &Config) -> Result<Brief, CliError> {
    let judge = match (&args.judge_url, &args.judge_model) {
        (Some(url), Some(model)) => Some(JudgeAt {
            url: url.clone(),
            model: model.clone(),
            key_env: args.judge_key_env.clone(),
        }),
        _ => None,
    };
    Ok(Brief {
        id: args.id.clone().unwrap_or_default(),
        rule: args.rule.clone().unwrap_or_default().trim().to_owned(),
        topics: args.topics.clone(),
        wrong: paired(&args.questions, &args.wrong)?,
        right: paired(&args.questions, &args.right)?,
        stays: args.stays.clone(),
        judge,
        has_model: Path::new(&config.model).exists(),
    })
}

/// Answers with the questions in their places; a single question belongs to all.
fn paired(questions: &[String], answers: &[String]) -> Result<Vec<Answered>, CliError> {
    let question = |at: usize| match questions {
        [one] => Some(one),
        many => many.get(at),
    };
    let paired = answers.iter().enumerate().map(|(at, response)| {
        let prompt = question(at).cloned().ok_or_else(|| {
            CliError::Draft(format!(
                "there are {} answers and {} questions: give a --question for each answer in its \
                 place, or one for all",
                answers.len(),
                questions.len()
            ))
        })?;
        let response = response.clone();
        Ok(Answered { prompt, response })
    });
    paired.collect()
}

/// Without a terminal, everything that is needed has to be in the flags.
fn refuse_gaps(brief: &Brief) -> Result<(), CliError> {
    let mut missing = Vec::new();
    if brief.rule.is_empty() {
        missing.push("--rule".to_owned());
    }
    for (flag, answers) in [("--wrong", &brief.wrong), ("--right", &brief.right)] {
        if answers.len() < LEAST {
            missing.push(format!("{flag} ({} of {LEAST})", answers.len()));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!(
        "standard input is no terminal to ask on, and these flags are missing: {}; `realign policy new \
         --help` has an example",
        missing.join(", ")
    );
    Err(CliError::Draft(text))
}

/// A name made of the rule's first words that say something.
fn slug(rule: &str) -> String {
    const LEFT_OUT: [&str; 22] = [
        "the",
        "a",
        "an",
        "assistant",
        "answers",
        "answer",
        "must",
        "should",
        "shall",
        "to",
        "of",
        "and",
        "or",
        "is",
        "are",
        "that",
        "it",
        "in",
        "about",
        "does",
        "be",
        "its",
    ];
    let words = rule.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.map(str::to_ascii_lowercase);
    let words = words.filter(|word| !word.is_empty() && !LEFT_OUT.contains(&word.as_str()));
    match words.take(4).collect::<Vec<_>>().join("-") {
        name if name.is_empty() => "new-policy".into(),
        name => name,
    }
}

/// The preference data, which a draft does not need, and what to say where it cannot be read.
fn data(config: &Config) -> (Vec<Pair>, Option<String>) {
    let paths = &config.paths;
    if !paths.preferences.exists() {
        return (Vec::new(), None);
    }
    match Dataset::load_dir_within(&paths.preferences, paths.max_preferences_bytes) {
        Ok(data) => (data.pairs, None),
        Err(error) => {
            let note = format!(
                "the preference data cannot be read, so nothing was looked for in it: {error}; \
                 `realign preferences check` says how each file is read"
            );
            (Vec::new(), Some(note))
        }
    }
}

/// Writes the draft, and beside it the schema that its first line names.
fn write(file: &Path, text: &str) -> Result<(), CliError> {
    let failed = |source| CliError::Path {
        path: file.to_owned(),
        wanted: "a file that is not there, in a directory that can be written to (--out)",
        source,
    };
    let dir = file
        .parent()
        .filter(|dir| *dir != Path::new(""))
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let new = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
    new(file)
        .and_then(|mut made| made.write_all(text.as_bytes()))
        .map_err(failed)?;
    if let Ok(mut schema) = new(&dir.join(SCHEMA_FILE)) {
        schema.write_all(schema_json().as_bytes())?;
    }
    Ok(())
}

/// Tests what was written, and says what it would change and what to do next.
fn report(
    file: &Path,
    drafted: &Draft,
    pairs: &[Pair],
    (config, global): (&Config, &GlobalArgs),
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let set = PolicySet::load_files(&[file.to_owned()])?;
    let tested = Tested::new(&set, global)?;
    let changes = match &tested {
        Ok(tested) => changes(&set, tested, pairs),
        Err(_) => json!(null),
    };
    let beside = beside(&set, config);
    let next = next(file, &set, config);
    let passed = tested.as_ref().is_ok_and(Tested::passed) && beside.is_none();
    let code = if passed { EXIT_OK } else { EXIT_FAILED };
    if global.json {
        let test = match &tested {
            Ok(tested) => tested.json(),
            Err(errors) => json!({"passed": false, "errors": errors}),
        };
        let report = json!({
            "file": file, "how": drafted.how, "notes": drafted.notes, "test": test,
            "against_active": beside, "changes": changes, "next": next,
        });
        writeln!(out, "{report}")?;
        return Ok(code);
    }
    writeln!(out, "drafted {}: {}", file.display(), drafted.how)?;
    for note in &drafted.notes {
        writeln!(out, "note: {note}")?;
    }
    match &tested {
        Ok(tested) => writeln!(out, "\n{}", tested.text().trim_end())?,
        Err(errors) => writeln!(out, "\nthe draft would be refused:\n{errors}")?,
    }
    if let Some(errors) = &beside {
        writeln!(
            out,
            "\nbeside the policies in force it would be refused:\n{errors}"
        )?;
    }
    write_changes(&changes, out)?;
    writeln!(out, "\nNext:")?;
    next.iter()
        .try_for_each(|command| writeln!(out, "  {command}"))?;
    Ok(code)
}

/// What the draft means for the preference data.
fn changes(set: &PolicySet, tested: &Tested, pairs: &[Pair]) -> Value {
    // No judge is asked about all of the data.
    let matchers = tested.prepared().matchers.without_judges();
    let oracle = RuleOracle::new(set).with_matchers(matchers.into());
    let triaged = triage(pairs, &oracle);
    let conflicts = triaged
        .items
        .iter()
        .filter(|item| item.category.is_conflict());
    let prompts: Vec<&str> = conflicts
        .map(|item| pairs[item.index].prompt_text())
        .collect();
    let shown: BTreeSet<&str> = prompts.iter().take(SHOWN).copied().collect();
    let counts = triaged.counts;
    json!({
        "pairs": pairs.len(), "invert": counts.invert, "punish": counts.punish,
        "retain": counts.retain, "undecided": triaged.undecided, "examples": shown,
    })
}

fn write_changes(changes: &Value, out: &mut dyn Write) -> Result<(), CliError> {
    let count = |key: &str| changes[key].as_u64().unwrap_or_default();
    if count("pairs") == 0 {
        writeln!(
            out,
            "\nNo preference data was read: where there is none, the server makes pairs itself from the \
             examples and from what the model answers."
        )?;
        return Ok(());
    }
    writeln!(
        out,
        "\nOf {} pairs of preference data: {} prefer an answer that is now wrong (invert), {} have two wrong \
         answers (punish), {} stay (retain).",
        count("pairs"),
        count("invert"),
        count("punish"),
        count("retain")
    )?;
    for prompt in changes["examples"].as_array().into_iter().flatten() {
        let text = prompt.as_str().unwrap_or_default();
        let line: String = text
            .chars()
            .take(80)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// Why the draft and the policies in force would be refused together, if so.
fn beside(set: &PolicySet, config: &Config) -> Option<String> {
    let active = PolicySet::load_dir(&config.paths.policies).ok()?;
    let together = active
        .with(set)
        .and_then(|both| both.check_contradictions());
    together.err().map(|errors| errors.to_string())
}

fn next(file: &Path, set: &PolicySet, config: &Config) -> Vec<String> {
    let dir = file
        .parent()
        .filter(|dir| *dir != Path::new(""))
        .unwrap_or(Path::new("."));
    let shown = file.display();
    let rule = set
        .policies()
        .first()
        .and_then(|policy| policy.rules.first());
    let example = rule.and_then(|rule| rule.examples.first());
    let prompt = example.map(|e| shell(&e.prompt)).unwrap_or_default();
    vec![
        format!("realign policy explain {shown} --prompt {prompt} --response ...   # try answers"),
        format!(
            "realign plan --policies {}   # what a realignment would train",
            dir.display()
        ),
        format!(
            "mv {shown} {}/   # a running server realigns; `realign serve` starts one",
            config.paths.policies.display()
        ),
    ]
}

#[cfg(test)]
mod tests;
