//! What is kept of answers when the engine fails between them.

use std::cell::Cell;

use super::*;
use crate::exam::respond::Asking;
use realign_model::Tokenizer;
use realign_model::test_support::test_model;

/// Answers so many prompts, then fails; counts what it was asked.
struct Fails {
    after: usize,
    asked: Cell<usize>,
}

impl Respond for Fails {
    fn respond(
        &self,
        _: Who,
        prompts: &[Asked],
        answered: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), ExamError> {
        self.asked.set(prompts.len());
        for (index, asked) in prompts.iter().enumerate().take(self.after) {
            let answer = Answer {
                text: asked.prompt[0].to_string(),
                tokens: vec![1],
                own: None,
            };
            answered(index, answer);
        }
        match prompts.len() > self.after {
            true => Err(ExamError::Engine("gone".into())),
            false => Ok(()),
        }
    }
}

#[test]
fn what_was_answered_before_a_failure_is_not_asked_again() {
    let tokenizer = Tokenizer::from_gguf(&test_model()).unwrap();
    let asked: Vec<Asked> = (10..15)
        .map(|first| Asked {
            prompt: vec![first],
            temperature: 0.0,
            seed: 0,
            max_tokens: 4,
            measured: false,
        })
        .collect();
    let cache = MemoryExamCache::default();
    let answered = Cell::new(0);
    let ask = |after: usize| {
        let engine = Fails {
            after,
            asked: Cell::default(),
        };
        let asking = Asking {
            engine: &engine,
            cache: &cache,
            who: Who::Base,
            id: "base",
            tokenizer: &tokenizer,
        };
        let found = asking.ask(&asked, &|| answered.set(answered.get() + 1));
        (found, engine.asked.get())
    };
    let (failed, count) = ask(3);
    assert!(matches!(failed, Err(ExamError::Engine(_))));
    assert_eq!((count, answered.get()), (5, 3));
    let (found, count) = ask(9);
    assert_eq!((count, answered.get()), (2, 5));
    let (answers, remembered) = found.unwrap();
    let texts: Vec<&str> = answers.iter().map(|answer| &*answer.text).collect();
    assert_eq!(texts, ["10", "11", "12", "13", "14"]);
    assert_eq!(remembered, 3);
}
