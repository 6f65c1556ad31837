//! Multiple choice: items, a stratified draw, margins. Pure.
//!
//! Every item becomes (context, continuation) per choice; the margin is the log-likelihood per
//! token of the right one less that of the best wrong one. Base and candidate answer the same
//! items, so differences are paired.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// One multiple-choice question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Name of the task.
    pub task: String,
    /// Context and continuation of every choice.
    pub choices: Vec<(String, String)>,
    /// Index of the right choice.
    pub gold: usize,
}

/// Why a line is not an item.
#[derive(Debug, thiserror::Error)]
pub enum ItemError {
    /// It is not JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It matches none of the three forms.
    #[error(
        "give task, query, choices and gold, or task, context_options, continuation and gold, or \
         task, good and bad"
    )]
    Fields,
    /// The right choice is none of them.
    #[error(
        "gold is {gold} of {choices} choices; it counts from 0, and there are two choices at least"
    )]
    Gold {
        /// The given index.
        gold: usize,
        /// Number of choices.
        choices: usize,
    },
}

/// A line as the file has it: one of three forms.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Choices {
        task: String,
        query: String,
        choices: Vec<String>,
        gold: usize,
    },
    Contexts {
        task: String,
        context_options: Vec<String>,
        continuation: String,
        gold: usize,
    },
    Sentences {
        task: String,
        good: String,
        bad: String,
    },
}

/// Reads a line of JSON. `None` for tasks that are not multiple choice.
///
/// # Errors
/// [`ItemError`].
pub fn parse(line: &str) -> Result<Option<Item>, ItemError> {
    let value: serde_json::Value = serde_json::from_str(line)?;
    if value.get("continuation").is_some() && value.get("context").is_some() {
        return Ok(None);
    }
    let line = serde_json::from_value(value).map_err(|_| ItemError::Fields)?;
    let item = item(line);
    if item.gold < item.choices.len() && item.choices.len() > 1 {
        Ok(Some(item))
    } else {
        Err(ItemError::Gold {
            gold: item.gold,
            choices: item.choices.len(),
        })
    }
}

fn item(line: Line) -> Item {
    match line {
        Line::Choices {
            task,
            query,
            choices,
            gold,
        } => {
            let context = if query.trim_start().starts_with("Question:") {
                format!("{}\nAnswer:", query.trim_end())
            } else {
                query.trim_end().to_owned()
            };
            let choices = choices.iter().map(|c| (context.clone(), spaced(c)));
            Item {
                choices: choices.collect(),
                task,
                gold,
            }
        }
        Line::Contexts {
            task,
            context_options,
            continuation,
            gold,
        } => {
            let options = context_options.into_iter();
            Item {
                choices: options.map(|c| (c, spaced(&continuation))).collect(),
                task,
                gold,
            }
        }
        // A line break represents the beginning of a text.
        Line::Sentences { task, good, bad } => Item {
            choices: vec![("\n".into(), good), ("\n".into(), bad)],
            task,
            gold: 0,
        },
    }
}

fn spaced(text: &str) -> String {
    format!(" {}", text.trim_start())
}

/// A random draw of at most `count` items, as evenly over the tasks as they have items.
pub fn stratified(items: Vec<Item>, count: usize, seed: u64) -> Vec<Item> {
    let mut tasks: Vec<(String, Vec<Item>)> = Vec::new();
    for item in items {
        match tasks.iter_mut().find(|(task, _)| *task == item.task) {
            Some((_, of)) => of.push(item),
            None => tasks.push((item.task.clone(), vec![item])),
        }
    }
    tasks.sort_by(|a, b| a.0.cmp(&b.0));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for (_, of) in &mut tasks {
        of.shuffle(&mut rng);
    }
    let mut drawn = Vec::with_capacity(count);
    let mut round = 0;
    while drawn.len() < count {
        let before = drawn.len();
        for (_, of) in &tasks {
            if let Some(item) = of.get(round).filter(|_| drawn.len() < count) {
                drawn.push(item.clone());
            }
        }
        if drawn.len() == before {
            break;
        }
        round += 1;
    }
    drawn.sort_by(|a, b| a.task.cmp(&b.task));
    drawn
}

/// The margin of an item from the mean log-probability per token of each choice.
pub fn margin(per_token: &[f64], gold: usize) -> f64 {
    let others = per_token
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != gold);
    let best = others.fold(f64::NEG_INFINITY, |best, (_, v)| best.max(*v));
    per_token[gold] - best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_read_and_text_completion_is_left_out() {
        let arc = parse(r#"{"task":"arc","query":"Question: Why?","choices":["a","b"],"gold":1}"#);
        let arc = arc.unwrap().unwrap();
        assert_eq!(
            arc.choices[1],
            ("Question: Why?\nAnswer:".into(), " b".into())
        );
        let swag = r#"{"task":"h","query":"He sat","choices":[" down.","up."],"gold":0}"#;
        let swag = parse(swag).unwrap().unwrap();
        assert_eq!(swag.choices[0], ("He sat".into(), " down.".into()));
        let wino = r#"{"task":"w","context_options":["A","B"],"continuation":"fell.","gold":1}"#;
        let wino = parse(wino).unwrap().unwrap();
        assert_eq!(wino.choices[1], ("B".into(), " fell.".into()));
        let blimp = r#"{"task":"b","good":"Cats sleep.","bad":"Cats sleeps.","uid":"x"}"#;
        let blimp = parse(blimp).unwrap().unwrap();
        assert_eq!((blimp.gold, blimp.choices.len()), (0, 2));
        let lambada = r#"{"task":"l","context":"She said","continuation":"no"}"#;
        assert_eq!(parse(lambada).unwrap(), None);
        for (wrong, expect) in [
            ("{", "EOF"),
            (r#"{"task":"x"}"#, "give task, query"),
            (
                r#"{"task":"x","query":"q","choices":["a","b"],"gold":2}"#,
                "gold is 2",
            ),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }

    #[test]
    fn the_draw_takes_the_same_number_of_every_task() {
        let item = |task: &str, n: usize| Item {
            task: task.into(),
            choices: vec![(n.to_string(), "x".into()), ("y".into(), "z".into())],
            gold: 0,
        };
        let all: Vec<Item> = (0..20)
            .map(|n| item("a", n))
            .chain((0..20).map(|n| item("b", n)))
            .chain([item("c", 0)])
            .collect();
        let drawn = stratified(all.clone(), 9, 1);
        let of = |task: &str| drawn.iter().filter(|i| i.task == task).count();
        assert_eq!((of("a"), of("b"), of("c")), (4, 4, 1));
        assert_eq!(drawn, stratified(all.clone(), 9, 1));
        assert_ne!(drawn, stratified(all.clone(), 9, 2));
        assert_eq!(stratified(all, 1000, 1).len(), 41);
    }

    #[test]
    fn margins_compare_with_the_best_wrong_choice() {
        assert_eq!(margin(&[-1.0, -3.0, -2.0], 0), 1.0);
        assert_eq!(margin(&[-1.0, -3.0, -2.0], 1), -2.0);
    }
}
