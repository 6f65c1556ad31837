//! What clients send as constraints, as rules of llguidance's Lark.

use llguidance::regex_to_lark;

use super::gbnf;

/// Maximum number of lines, that is of definitions: compiling follows their references by recursion.
pub(super) const MAX_LINES: usize = 2000;

/// Why a grammar's text cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarTextError {
    /// It is not GBNF, or has something that cannot be enforced.
    #[error("line {line}: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A rule is used and not defined.
    #[error("the rule `{0}` is not defined")]
    Undefined(String),
    /// A rule is defined more than once.
    #[error("the rule `{0}` is defined twice")]
    Twice(String),
    /// It has more definitions than are compiled.
    #[error("it has {0} lines as Lark; allowed: up to {MAX_LINES}")]
    TooLong(usize),
}

/// A whole grammar in llguidance's Lark dialect, with the rule `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grammar(pub String);

impl Grammar {
    /// Reads a grammar: GBNF if it has `::=`, otherwise Lark, also after the line
    /// `%llguidance {…}` as in llama.cpp's server.
    ///
    /// # Errors
    /// [`GrammarTextError`]. The syntax of Lark is checked when it is compiled.
    pub fn read(text: &str) -> Result<Self, GrammarTextError> {
        let is_lark = text.trim_start().starts_with("%llguidance") || !text.contains("::=");
        let lark = if is_lark {
            temperatures(text)?;
            text.to_string()
        } else {
            gbnf::to_lark(text)?
        };
        let lines = lark.lines().count();
        if lines > MAX_LINES {
            return Err(GrammarTextError::TooLong(lines));
        }
        Ok(Self(lark))
    }
}

/// Refuses rules that set a temperature, which the sampler would not follow.
fn temperatures(lark: &str) -> Result<(), GrammarTextError> {
    for (i, line) in lark.lines().enumerate() {
        let Some((name, rest)) = line.split_once('[') else {
            continue;
        };
        let attributes = rest.split(']').next().unwrap_or_default();
        if !name.contains([':', '"', '/']) && attributes.contains("temperature") {
            return Err(GrammarTextError::Line {
                line: i + 1,
                problem: "`temperature` of a rule cannot be followed".into(),
            });
        }
    }
    Ok(())
}

/// The right side of a rule for a text that matches the regular expression as a whole: `^` and `$`
/// at its ends change nothing. Digits (`\d`) are ASCII's.
pub fn regex_rule(regex: &str) -> String {
    if regex.is_empty() {
        // `//` would begin a comment.
        return "\"\"".into();
    }
    let lark = regex_to_lark(regex, "d");
    let backslashes = regex.len() - regex.trim_end_matches('\\').len();
    // One that escapes nothing: the rule must be as wrong as the expression.
    let end = if backslashes % 2 == 1 { "\\" } else { "" };
    format!("/{lark}{end}/")
}

/// The right side of a rule for one of these texts.
pub fn choice_rule<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(gbnf::literal).collect();
    texts.join(" | ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Grammars;
    use super::super::tests::takes;
    use super::*;
    use realign_model::Tokenizer;
    use realign_model::test_support::test_model;

    #[test]
    fn rules_of_texts() {
        assert_eq!(regex_rule("^a/b\n\\d$"), r"/^a\/b\n[0-9]$/");
        assert_eq!(regex_rule(""), "\"\"");
        assert_eq!(regex_rule("a\\"), r"/a\/");
        assert_eq!(regex_rule(r"a\\"), r"/a\\/");
        assert_eq!(choice_rule(["a\"", "\u{7f}"]), r#""a\"" | "\u007f""#);
    }

    #[test]
    fn grammars_are_told_apart() {
        let warm = "start: a\na[capture, temperature=0.5]: /x/";
        let refused = Grammar::read(warm).unwrap_err().to_string();
        assert_eq!(
            refused,
            "line 2: `temperature` of a rule cannot be followed"
        );
        assert!(Grammar::read("start: \"[temperature\"").is_ok());
        let long = Grammar::read(&"a: \"x\"\n".repeat(3000)).unwrap_err();
        assert_eq!(long, GrammarTextError::TooLong(3000));
        let lark = "%llguidance {}\nstart: \"::=\"";
        assert_eq!(Grammar::read(lark), Ok(Grammar(lark.into())));
        assert_eq!(
            Grammar::read("start: \"a\""),
            Ok(Grammar("start: \"a\"".into()))
        );
        assert!(
            Grammar::read("root ::= \"a\"")
                .unwrap()
                .0
                .starts_with("start: R0")
        );
    }

    #[test]
    fn expressions_match_as_a_whole() {
        let tokenizer = Arc::new(Tokenizer::from_gguf(&test_model()).unwrap());
        let all = (tokenizer.clone(), Grammars::new(tokenizer));
        let cases = [
            ("^a+$", "aa", (true, true)),
            ("^a+$", "ab", (false, false)),
            ("a|b/c", "b/c", (true, true)),
            ("a|b/c", "b", (true, false)),
            (r"\d{2}-\d{2}", "12-34", (true, true)),
            ("(^a$|^b$)", "b", (true, true)),
            ("a*?b", "aab", (true, true)),
            ("a*", "", (true, true)),
            ("(?i)yes", "YeS", (true, true)),
            ("[^/]+", "a\nb", (true, true)),
        ];
        for (regex, text, expect) in cases {
            let lark = format!("start: {}\n", regex_rule(regex));
            assert_eq!(takes(&all, &lark, text), expect, "{regex} {text:?}");
        }
        for wrong in ["(", "a\\", "(?=a)b", "a\\b", "[z-a]"] {
            let lark = format!("start: {}\n", regex_rule(wrong));
            assert!(all.1.compile(&lark).is_err(), "{wrong}");
        }
    }
}
