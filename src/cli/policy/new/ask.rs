//! The questions of `realign policy new` on a terminal.

use std::io::{BufRead, Write};

use super::NewArgs;
use crate::CliError;
use realign_align::draft::{Answered, Brief, LEAST};

/// Someone who can be asked.
pub(super) struct Asker<'a> {
    input: &'a mut dyn BufRead,
    prompts: &'a mut dyn Write,
}

impl<'a> Asker<'a> {
    pub(super) fn new(input: &'a mut dyn BufRead, prompts: &'a mut dyn Write) -> Self {
        Self { input, prompts }
    }

    /// Asks for everything that the flags do not say.
    pub(super) fn complete(&mut self, args: &NewArgs, brief: &mut Brief) -> Result<(), CliError> {
        if brief.rule.is_empty() {
            brief.rule = self.required("The rule, in a plain sentence")?;
        }
        if args.topics.is_empty() {
            brief.topics = self.topics()?;
        }
        self.answers(brief)?;
        if args.stays.is_empty() {
            self.say("Which questions sound alike, and must be answered as before?")?;
            while let Some(stay) = self.line("A question (empty: enough)")? {
                brief.stays.push(stay);
            }
        }
        if brief.id.is_empty() {
            let proposed = super::slug(&brief.rule);
            let name = self.line(&format!("Name of the policy [{proposed}]"))?;
            brief.id = name.unwrap_or(proposed);
        }
        Ok(())
    }

    /// The words that say when the rule applies.
    pub(super) fn topics(&mut self) -> Result<Vec<String>, CliError> {
        let question =
            "Words of a question to which the rule applies, with commas (empty: it applies to all)";
        let line = self.line(question)?.unwrap_or_default();
        let words = line
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty());
        Ok(words.map(str::to_owned).collect())
    }

    /// Questions, each with a wrong and a right answer, until there are enough.
    fn answers(&mut self, brief: &mut Brief) -> Result<(), CliError> {
        let has_flags = !brief.wrong.is_empty() || !brief.right.is_empty();
        loop {
            let have = brief.wrong.len().min(brief.right.len());
            let prompt = match have < LEAST {
                true => Some(self.required(&format!("Question {} of {LEAST}", have + 1))?),
                false if has_flags => None,
                false => self.line("Another question (empty: enough)")?,
            };
            let Some(prompt) = prompt else { return Ok(()) };
            let response = self.required("  a wrong answer to it")?;
            brief.wrong.push(Answered {
                prompt: prompt.clone(),
                response,
            });
            let response = self.required("  a right answer to it")?;
            brief.right.push(Answered { prompt, response });
        }
    }

    /// Says something.
    pub(super) fn say(&mut self, text: &str) -> Result<(), CliError> {
        writeln!(self.prompts, "{text}")?;
        Ok(())
    }

    /// A line that is not empty; asked for until there is one.
    fn required(&mut self, question: &str) -> Result<String, CliError> {
        loop {
            if let Some(line) = self.line(question)? {
                return Ok(line);
            }
        }
    }

    /// A line; `None` if it is empty.
    fn line(&mut self, question: &str) -> Result<Option<String>, CliError> {
        write!(self.prompts, "{question}: ")?;
        self.prompts.flush()?;
        let mut line = String::new();
        if self.input.read_line(&mut line)? == 0 {
            let text = "the input ended before everything was asked; nothing was written";
            return Err(CliError::Draft(text.into()));
        }
        let line = line.trim();
        Ok((!line.is_empty()).then(|| line.to_owned()))
    }
}
