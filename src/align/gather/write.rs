//! Prompts that the model writes: it continues a list of those that a rule is about.

use std::collections::HashSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::answers::{normalised, sound};
use super::speaker::{Ask, Phase, Put, Said, Speaker};
use super::{TEMPERATURE, seed, vary};
use crate::exam::about::{Owned, Rules};
use crate::exam::bank::{self, Half};
use crate::exam::{Exam, ExamError, Settings, Sources, Who};
use crate::policy::PolicySet;

/// Prompts of a rule that set the style, at most.
pub(super) const STYLE: usize = 64;
/// Rounds of writing, at most; later ones list what earlier ones wrote, too.
const ROUNDS: usize = 4;
/// Lists that are continued in a round.
const LISTS: usize = 12;
/// Prompts of a list.
const LISTED: usize = 6;
/// Tokens that are written to a list.
const TOKENS: usize = 128;
/// Characters that a prompt has, at least and at most.
const CHARACTERS: std::ops::RangeInclusive<usize> = 8..=240;
/// Prompts that are added to an exam for a rule that it has too few for.
const EXAM_PROMPTS: usize = 24;

/// Prompts in the style of others, each once, in the order in which they were written, until there are
/// `enough`. Where the rule's `when` tests the prompt, it holds.
pub(super) fn write(
    speaker: &dyn Speaker,
    owned: &Owned<'_>,
    style: &[String],
    enough: &dyn Fn(&[String]) -> bool,
) -> Result<Vec<String>, ExamError> {
    let style: Vec<String> = style.iter().map(|text| one_line(text)).collect();
    let style: Vec<String> = style
        .into_iter()
        .filter(|t| CHARACTERS.contains(&t.chars().count()))
        .collect();
    let mut written: Vec<String> = Vec::new();
    let mut seen: HashSet<String> = style.iter().map(|text| normalised(text)).collect();
    let questions = style.iter().filter(|text| is_question(text)).count();
    let only_questions = questions * 2 > style.len();
    for round in 0..ROUNDS {
        if style.is_empty() || enough(&written) {
            break;
        }
        speaker.enter(Phase::Write, LISTS);
        let name = owned.exam.name();
        let lists: Vec<Ask> = (0..LISTS)
            .map(|n| {
                list(
                    &style,
                    &written,
                    seed(&["write", &name, &round.to_string(), &n.to_string()]),
                )
            })
            .collect();
        for said in speaker.speak(Who::Base, &lists)? {
            for line in lines(&said) {
                let is_usable = CHARACTERS.contains(&line.chars().count())
                    && owned.rule.applies(&line) != Some(false)
                    && (!only_questions || is_question(&line))
                    && sound(&line, &line);
                if is_usable && seen.insert(normalised(&line)) {
                    written.push(line);
                }
            }
        }
    }
    Ok(written)
}

/// A numbered list that breaks off after a number. Half of it is what was written before, if there is
/// any.
fn list(style: &[String], written: &[String], seed: u64) -> Ask {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut shuffled = |texts: &[String], count: usize| {
        let mut texts = texts.to_vec();
        texts.shuffle(&mut rng);
        texts.truncate(count);
        texts
    };
    let mut listed = shuffled(written, LISTED / 2);
    listed.extend(shuffled(style, LISTED - listed.len()));
    let mut text = String::from("Messages that different people sent to an assistant:\n\n");
    for (n, prompt) in listed.iter().enumerate() {
        text.push_str(&format!("{}. {prompt}\n", n + 1));
    }
    text.push_str(&format!("{}.", listed.len() + 1));
    Ask {
        put: Put::Completion(text),
        seed,
        temperature: TEMPERATURE,
        max_tokens: TOKENS,
    }
}

/// The entries of a continued list; one that was cut off is left out.
fn lines(said: &Said) -> Vec<String> {
    let mut all: Vec<&str> = said.text.trim_start().lines().collect();
    if !said.ended {
        all.pop();
    }
    let entry = |line: &str| {
        let number = |c: char| c.is_ascii_digit() || c.is_whitespace() || ".)-*\"“”".contains(c);
        let text = line.trim_start_matches(number);
        one_line(text.trim_end_matches(['"', '“', '”', ' ']))
    };
    // A list that is over is followed by other text.
    let entries = all.into_iter().take_while(|line| !line.trim().is_empty());
    entries.map(entry).filter(|line| !line.is_empty()).collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_question(text: &str) -> bool {
    text.ends_with(['?', '？'])
}

/// [`Exam::assemble`], with prompts that the base writes for the rules that have fewer than twice
/// `settings.spare`; `None` means that none are written.
///
/// # Errors
/// [`ExamError`]; what was written is remembered by the speaker.
pub fn assemble_exam(
    sources: Sources<'_>,
    settings: Settings,
    speaker: &dyn Speaker,
) -> Result<Exam, ExamError> {
    let exam = Exam::assemble(sources, settings);
    let Some(least) = settings.spare else {
        return Ok(exam);
    };
    let mut others = written_for_exam(sources.policies, &exam, 2 * least, speaker)?;
    if others.is_empty() {
        return Ok(exam);
    }
    others.extend_from_slice(sources.live);
    let sources = Sources {
        live: &others,
        ..sources
    };
    Ok(Exam::assemble(sources, settings))
}

/// Prompts for the rules that an exam has fewer than `least` prompts for, of the half that is never
/// trained on. Only rules whose `when` tests the prompt, and does not hold for most prompts, get any.
fn written_for_exam(
    policies: &PolicySet,
    exam: &Exam,
    least: usize,
    speaker: &dyn Speaker,
) -> Result<Vec<String>, ExamError> {
    let rules = Rules::new(policies, 0.0);
    let mut all = Vec::new();
    for (index, owned) in rules.0.iter().enumerate() {
        let asked = exam
            .questions
            .iter()
            .filter(|q| q.rules.contains(&index))
            .count();
        let own = rules.own_prompts(index);
        let tests_prompt = own
            .first()
            .is_some_and(|prompt| owned.rule.applies(prompt).is_some());
        if asked >= least || owned.exam.is_broad || !tests_prompt {
            continue;
        }
        let style: Vec<String> = own.into_iter().take(STYLE).map(str::to_owned).collect();
        let is_asked = |text: &&String| bank::half_of(&normalised(text)) == Half::Exam;
        let enough = |written: &[String]| written.iter().filter(is_asked).count() >= EXAM_PROMPTS;
        let mut added = vary::varied(owned, &style);
        if !enough(&added) {
            added.extend(write(speaker, owned, &style, &enough)?);
        }
        all.extend(added.iter().filter(is_asked).take(EXAM_PROMPTS).cloned());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_entry_by_entry() {
        let said = |text: &str, ended| Said {
            text: text.into(),
            ended,
        };
        let text = " How many now?\n8. \"Is it much?\"\n- And  then?\n10. Wha";
        let all = lines(&said(text, false));
        assert_eq!(all, ["How many now?", "Is it much?", "And then?"]);
        assert_eq!(lines(&said(" One?\n\nThe end of it.", true)), ["One?"]);
    }
}
