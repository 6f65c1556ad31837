//! Reads GBNF.

use super::super::text::GrammarTextError;

/// Deepest nesting of groups.
const MAX_DEPTH: usize = 24;
/// Most repetitions, as in llama.cpp.
const MAX_REPEATS: u32 = 2000;

/// `name ::= choices`
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) choices: Choices,
}

/// Alternatives.
pub(super) type Choices = Vec<Sequence>;
/// What follows one another; empty for the empty text.
pub(super) type Sequence = Vec<Element>;

/// An item and how often it is repeated.
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) item: Item,
    /// At least and at most; `None` at the end is without bound.
    pub(super) repeat: Option<(u32, Option<u32>)>,
}

impl Element {
    pub(super) fn min(&self) -> u32 {
        self.repeat.map_or(1, |(min, _)| min)
    }

    /// `None` is without bound.
    pub(super) fn max(&self) -> Option<u32> {
        self.repeat.map_or(Some(1), |(_, max)| max)
    }

    /// Whether the item may follow itself.
    pub(super) fn repeats(&self) -> bool {
        self.max().is_none_or(|max| max > 1)
    }
}

/// A set of characters: those in the ranges, or all others.
#[derive(Clone, Debug)]
pub(super) struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    /// The class as a regular expression.
    pub(super) fn regex(&self) -> String {
        if self.ranges.is_empty() {
            return "(.|\\n)".into();
        }
        let mut class = String::from(if self.negated { "[^" } else { "[" });
        for (first, last) in &self.ranges {
            class.push_str(&format!("\\x{{{:x}}}", u32::from(*first)));
            if first != last {
                class.push_str(&format!("-\\x{{{:x}}}", u32::from(*last)));
            }
        }
        class + "]"
    }

    /// The characters, as ascending ranges that do not overlap.
    pub(super) fn set(&self) -> Vec<(u32, u32)> {
        let ranges = self.ranges.iter();
        let mut ranges: Vec<(u32, u32)> = ranges
            .map(|(first, last)| (u32::from(*first), u32::from(*last)))
            .collect();
        ranges.sort_unstable();
        let mut set: Vec<(u32, u32)> = Vec::new();
        let mut from = 0;
        for (first, last) in ranges {
            match set.last_mut() {
                Some(before) if !self.negated && first <= before.1 => {
                    before.1 = before.1.max(last);
                }
                _ if !self.negated => set.push((first, last)),
                _ => {
                    if first > from {
                        set.push((from, first - 1));
                    }
                    from = from.max(last + 1);
                }
            }
        }
        if self.negated && from <= u32::from(char::MAX) {
            set.push((from, char::MAX.into()));
        }
        set
    }
}

#[derive(Clone, Debug)]
pub(super) enum Item {
    Text(String),
    /// One character.
    Class(Class),
    Rule(String),
    Group(Choices),
}

/// Reads all rules.
pub(super) fn rules(text: &str) -> Result<Vec<Rule>, GrammarTextError> {
    let mut parser = Parser { text, at: 0 };
    let mut rules = Vec::new();
    loop {
        parser.skip();
        if parser.rest().is_empty() {
            return Ok(rules);
        }
        let name = parser.name();
        if name.is_empty() {
            let found: String = parser.rest().chars().take(1).collect();
            return Err(parser.wrong(format!("`{found}` is where a rule should begin")));
        }
        parser.skip();
        if !parser.eat("::=") {
            return Err(parser.wrong(format!("`::=` must follow the name `{name}`")));
        }
        let choices = parser.choices(0)?;
        rules.push(Rule { name, choices });
    }
}

struct Parser<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, what: &str) -> bool {
        let there = self.rest().starts_with(what);
        if there {
            self.at += what.len();
        }
        there
    }

    fn wrong(&self, problem: impl Into<String>) -> GrammarTextError {
        let line = self.text[..self.at].matches('\n').count() + 1;
        GrammarTextError::Line {
            line,
            problem: problem.into(),
        }
    }

    /// Passes over white space and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn name(&mut self) -> String {
        let of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let rest = self.rest();
        let end = rest.find(|c| !of_name(c)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_string()
    }

    /// Whether the next rule begins here.
    fn at_rule(&self) -> bool {
        let mut ahead = Parser { ..*self };
        let named = !ahead.name().is_empty();
        ahead.skip();
        named && ahead.eat("::=")
    }

    fn choices(&mut self, depth: usize) -> Result<Choices, GrammarTextError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(format!("groups are nested more than {MAX_DEPTH} deep")));
        }
        let mut choices = vec![self.sequence(depth)?];
        while self.eat("|") {
            choices.push(self.sequence(depth)?);
        }
        Ok(choices)
    }

    fn sequence(&mut self, depth: usize) -> Result<Sequence, GrammarTextError> {
        let mut sequence = Vec::new();
        loop {
            self.skip();
            if matches!(self.peek(), None | Some('|' | ')')) || self.at_rule() {
                return Ok(sequence);
            }
            let item = self.item(depth)?;
            self.skip();
            let repeat = self.repeat()?;
            let element = Element { item, repeat };
            self.skip();
            if repeat.is_some() && matches!(self.peek(), Some('*' | '+' | '?' | '{')) {
                return Err(self.wrong("a second number of repetitions needs a group"));
            }
            if !matches!(&element.item, Item::Text(text) if text.is_empty()) {
                sequence.push(element);
            }
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item, GrammarTextError> {
        match self.peek() {
            Some('"') => Ok(Item::Text(self.literal()?)),
            Some('[') => Ok(Item::Class(self.class()?)),
            Some('.') => {
                self.next();
                Ok(Item::Class(Class {
                    negated: true,
                    ranges: Vec::new(),
                }))
            }
            Some('(') => {
                let from = self.at;
                self.next();
                let choices = self.choices(depth + 1)?;
                if self.eat(")") {
                    return Ok(Item::Group(choices));
                }
                self.at = from;
                Err(self.wrong("the group has no closing `)`"))
            }
            Some('<' | '!') => Err(self.wrong("references to tokens (`<…>`) cannot be enforced")),
            Some(other) => match self.name() {
                name if name.is_empty() => Err(self.wrong(format!("`{other}` is unexpected"))),
                name => Ok(Item::Rule(name)),
            },
            None => Err(self.wrong("the grammar ends too early")),
        }
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}`, if there is one.
    fn repeat(&mut self) -> Result<Option<(u32, Option<u32>)>, GrammarTextError> {
        for (sign, repeat) in [("*", (0, None)), ("+", (1, None)), ("?", (0, Some(1)))] {
            if self.eat(sign) {
                return Ok(Some(repeat));
            }
        }
        if self.peek() != Some('{') {
            return Ok(None);
        }
        let inner = self.rest()[1..].split('}').next().unwrap_or_default();
        let shown: String = inner.chars().take(32).collect();
        let wrong = || self.wrong(format!("`{{{shown}}}` is not a number of repetitions"));
        let number = |text: &str| {
            let number = text.trim().parse::<u32>().map_err(|_| wrong())?;
            let fits = number <= MAX_REPEATS;
            fits.then_some(number)
                .ok_or_else(|| self.wrong(format!("more than {MAX_REPEATS} repetitions")))
        };
        let repeat = match inner.split_once(',') {
            None => number(inner).map(|n| (n, Some(n)))?,
            Some((min, "")) => (number(min)?, None),
            Some((min, max)) => (number(min)?, Some(number(max)?)),
        };
        if repeat.1.is_some_and(|max| max < repeat.0) {
            return Err(wrong());
        }
        self.at += inner.len() + 2;
        Ok(Some(repeat))
    }

    fn literal(&mut self) -> Result<String, GrammarTextError> {
        let from = self.at;
        self.next();
        let mut text = String::new();
        loop {
            match self.peek() {
                Some('"') => {
                    self.next();
                    return Ok(text);
                }
                Some(_) => text.push(self.character()?),
                None => {
                    self.at = from;
                    return Err(self.wrong("the text has no closing `\"`"));
                }
            }
        }
    }

    fn class(&mut self) -> Result<Class, GrammarTextError> {
        let from = self.at;
        self.next();
        let negated = self.eat("^");
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                Some(']') if ranges.is_empty() => return Err(self.wrong("the class is empty")),
                Some(']') => {
                    self.next();
                    return Ok(Class { negated, ranges });
                }
                Some(_) => ranges.push(self.range()?),
                None => {
                    self.at = from;
                    return Err(self.wrong("the class has no closing `]`"));
                }
            }
        }
    }

    /// A character of a class, or a range of them.
    fn range(&mut self) -> Result<(char, char), GrammarTextError> {
        let first = self.character()?;
        let rest = self.rest();
        if !rest.starts_with('-') || rest.starts_with("-]") {
            return Ok((first, first));
        }
        self.next();
        let last = self.character()?;
        if last < first {
            return Err(self.wrong(format!("the range `{first}-{last}` is empty")));
        }
        Ok((first, last))
    }

    /// A character, which may be escaped.
    fn character(&mut self) -> Result<char, GrammarTextError> {
        let too_early = |parser: &Self| parser.wrong("the grammar ends too early");
        let first = self.next().ok_or_else(|| too_early(self))?;
        if first != '\\' {
            return Ok(first);
        }
        let escape = self.next().ok_or_else(|| too_early(self))?;
        let digits = match escape {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '\\' | '"' | '[' | ']' => return Ok(escape),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(self.wrong(format!("`\\{escape}` is not an escape"))),
        };
        let code = self.rest().get(..digits);
        let code = code.filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = code.and_then(|code| u32::from_str_radix(code, 16).ok());
        let character = number.and_then(char::from_u32);
        let wrong = || {
            self.wrong(format!(
                "`\\{escape}` must have {digits} hex digits of a character"
            ))
        };
        let character = character.ok_or_else(wrong)?;
        self.at += digits;
        Ok(character)
    }
}
