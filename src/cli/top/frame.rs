//! One frame of `realign top`: the server's answers as lines.

use std::fmt::Write as _;

use serde_json::Value;

/// Width of labels.
const LABEL: usize = 13;
/// Cells of a progress bar.
const BAR: usize = 24;
/// Least progress that a time left is estimated from.
const ENOUGH: f64 = 0.02;
/// Slots of traffic that the rates are taken over, the running one left out.
const RATE_SLOTS: u64 = 4;

/// How a frame is coloured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Whether there are colours.
    pub(super) colours: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn busy(self, text: &str) -> String {
        self.paint("36", text)
    }

    fn muted(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn state(self, state: &str) -> String {
        match state {
            "aligned" | "succeeded" | "no_conflict" | "meets" => self.good(state),
            "misaligned" | "failed" | "rejected" | "misses" => self.bad(state),
            "realigning" | "running" => self.busy(state),
            _ => self.paint("33", state),
        }
    }
}

/// The lines of a frame.
#[derive(Debug)]
pub(super) struct Frame {
    style: Style,
    lines: Vec<String>,
}

impl Frame {
    /// From what the server at `url` answered.
    pub(super) fn new(seen: &Value, url: &str, style: Style) -> Self {
        let (overview, exam) = (&seen["overview"], &seen["exam"]);
        let mut frame = Self {
            style,
            lines: Vec::new(),
        };
        frame.head(overview, url);
        frame.serving(overview);
        frame.load(overview);
        frame.realignment(overview);
        frame.compliance(overview, exam);
        frame
    }

    /// Adds what an operator should see first.
    pub(super) fn warn(&mut self, text: &str) {
        let text = self.style.bad(&clean(text));
        self.lines.insert(1, text);
    }

    /// The text, cut to a terminal of so many rows and columns.
    pub(super) fn text(&self, size: Option<(u16, u16)>) -> String {
        let (rows, columns) = size.unwrap_or((u16::MAX, u16::MAX));
        // The cursor stays on the line below.
        let rows = usize::from(rows).saturating_sub(1).max(1);
        let mut text = String::new();
        for line in self.lines.iter().take(rows) {
            text.push_str(&cut(line, columns.into()));
            text.push('\n');
        }
        text
    }

    fn line(&mut self, label: &str, text: &str) {
        let label = self.style.muted(&format!("{label:LABEL$}"));
        self.lines.push(format!("{label}{text}"));
    }

    fn head(&mut self, overview: &Value, url: &str) {
        let server = &overview["server"];
        let up = number(&overview["now"]) - number(&server["started_at"]);
        let ready = if server["ready"] == true {
            self.style.good("ready")
        } else {
            self.style.bad("not ready")
        };
        self.lines.push(format!(
            "realign {}  {}  {}  {ready}, up {}",
            word(&server["version"]),
            word(&server["model"]),
            clean(url),
            span(up)
        ));
    }

    fn serving(&mut self, overview: &Value) {
        let serving = &overview["serving"];
        let alignment = &serving["alignment"];
        let state = self.style.state(&word(&alignment["state"]));
        let reasons = texts(&alignment["reasons"]);
        let more = match reasons.as_slice() {
            [] => String::new(),
            [one] => format!("  {one}"),
            [first, rest @ ..] => format!("  {first}, and {} more", rest.len()),
        };
        self.line("alignment", &format!("{state}{more}"));
        let id = word(&serving["generation"]);
        let is_base = items(&overview["generations"]["generations"])
            .any(|one| one["base"] == true && one["id"] == serving["generation"]);
        let kind = if is_base {
            "the base model"
        } else {
            "an adapter"
        };
        let mut text = format!("{id}, {kind}");
        if let Some(pinned) = overview["generations"]["pinned"].as_str() {
            let _ = write!(text, "; pinned: {}", clean(pinned));
        }
        if let Some(candidate) = overview["candidate"].as_str() {
            let _ = write!(text, "; {} sits its exam", clean(candidate));
        }
        self.line("serving", &text);
        let count = items(&overview["policies"]["policies"]).count();
        let revision: String = word(&overview["policies"]["revision"])
            .chars()
            .take(12)
            .collect();
        let policies = if count == 1 { "policy" } else { "policies" };
        self.line("policies", &format!("{count} {policies}, set {revision}"));
        if let Some(refused) = overview["policies"]["last_error"].as_str() {
            let first = refused.lines().next().unwrap_or_default();
            let text = self.style.bad(&format!("refused: {}", clean(first)));
            self.line("", &text);
        }
    }

    fn load(&mut self, overview: &Value) {
        let engine = &overview["engine"];
        self.line(
            "load",
            &format!(
                "{} running, {} waiting, {} requests, {} connections, KV cache {}",
                number(&engine["running"]),
                number(&engine["waiting"]),
                number(&engine["requests"]),
                number(&engine["connections"]),
                percent(engine["kv_cache_usage"].as_f64())
            ),
        );
        let traffic = &overview["traffic"];
        let slot = number(&traffic["slot_seconds"]).max(1);
        let now = number(&overview["now"]);
        let until = now - now % slot;
        let from = until.saturating_sub(RATE_SLOTS * slot);
        let recent = || {
            items(&traffic["slots"]).filter(move |one| (from..until).contains(&number(&one["at"])))
        };
        let sum = |key: &str| recent().map(|one| number(&one[key])).sum::<u64>();
        let seconds = (until - from).max(1) as f64;
        let latest = items(&traffic["slots"]).rfind(|one| one["p50"].is_number());
        let time = |key: &str| {
            let value = latest.and_then(|one| one[key].as_f64());
            value.map_or_else(|| "–".to_owned(), duration)
        };
        let failed = sum("errors");
        let failed = if failed > 0 {
            self.style.bad(&format!(", {failed} failed"))
        } else {
            String::new()
        };
        self.line(
            "last minute",
            &format!(
                "{:.1} tokens/s, {} requests{failed}; half within {}, first token {}",
                sum("tokens") as f64 / seconds,
                sum("requests"),
                time("p50"),
                time("first_token_p50")
            ),
        );
    }

    fn realignment(&mut self, overview: &Value) {
        let job = &overview["realignment"];
        let now = number(&overview["now"]);
        if !job.is_object() {
            self.line("realignment", "none yet");
            return;
        }
        let status = word(&job["status"]);
        let begun = number(&job["created_at"]);
        if status != "running" {
            let ended = number(&job["finished_at"]);
            let state = self.style.state(&status);
            self.line(
                "realignment",
                &format!(
                    "{state}, {} ago, took {}",
                    span(now.saturating_sub(ended)),
                    span(ended.saturating_sub(begun))
                ),
            );
            if let Some(error) = job["error"].as_str() {
                self.line("", &clean(error));
            }
            return;
        }
        let stage = word(&job["stage"]);
        let share = job["stage_progress"]
            .as_f64()
            .unwrap_or_default()
            .clamp(0.0, 1.0);
        let mut text = format!(
            "{}  {stage}  {} {}",
            self.style.state(&status),
            bar(share),
            percent(Some(share))
        );
        let losses = &job["losses"];
        if stage == "train" && losses["steps"].is_number() {
            let (step, steps) = (number(&losses["step"]), number(&losses["steps"]));
            // After its last step a round asks what it was trained on, which takes as long as many steps.
            let then = match step < steps {
                true => "",
                false => ", asking again",
            };
            let _ = write!(text, "  step {step} of {steps}{then}");
        }
        let entered = items(&job["timeline"]["stages"])
            .rfind(|one| one["stage"] == job["stage"])
            .map(|one| number(&one["started_at"]));
        if let Some(entered) = entered
            && share >= ENOUGH
        {
            let took = now.saturating_sub(entered) as f64;
            let left = took * (1.0 - share) / share;
            let _ = write!(text, "  about {} left in this stage", span(left as u64));
        }
        self.line("realignment", &text);
        self.line(
            "",
            &format!("begun {} ago", span(now.saturating_sub(begun))),
        );
    }

    fn compliance(&mut self, overview: &Value, exam: &Value) {
        let slots = &overview["traffic"]["slots"];
        let sum = |key: &str| items(slots).map(|one| number(&one[key])).sum::<u64>();
        let (good, wrong) = (sum("complies"), sum("violates"));
        let live = match good + wrong {
            _ if overview["server"]["judges"] == false => {
                "answers are not judged: compliance.share is 0".to_owned()
            }
            0 => "no answer judged in the last five minutes".to_owned(),
            all => format!(
                "{} of {all} answers comply, in the last five minutes",
                percent(Some(good as f64 / all as f64))
            ),
        };
        self.line("live", &live);
        let rules: Vec<&Value> = items(&overview["violations"]).collect();
        if rules.is_empty() {
            return;
        }
        let name = |rule: &Value| format!("{}:{}", word(&rule["policy"]), word(&rule["rule"]));
        let wide = rules.iter().map(|rule| name(rule).chars().count());
        let wide = wide.max().unwrap_or_default().clamp(4, 48);
        let head = format!(
            "\n{:9} {:wide$} {:>20} {:>24}",
            "severity", "rule", "live, since active", "exam"
        );
        for line in head.lines() {
            let line = self.style.muted(line);
            self.lines.push(line);
        }
        for rule in rules {
            let line = self.rule(rule, exam, (&name(rule), wide));
            self.lines.push(line);
        }
    }

    fn rule(&self, rule: &Value, exam: &Value, (name, wide): (&str, usize)) -> String {
        let (count, judged) = (number(&rule["count"]), number(&rule["judged"]));
        let live = match judged {
            0 => "none judged".to_owned(),
            all => {
                let share = 1.0 - count.min(all) as f64 / all as f64;
                format!("{} of {all}", percent(Some(share)))
            }
        };
        let live = format!("{live:>20}");
        let live = if count > 0 {
            self.style.bad(&live)
        } else {
            live
        };
        let sat = items(&exam["serving"]["rules"])
            .find(|one| one["policy"] == rule["policy"] && one["rule"] == rule["rule"]);
        let (measured, standing) = match sat {
            None => ("not measured".to_owned(), String::new()),
            Some(sat) => (
                format!(
                    "{} of {}",
                    percent(sat["compliance"]["ratio"].as_f64()),
                    number(&sat["compliance"]["of"])
                ),
                self.style.state(&word(&sat["standing"])),
            ),
        };
        format!(
            "{:9} {name:wide$} {live} {measured:>24}  {standing}",
            word(&rule["severity"])
        )
    }
}

fn items(list: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// A text of the server, which must not control the terminal.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn word(value: &Value) -> String {
    clean(value.as_str().unwrap_or("–"))
}

fn texts(list: &Value) -> Vec<String> {
    items(list).filter_map(Value::as_str).map(clean).collect()
}

fn percent(share: Option<f64>) -> String {
    match share {
        Some(share) => format!("{:.1} %", share * 100.0),
        None => "–".to_owned(),
    }
}

fn bar(share: f64) -> String {
    let full = (share * BAR as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR - full.min(BAR)))
}

/// Whole seconds, in two units at most.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

/// The first `columns` characters of a line; colours take none and end with it.
fn cut(line: &str, columns: usize) -> String {
    let mut left = columns;
    let mut in_code = false;
    let mut text = String::new();
    for c in line.chars() {
        if c == '\x1b' {
            in_code = true;
        }
        if in_code {
            in_code = c != 'm';
            text.push(c);
        } else if left > 0 {
            left -= 1;
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Style = Style { colours: false };

    fn seen(status: &str) -> Value {
        json!({
            "overview": {
                "now": 1000,
                "server": { "version": "1.2", "model": "m", "started_at": 900, "ready": true, "judges": true },
                "serving": {
                    "generation": "abc",
                    "alignment": { "state": "misaligned", "reasons": ["p:r \u{1b}[2J misses", "another"] },
                },
                "generations": { "generations": [{ "id": "abc", "base": true }], "pinned": null },
                "candidate": "def",
                "policies": { "revision": "0123456789abcdef", "policies": [{}], "last_error": null },
                "engine": { "running": 1, "waiting": 2, "requests": 3, "connections": 4, "kv_cache_usage": 0.5 },
                "traffic": { "slot_seconds": 15, "slots": [
                    { "at": 915, "requests": 9, "tokens": 9000, "errors": 0, "complies": 1, "violates": 0, "p50": 9.0, "first_token_p50": 0.5 },
                    { "at": 930, "requests": 2, "tokens": 120, "errors": 1, "complies": 2, "violates": 1, "p50": 0.25, "first_token_p50": 0.05 },
                    { "at": 990, "requests": 5, "tokens": 999, "errors": 0, "complies": 0, "violates": 0, "p50": null, "first_token_p50": null },
                ]},
                "realignment": {
                    "status": status, "stage": "train", "progress": 0.5, "stage_progress": 0.25, "created_at": 940, "finished_at": 960,
                    "losses": { "step": 3, "steps": 12 },
                    "timeline": { "stages": [{ "stage": "train", "started_at": 980 }] },
                },
                "violations": [{ "policy": "p", "rule": "r", "severity": "high", "count": 1, "judged": 4 }],
            },
            "exam": { "serving": { "rules": [
                { "policy": "p", "rule": "r", "compliance": { "ratio": 0.9, "of": 20 }, "standing": "misses" },
            ]}},
        })
    }

    #[test]
    fn a_frame_says_what_the_server_said() {
        let frame = Frame::new(&seen("running"), "http://host", PLAIN);
        let text = frame.text(None);
        for expect in [
            "realign 1.2  m  http://host  ready, up 1 min 40 s",
            "misaligned  p:r  [2J misses, and 1 more",
            "abc, the base model; def sits its exam",
            "1 policy, set 0123456789ab",
            "1 running, 2 waiting, 3 requests, 4 connections, KV cache 50.0 %",
            "2.0 tokens/s, 2 requests, 1 failed; half within 250 ms, first token 50 ms",
            "running  train  [######------------------] 25.0 %  step 3 of 12  about 1 min 0 s left in this stage",
            "begun 1 min 0 s ago",
            "75.0 % of 4 answers comply",
            "75.0 % of 4             90.0 % of 20  misses",
        ] {
            assert!(text.contains(expect), "{expect:?} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'), "{text:?}");
        let ended = Frame::new(&seen("succeeded"), "u", PLAIN).text(None);
        assert!(ended.contains("succeeded, 40 s ago, took 20 s"), "{ended}");
    }

    #[test]
    fn a_frame_fits_its_terminal_and_survives_an_answer_that_lacks_everything() {
        let mut frame = Frame::new(&seen("running"), "u", Style { colours: true });
        frame.warn("no answer\nfrom u");
        let text = frame.text(Some((5, 30)));
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().nth(1).unwrap().contains("no answer from u"));
        let plain = regex::Regex::new("\x1b\\[[0-9]+m").unwrap();
        for line in text.lines() {
            assert!(
                plain.replace_all(line, "").chars().count() <= 30,
                "{line:?}"
            );
            assert!(!line.contains('\x1b') || line.ends_with("\x1b[0m") || !line.ends_with('m'));
        }
        let empty = Frame::new(&json!({}), "u", PLAIN).text(None);
        assert!(empty.contains("none yet"), "{empty}");
    }
}
