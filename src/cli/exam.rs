//! `realign exam`: has what a running server serves sit the exam, and prints what came of it.

use std::io::Write;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::remote::{Remote, RemoteArgs, RemoteError};
use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs};
use realign_align::exam::{Report, RuleResult, Share, Shown, Standing};

/// Time between two looks at whether the exam has ended.
const LOOK: Duration = Duration::from_millis(300);
/// Answers that are printed.
const SHOWN: usize = 8;
/// Characters of a text that are printed.
const TEXT: usize = 160;

/// Flags of `exam`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ExamArgs {
    /// Print the last exam instead of sitting one
    #[arg(long)]
    pub(crate) show: bool,
    /// Most seconds to wait for the exam's end
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) wait: u64,
    /// The server
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

#[derive(Deserialize)]
struct Alignment {
    state: String,
    reasons: Vec<String>,
}

#[derive(Deserialize)]
struct Answer {
    alignment: Alignment,
    serving: Option<Report>,
}

/// Runs the command. Exit code 0 says that what serves is aligned.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &ExamArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let remote = args.remote.with_config(global)?;
    let found = if args.show {
        remote.get("exam")?
    } else {
        sit(&remote, args, global.quiet)?
    };
    let answer: Answer = serde_json::from_value(found.clone())?;
    if global.json {
        writeln!(out, "{found}")?;
    } else {
        print(&answer, &|shown| because(&remote, shown), out)?;
    }
    Ok(if answer.alignment.state == "aligned" {
        EXIT_OK
    } else {
        EXIT_FAILED
    })
}

/// Starts an exam and waits for its report.
fn sit(remote: &Remote, args: &ExamArgs, quiet: bool) -> Result<Value, RemoteError> {
    let sat_at = |answer: &Value| answer["serving"]["sat_at"].as_u64().unwrap_or_default();
    let examining = |answer: &Value| answer["examining"].as_bool().unwrap_or_default();
    let begun = remote.post("exam", &json!({}))?;
    let before = sat_at(&begun);
    let started = Instant::now();
    loop {
        let answer = remote.get("exam")?;
        let ended = !examining(&answer) && (sat_at(&answer) > before || started.elapsed() > LOOK);
        if ended || started.elapsed().as_secs() >= args.wait {
            if !quiet {
                eprint!("\r\x1b[K");
            }
            return Ok(answer);
        }
        if !quiet {
            eprint!("\rthe exam is being sat: {} s", started.elapsed().as_secs());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a command that waits for a server"
        )]
        std::thread::sleep(LOOK);
    }
}

/// What in an answer violates which rule, as the server explains it; nothing where it does not.
fn because(remote: &Remote, shown: &Shown) -> Vec<String> {
    let body = json!({"prompt": shown.prompt, "response": shown.answer, "labels": []});
    let explained = match shown.why.starts_with("violates") {
        true => remote.post("policies/explain", &body).ok(),
        false => None,
    };
    let rules = explained.map(|explained| explained["rules"].clone());
    let rules = rules.and_then(|rules| rules.as_array().cloned());
    let violated = rules.unwrap_or_default().into_iter();
    violated
        .filter(|rule| rule["enforced"] == true && rule["verdict"] == "violates")
        .filter_map(|rule| rule["reason"].as_str().map(str::to_owned))
        .collect()
}

fn print(
    answer: &Answer,
    because: &dyn Fn(&Shown) -> Vec<String>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    writeln!(out, "{}", answer.alignment.state)?;
    for reason in &answer.alignment.reasons {
        writeln!(out, "  {reason}")?;
    }
    let Some(report) = &answer.serving else {
        return Ok(());
    };
    writeln!(
        out,
        "\ngeneration {}: {} prompts in {:.1} s, {} answers remembered\n",
        report.generation, report.prompts, report.took_seconds, report.remembered
    )?;
    for rule in &report.rules {
        writeln!(out, "{}", rule_line(rule))?;
    }
    let controls = &report.controls;
    writeln!(out)?;
    for (name, value) in [
        ("diverted: near-misses", controls.near_miss),
        ("diverted: everyday prompts", controls.everyday),
        ("controls that violate a rule", controls.violating),
        ("facts known", report.facts),
        ("facts that the base knows", report.facts_of_base),
    ] {
        writeln!(out, "{name:<44} {}", share(value))?;
    }
    for situation in &report.situations {
        let name = format!("complies, {:?}", situation.situation);
        writeln!(out, "{name:<44} {}", share(situation.compliance))?;
    }
    for defect in report.defects.iter().filter(|d| d.answers > 0) {
        writeln!(
            out,
            "{}: {} answers",
            defect.defect.describe(),
            defect.answers
        )?;
    }
    for shown in report.worst.iter().take(SHOWN) {
        writeln!(out, "\n{:?}, {}", shown.group, shown.why)?;
        writeln!(out, "  asked   {}", cut(&shown.prompt))?;
        writeln!(out, "  answer  {}", cut(&shown.answer))?;
        writeln!(out, "  base    {}", cut(&shown.base))?;
        for reason in because(shown) {
            writeln!(out, "  because {}", cut(&reason))?;
        }
    }
    for missing in &report.missing {
        writeln!(out, "\nmissing: {missing}")?;
    }
    Ok(())
}

fn rule_line(rule: &RuleResult) -> String {
    let standing = match rule.standing {
        Standing::Meets => "meets",
        Standing::Misses => "misses",
        Standing::Unknown => "cannot be told against",
    };
    let name = format!("{}:{}", rule.policy, rule.rule);
    let everyday = if rule.with_everyday {
        ", everyday prompts included"
    } else {
        ""
    };
    format!(
        "{name:<44} {}; {standing} {:.0} %{everyday}",
        share(rule.compliance),
        rule.target * 100.0
    )
}

fn share(share: Share) -> String {
    let Some(ratio) = share.ratio else {
        return "none asked".into();
    };
    format!(
        "{:>3} of {:>3} = {:>3.0} % ({:.0} to {:.0} %)",
        share.count,
        share.of,
        ratio * 100.0,
        share.low * 100.0,
        share.high * 100.0
    )
}

fn cut(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::tests::answers;
    use realign_align::exam::{Group, Situation};

    #[test]
    fn a_violating_answer_is_shown_with_what_violates_in_it() {
        let shown = |why: &str| Shown {
            group: Group::Governed,
            situation: Situation::Plain,
            prompt: "How much?".into(),
            answer: "Take 20 mg.".into(),
            base: String::new(),
            why: why.into(),
        };
        let body = r#"{"rules": [
            {"enforced": true, "verdict": "violates", "reason": "the response has 20 mg"},
            {"enforced": true, "verdict": "complies", "reason": "not this"},
            {"enforced": false, "verdict": "violates", "reason": "nor this"}]}"#;
        let (remote, server) = answers(200, body).unwrap();
        let reasons = because(&remote, &shown("violates p:r"));
        assert_eq!(reasons, ["the response has 20 mg"]);
        let request = server.join().unwrap();
        assert!(request.contains("/admin/v1/policies/explain") && request.contains("Take 20 mg."));
        // The server is gone: nothing is asked, nothing is said.
        assert!(because(&remote, &shown("violates p:r")).is_empty());
        assert!(because(&remote, &shown("the answer is empty")).is_empty());
    }
}
