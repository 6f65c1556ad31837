//! GBNF, the grammars of llama.cpp's server, written as llguidance's Lark.
//!
//! A rule that cannot reach itself is a regular expression. It becomes a terminal. All other rules
//! stay rules, and the regular stretches between their references become terminals. Terminals match
//! as much text as they can; where that could be too much, each character is a terminal instead.

mod ambiguity;
mod automaton;
mod parse;

use std::collections::HashMap;
use std::fmt::Write;

use super::text::{GrammarTextError, MAX_LINES};
use parse::{Choices, Element, Item, Rule, Sequence};

/// Translates a grammar whose first rule to match is `root`.
///
/// # Errors
/// [`GrammarTextError`], also for references to tokens (`<think>`, `<[1000]>`), which GBNF has and this
/// translation does not.
pub(super) fn to_lark(gbnf: &str) -> Result<String, GrammarTextError> {
    let all = parse::rules(gbnf)?;
    let mut rules = Rules::new(&all)?;
    let Some(root) = rules.names.get("root").copied() else {
        return Err(GrammarTextError::Undefined("root".into()));
    };
    rules.find_regular()?;
    if !rules.regular[root] && ambiguity::is_ambiguous(&rules) {
        rules.by_character = true;
        rules.regular.fill(false);
    }
    let mut lark = Lark {
        text: format!("start: {}\n", rules.name(root)),
        rules: &rules,
        parts: 0,
    };
    for (i, rule) in all.iter().enumerate() {
        lark.rule(i, rule);
    }
    Ok(lark.text)
}

/// The rules of a grammar.
struct Rules<'a> {
    all: &'a [Rule],
    names: HashMap<&'a str, usize>,
    /// By rule: whether it cannot reach a rule that refers to itself.
    regular: Vec<bool>,
    /// Every character is a terminal. Slow, and right where terminals would end too late.
    by_character: bool,
}

impl<'a> Rules<'a> {
    fn new(all: &'a [Rule]) -> Result<Self, GrammarTextError> {
        if all.len() > MAX_LINES {
            return Err(GrammarTextError::TooLong(all.len()));
        }
        let mut names = HashMap::new();
        for (i, rule) in all.iter().enumerate() {
            if names.insert(rule.name.as_str(), i).is_some() {
                return Err(GrammarTextError::Twice(rule.name.clone()));
            }
        }
        Ok(Self {
            all,
            names,
            regular: vec![false; all.len()],
            by_character: false,
        })
    }

    fn find_regular(&mut self) -> Result<(), GrammarTextError> {
        let mut references = Vec::new();
        for rule in self.all {
            let mut found = Vec::new();
            for name in referenced(&rule.choices) {
                let to = self.names.get(name).copied();
                found.push(to.ok_or_else(|| GrammarTextError::Undefined(name.to_string()))?);
            }
            references.push(found);
        }
        let regular = &mut self.regular;
        loop {
            let next: Vec<usize> = (0..references.len())
                .filter(|&i| !regular[i] && references[i].iter().all(|&to| regular[to]))
                .collect();
            if next.is_empty() {
                return Ok(());
            }
            next.into_iter().for_each(|i| regular[i] = true);
        }
    }

    /// The rule of this name; undefined names have been refused.
    fn index(&self, name: &str) -> usize {
        self.names.get(name).copied().unwrap_or(0)
    }

    /// The Lark name of rule `i`: terminals are upper case.
    fn name(&self, i: usize) -> String {
        if self.regular[i] {
            format!("R{i}")
        } else {
            format!("r{i}")
        }
    }

    fn is_regular(&self, element: &Element) -> bool {
        match &element.item {
            Item::Text(_) | Item::Class(_) => !self.by_character,
            Item::Rule(name) => self.regular[self.index(name)],
            Item::Group(choices) => choices.iter().flatten().all(|e| self.is_regular(e)),
        }
    }

    /// The parts of a sequence that are regular, and those that are not.
    fn stretches<'s>(&self, sequence: &'s Sequence) -> Vec<&'s [Element]> {
        let same = |a: &Element, b: &Element| self.is_regular(a) == self.is_regular(b);
        sequence.chunk_by(same).collect()
    }
}

/// The names of the rules that these choices refer to.
fn referenced(choices: &Choices) -> Vec<&str> {
    let mut names = Vec::new();
    for element in choices.iter().flatten() {
        match &element.item {
            Item::Rule(name) => names.push(name.as_str()),
            Item::Group(inner) => names.extend(referenced(inner)),
            Item::Text(_) | Item::Class(_) => {}
        }
    }
    names
}

/// The grammar while it is written.
struct Lark<'a> {
    rules: &'a Rules<'a>,
    text: String,
    /// Number of terminals that stand for parts of rules.
    parts: usize,
}

impl Lark<'_> {
    fn rule(&mut self, i: usize, rule: &Rule) {
        let name = self.rules.name(i);
        let body = if self.rules.regular[i] {
            self.terminal(&rule.choices)
        } else {
            self.choices(&rule.choices)
        };
        self.line(&name, &body);
    }

    fn line(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name}: {body}");
    }

    /// Choices as a regular expression of terminals.
    fn terminal(&self, choices: &Choices) -> String {
        let choices: Vec<String> = choices.iter().map(|s| self.elements(s)).collect();
        choices.join(" | ")
    }

    fn elements(&self, elements: &[Element]) -> String {
        let written = |element: &Element| {
            let item = match &element.item {
                Item::Text(text) => literal(text),
                Item::Class(class) => format!("/{}/", class.regex()),
                Item::Rule(name) => self.rules.name(self.rules.index(name)),
                Item::Group(choices) => format!("({})", self.terminal(choices)),
            };
            repeated(&item, element)
        };
        joined(elements.iter().map(written).collect())
    }

    /// Choices of a rule that is not regular.
    fn choices(&mut self, choices: &Choices) -> String {
        let sequences: Vec<String> = choices.iter().map(|s| self.sequence(s)).collect();
        sequences.join(" | ")
    }

    fn sequence(&mut self, sequence: &Sequence) -> String {
        let mut written = Vec::new();
        for stretch in self.rules.stretches(sequence) {
            if self.rules.is_regular(&stretch[0]) {
                let body = self.elements(stretch);
                let name = format!("P{}", self.parts);
                self.parts += 1;
                self.line(&name, &body);
                written.push(name);
                continue;
            }
            for element in stretch {
                let item = match &element.item {
                    Item::Group(choices) => format!("({})", self.choices(choices)),
                    Item::Rule(name) => self.rules.name(self.rules.index(name)),
                    Item::Text(text) => {
                        let characters = text.chars().map(|c| literal(c.encode_utf8(&mut [0; 4])));
                        format!("({})", joined(characters.collect()))
                    }
                    Item::Class(class) => format!("/{}/", class.regex()),
                };
                written.push(repeated(&item, element));
            }
        }
        joined(written)
    }
}

/// What follows one another; the empty text if nothing does.
fn joined(elements: Vec<String>) -> String {
    if elements.is_empty() {
        return "\"\"".into();
    }
    elements.join(" ")
}

fn repeated(item: &str, element: &Element) -> String {
    match element.repeat {
        None => item.to_string(),
        Some((0, None)) => format!("{item}*"),
        Some((1, None)) => format!("{item}+"),
        Some((0, Some(1))) => format!("{item}?"),
        Some((_, Some(0))) => "\"\"".into(),
        Some((min, None)) => format!("{item}{{{min},}}"),
        Some((min, Some(max))) => format!("{item}{{{min},{max}}}"),
    }
}

/// A text as a Lark string: JSON's escapes, and those of the characters that Lark refuses raw.
pub(super) fn literal(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::takes;
    use super::super::{Grammar, Grammars};
    use super::*;
    use realign_model::Tokenizer;
    use realign_model::test_support::test_model;

    #[test]
    fn regular_rules_are_terminals_and_others_rules() {
        let cases = [
            (
                "root ::= \"yes\" | \"no\"",
                "start: R0\nR0: \"yes\" | \"no\"\n",
            ),
            (
                "root ::= [a-c]{2,3} digit? # note\ndigit ::= [^0-9\\n] .",
                "start: R0\nR0: /[\\x{61}-\\x{63}]/{2,3} R1?\n\
                 R1: /[^\\x{30}-\\x{39}\\x{a}]/ /(.|\\n)/\n",
            ),
            (
                "root ::= \"(\" ws root? \")\"\nws ::= \" \"*",
                "P0: \"(\" R1\nP1: \")\"\nr0: P0 r0? P1\n",
            ),
            ("root ::= \"\" | \"a\"{0}", "start: R0\nR0: \"\" | \"\"\n"),
        ];
        for (gbnf, expect) in cases {
            let lark = to_lark(gbnf).unwrap();
            assert!(lark.contains(expect), "{gbnf}\n{lark}");
        }
    }

    #[test]
    fn wrong_grammars_are_refused_with_their_line() {
        let cases = [
            ("", "the rule `root` is not defined"),
            ("a ::= \"x\"", "the rule `root` is not defined"),
            ("root ::= a", "the rule `a` is not defined"),
            (
                "root ::= \"a\"\nroot ::= \"b\"",
                "the rule `root` is defined twice",
            ),
            ("root ::= \"a", "line 1: the text has no closing `\"`"),
            ("root ::=\n  [z-a]", "line 2: the range `z-a` is empty"),
            ("root ::= [a", "line 1: the class has no closing `]`"),
            ("root ::= (\"a\"", "line 1: the group has no closing `)`"),
            (
                "root ::= <think>",
                "line 1: references to tokens (`<…>`) cannot be enforced",
            ),
            ("root ::= \"\\q\"", "line 1: `\\q` is not an escape"),
            (
                "root ::= \"a\"*+",
                "line 1: a second number of repetitions needs a group",
            ),
            ("root = \"a\"", "line 1: `::=` must follow the name `root`"),
            (
                "root ::= \"a\"{3,2}",
                "line 1: `{3,2}` is not a number of repetitions",
            ),
        ];
        for (gbnf, expect) in cases {
            assert_eq!(to_lark(gbnf).unwrap_err().to_string(), expect, "{gbnf}");
        }
    }

    /// llama.cpp's own examples, shortened.
    const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;
    const LIST: &str =
        "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"";

    /// White space may belong to a number or to what follows it.
    const SUM: &str = "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+] term)*\n\
        term ::= num | \"(\" ws expr \")\" ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*";

    #[test]
    fn where_terminals_could_end_too_late_characters_are_terminals() {
        let by_character = |gbnf: &str| !to_lark(gbnf).unwrap().contains("P0: ");
        for (gbnf, expect) in [
            (JSON, false),
            (SUM, true),
            ("root ::= \"(\" [a-z]* root? \"a)\"", true),
            ("root ::= \"(\" [a-z]* root? \")\"", false),
            ("root ::= \"ab\" root \"c\" | \"abc\" | \"d\"", false),
            ("root ::= \"a\" root \"c\" | \"ad\" | \"d\"", true),
            ("root ::= [^a] root? \"é\"*", true),
        ] {
            assert_eq!(by_character(gbnf), expect, "{gbnf}");
        }
        let hostile = format!("root ::= {} root?", "[a-z]{0,300} ".repeat(6));
        let started = std::time::Instant::now();
        assert!(by_character(&hostile), "it takes too much work");
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn grammars_take_what_they_describe() {
        let tokenizer = Arc::new(Tokenizer::from_gguf(&test_model()).unwrap());
        let all = (tokenizer.clone(), Grammars::new(tokenizer));
        let cases = [
            (JSON, r#"{"a": [1, -2.5e3, {}], "b": "é\n"}"#, (true, true)),
            (JSON, r#"{"a": tru}"#, (false, false)),
            (JSON, "[1]", (false, false)),
            (SUM, "1+(2 -3)=4\n\n", (true, true)),
            (SUM, "1=2", (true, false)),
            (SUM, "1=\n2 \n", (true, true)),
            (SUM, "=", (false, false)),
            (LIST, "- one\n- two\n", (true, true)),
            (LIST, "- one\n- two", (true, false)),
            (LIST, "one", (false, false)),
            // A literal that another element could have begun.
            ("root ::= [a-z]* \"abc\"", "xababc", (true, true)),
            ("root ::= [a-z]* \"abc\"", "xab", (true, false)),
        ];
        for (gbnf, text, expect) in cases {
            let Grammar(lark) = Grammar::read(gbnf).unwrap();
            assert_eq!(takes(&all, &lark, text), expect, "{text}\n{lark}");
        }
    }
}
