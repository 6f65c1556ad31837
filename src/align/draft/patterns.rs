//! Kinds of text that have a form rather than words: figures with units, amounts of money, links.

use regex::Regex;

/// A kind of text.
struct Form {
    /// What finds it.
    regex: &'static str,
    /// Words of a rule that speak of it.
    hints: &'static [&'static str],
    /// Whether it counts only where the rule speaks of it: most answers have some by chance.
    by_hint: bool,
}

const FORMS: [Form; 12] = [
    Form {
        regex: r"[$€£¥]\s?\d|(?i)\b\d[\d.,]*\s?(?:usd|eur|gbp|dollars?|euros?|pounds?)\b",
        hints: &["price", "cost", "money", "amount", "dollar", "euro"],
        by_hint: false,
    },
    Form {
        regex: r"\d\s?(?:%|(?i)per ?cent\b)",
        hints: &["percent", "per cent", "%", "probabilit"],
        by_hint: false,
    },
    Form {
        regex: r"(?i)\bhttps?://\S+|\bwww\.\S+",
        hints: &["link", "url", "website", "web page"],
        by_hint: false,
    },
    Form {
        regex: r"(?i)\b[\w.+-]+@[\w-]+\.[\w.]+\b",
        hints: &["email", "e-mail", "address", "contact", "personal"],
        by_hint: false,
    },
    Form {
        regex: r"\+?\d[\d ()/-]{6,}\d",
        hints: &["phone", "telephone", "number", "contact"],
        by_hint: false,
    },
    Form {
        regex: r"[\x{1F300}-\x{1FAFF}\x{2600}-\x{27BF}]",
        hints: &["emoji", "smiley"],
        by_hint: false,
    },
    Form {
        regex: r"(?m)```|^ {4}\S",
        hints: &["code", "program"],
        by_hint: true,
    },
    Form {
        regex: r"!",
        hints: &["exclamation", "enthusias", "excite", "calm", "shout"],
        by_hint: true,
    },
    Form {
        regex: r"(?m)^\s*(?:[-*•]|\d+[.)])\s",
        hints: &["list", "bullet", "markdown"],
        by_hint: true,
    },
    Form {
        regex: r"\*\*[^*\n]+\*\*|(?m)^#{1,6} ",
        hints: &["markdown", "bold", "heading", "formatting"],
        by_hint: true,
    },
    Form {
        regex: r"\?\s*$",
        hints: &["question", "ask back"],
        by_hint: true,
    },
    Form {
        regex: r"\d",
        hints: &["number", "figure", "digit"],
        by_hint: true,
    },
];

/// A pattern that some wrong answer has.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) source: String,
    pub(super) regex: Regex,
    /// Whether the rule speaks of it.
    pub(super) is_named: bool,
}

/// The patterns that may tell answers apart under a rule.
pub(super) fn candidates(texts: &[&str], rule: &str) -> Vec<Candidate> {
    let rule = rule.to_lowercase();
    let mut out: Vec<Candidate> = Vec::new();
    let mut add = |source: String, is_named| {
        if let Ok(regex) = Regex::new(&source) {
            out.push(Candidate {
                source,
                regex,
                is_named,
            });
        }
    };
    if let Some(source) = with_units(texts) {
        let named = ["dose", "dosage", "number", "figure", "amount", "unit"];
        let is_named = named.iter().any(|word| rule.contains(word));
        add(source, is_named);
    }
    for form in &FORMS {
        let is_named = form.hints.iter().any(|hint| rule.contains(hint));
        if is_named || !form.by_hint {
            add(form.regex.to_owned(), is_named);
        }
    }
    out
}

/// Figures with the units that the texts have.
fn with_units(texts: &[&str]) -> Option<String> {
    let figure = Regex::new(r"(?i)\b\d+(?:[.,]\d+)?[\s-]?([a-zµ]{1,12})\b").ok()?;
    let mut units: Vec<String> = texts
        .iter()
        .flat_map(|text| figure.captures_iter(text))
        .filter_map(|found| Some(found.get(1)?.as_str().to_lowercase()))
        .filter(|unit| !super::phrases::is_stopword(unit))
        .collect();
    units.sort();
    units.dedup();
    (!units.is_empty()).then(|| format!(r"(?i)\b\d+(?:[.,]\d+)?[\s-]?(?:{})\b", units.join("|")))
}
