//! `realign policy explain`: what each rule says about an answer, what matched where, and why.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{path_or_configured, read};
use crate::remote::RemoteArgs;
use crate::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs};
use realign_align::oracle::{Exchange, RuleOracle, prepare};
use realign_align::policy::{ExplainedVerdict, Found, RuleExplanation, Subject, TestExplanation};

/// Characters of a line that are shown before and behind a match.
const AROUND: usize = 40;
/// Largest answer that is read from standard input, in bytes.
const MAX_RESPONSE: u64 = 4 << 20;

/// Flags of `policy explain`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ExplainArgs {
    /// Directory or file [default: the policy directory]
    pub(crate) path: Option<PathBuf>,
    /// What the user asked
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) prompt: String,
    /// What the assistant answered; `-` reads it from standard input
    #[arg(long)]
    pub(crate) response: String,
    /// A category label of the answer; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    pub(crate) labels: Vec<String>,
    /// Ask the policies that this server has active, instead of files
    #[arg(long, value_name = "URL", conflicts_with = "path")]
    pub(crate) url: Option<String>,
    /// With --url: key of the operator routes [default: the server's, from its configuration or state
    /// directory]
    #[arg(
        long,
        env = "REALIGN_ADMIN_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) admin_key: Option<String>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What is printed as JSON, and what a server answers.
#[derive(Debug, Serialize, Deserialize)]
struct Explanation {
    revision: String,
    rules: Vec<RuleExplanation>,
}

/// Runs the command and returns the exit code.
pub(super) fn run(
    args: &ExplainArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let response = response(&args.response)?;
    let explanation = match &args.url {
        Some(url) => asked(url, args, global, &response)?,
        None => explained(args, global, &response)?,
    };
    let broken =
        |rule: &RuleExplanation| rule.enforced && rule.verdict != ExplainedVerdict::Complies;
    let code = match explanation.rules.iter().any(broken) {
        true => EXIT_FAILED,
        false => EXIT_OK,
    };
    if global.json {
        writeln!(out, "{}", serde_json::to_string(&explanation)?)?;
        return Ok(code);
    }
    if explanation.rules.is_empty() {
        writeln!(
            out,
            "there are no rules: `realign policy new` drafts a policy"
        )?;
    }
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let page = Page {
        prompt: &args.prompt,
        response: &response,
        is_coloured: std::io::stdout().is_terminal() && !no_colour,
    };
    for rule in &explanation.rules {
        write!(out, "{}", page.rule(rule))?;
    }
    Ok(code)
}

fn response(given: &str) -> Result<String, CliError> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_RESPONSE)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// By files, as a server would judge that had them active.
fn explained(
    args: &ExplainArgs,
    global: &GlobalArgs,
    response: &str,
) -> Result<Explanation, CliError> {
    let path = path_or_configured(args.path.as_deref(), global)?;
    let set = read(&path)??;
    let services = crate::oracle::services(&global.resolve()?, &set)?;
    let oracle = RuleOracle::with_dryrun(&set).with_matchers(prepare(&set, &services)?.matchers);
    let exchange = Exchange {
        prompt: &args.prompt,
        response,
        labels: &args.labels,
    };
    Ok(Explanation {
        revision: set.revision().to_owned(),
        rules: oracle.explain(&exchange),
    })
}

/// By the policies that a server has active.
fn asked(
    url: &str,
    args: &ExplainArgs,
    global: &GlobalArgs,
    response: &str,
) -> Result<Explanation, CliError> {
    let remote = RemoteArgs {
        url: Some(url.to_owned()),
        admin_key: args.admin_key.clone(),
    };
    let body = json!({"prompt": args.prompt, "response": response, "labels": args.labels});
    let answer = remote
        .with_config(global)?
        .post("policies/explain", &body)?;
    Ok(serde_json::from_value(answer)?)
}

/// How an explanation is laid out.
struct Page<'a> {
    prompt: &'a str,
    response: &'a str,
    is_coloured: bool,
}

impl Page<'_> {
    fn rule(&self, rule: &RuleExplanation) -> String {
        let (word, colour) = match rule.verdict {
            ExplainedVerdict::Violates => ("violates", "31"),
            ExplainedVerdict::Complies => ("complies", "32"),
            ExplainedVerdict::Undecided => ("undecided", "33"),
        };
        let mut notes = vec![rule.severity.as_str()];
        if !rule.enforced {
            notes.push("dryrun");
        }
        let mut text = format!(
            "{}  {}:{} ({})\n  {}\n",
            self.paint(&format!("{word:9}"), colour),
            rule.policy,
            rule.rule,
            notes.join(", "),
            rule.reason
        );
        if !rule.description.is_empty() {
            // Writing to a string cannot fail.
            let _infallible = writeln!(text, "  asks: {}", rule.description.trim());
        }
        for test in &rule.tests {
            text.push_str(&self.test(test));
        }
        text.push('\n');
        text
    }

    fn test(&self, test: &TestExplanation) -> String {
        let holds = match test.holds {
            Some(true) => "holds",
            Some(false) => "does not hold",
            None => "unknown",
        };
        let measured = test.measured.as_deref();
        let measured = measured.map(|m| format!(": {m}")).unwrap_or_default();
        let mut text = format!("    {}  {holds}{measured}\n", test.path);
        let searched = match test.subject {
            Subject::Prompt => self.prompt,
            Subject::Response | Subject::Exchange => self.response,
        };
        for found in &test.found {
            text.push_str(&self.place(searched, found));
        }
        text
    }

    /// The line in which a match begins, with the match marked, and the pattern that found it.
    fn place(&self, text: &str, found: &Found) -> String {
        let characters: Vec<char> = text.chars().collect();
        let start = found.start.min(characters.len());
        let end = found.end.clamp(start, characters.len());
        let is_break = |c: &char| *c == '\n' || *c == '\r';
        let line_start = characters[..start]
            .iter()
            .rposition(is_break)
            .map_or(0, |at| at + 1);
        let line_end = characters[start..].iter().position(is_break);
        let line_end = line_end.map_or(characters.len(), |at| start + at);
        let from = line_start.max(start.saturating_sub(AROUND));
        // A match over several lines is marked to the end of its first.
        let shown_end = end.min(line_end).min(start + 2 * AROUND);
        let to = line_end.min(shown_end + AROUND);
        let plain = |range: &[char]| -> String {
            let visible = |c: &char| if c.is_control() { ' ' } else { *c };
            range.iter().map(visible).collect()
        };
        let before = plain(&characters[from..start]);
        let matched = plain(&characters[start..shown_end]);
        let after = plain(&characters[shown_end..to]);
        let lead = if from > line_start { "…" } else { "" };
        let trail = if to < line_end { "…" } else { "" };
        if self.is_coloured {
            let matched = self.paint(&matched, "1;31");
            return format!(
                "      {lead}{before}{matched}{after}{trail}   {}\n",
                found.pattern
            );
        }
        let indent = " ".repeat(lead.chars().count() + before.chars().count());
        let carets = "^".repeat(matched.chars().count().max(1));
        format!(
            "      {lead}{before}{matched}{after}{trail}\n      {indent}{carets} {}\n",
            found.pattern
        )
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        match self.is_coloured {
            true => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::tests::answers;

    const POLICY: &str = "apiVersion: realign/v1\nid: p\nversion: '1'\nrules:\n  - id: dose\n    \
         description: No doses.\n    violates: { response: { any_regex: ['\\d+ mg'] } }\n";

    fn explain(response: &str, json: bool) -> (u8, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.yaml");
        std::fs::write(&path, POLICY).unwrap();
        let args = ExplainArgs {
            path: Some(path),
            response: response.into(),
            ..ExplainArgs::default()
        };
        let global = GlobalArgs {
            json,
            ..GlobalArgs::default()
        };
        let mut out = Vec::new();
        let code = run(&args, &global, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn carets_stand_below_what_matched() {
        let (code, text) = explain("One.\n\tTake 20 mg or 400 mg.", false);
        assert_eq!(code, EXIT_FAILED);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "violates   p:dose (standard)");
        let first = lines.iter().position(|l| l.contains("^^^^^ ")).unwrap();
        assert_eq!(lines[first - 1], "       Take 20 mg or 400 mg.");
        assert_eq!(lines[first], r"            ^^^^^ \d+ mg");
        assert_eq!(lines[first + 2], r"                     ^^^^^^ \d+ mg");
        let (code, text) = explain("Ask a pharmacist.", false);
        assert_eq!(code, EXIT_OK);
        assert!(text.contains("`violates` does not hold"), "{text}");
    }

    #[test]
    fn long_lines_are_cut_around_the_match() {
        let long = format!("{} 5 mg {}", "ä".repeat(500), "ö".repeat(500));
        let (_, text) = explain(&long, false);
        let line = text.lines().find(|l| l.contains("5 mg ö")).unwrap();
        assert!(line.chars().count() < 110, "{line}");
        assert!(
            line.trim().starts_with('…') && line.ends_with('…'),
            "{line}"
        );
    }

    #[test]
    fn colours_mark_the_match_on_a_terminal() {
        let page = Page {
            prompt: "",
            response: "a bad b",
            is_coloured: true,
        };
        let found = Found {
            pattern: "bad".into(),
            start: 2,
            end: 5,
            text: "bad".into(),
        };
        let line = page.place("a bad b", &found);
        assert_eq!(line, "      a \u{1b}[1;31mbad\u{1b}[0m b   bad\n");
        // A server's places are not trusted to lie in the text.
        let far = Found {
            start: 90,
            end: 20,
            ..found
        };
        assert!(page.place("a bad b", &far).contains("a bad b"));
    }

    #[test]
    fn a_server_is_asked_with_its_key_and_its_answer_is_shown() {
        let (_, explanation) = explain("20 mg", true);
        let body: &'static str = Box::leak(explanation.into_boxed_str());
        let (remote, server) = answers(200, body).unwrap();
        let args = ExplainArgs {
            response: "20 mg".into(),
            prompt: "How much?".into(),
            url: Some(remote.url),
            admin_key: remote.admin_key,
            ..ExplainArgs::default()
        };
        let mut out = Vec::new();
        let code = run(&args, &GlobalArgs::default(), &mut out).unwrap();
        let request = server.join().unwrap();
        assert!(
            request.starts_with("POST /admin/v1/policies/explain "),
            "{request}"
        );
        assert!(request.contains("Bearer secret") && request.contains("How much?"));
        assert_eq!(code, EXIT_FAILED);
        assert!(String::from_utf8(out).unwrap().contains("^^^^^"));
    }
}
