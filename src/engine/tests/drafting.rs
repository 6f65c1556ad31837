//! Drafts change the number of steps and nothing else.

use super::super::request::GenerateRequest;
use super::fake::{Bench, ids, prompt, request};
use crate::grammar::Grammars;

use super::fake::tokenizer;

fn requests(temperature: f32) -> Vec<GenerateRequest> {
    let one = |seed: u64| {
        let mut request = request(prompt(seed, 20), 120 + seed as usize, seed);
        request.sampling.temperature = temperature;
        request
    };
    (0..4).map(one).collect()
}

fn run(requests: &[GenerateRequest], draft: usize, blocks: usize) -> (Vec<Vec<u32>>, usize) {
    let mut bench = Bench::repeating(7, draft, blocks, 8);
    let answers = ids(&bench.answers(requests));
    (answers, bench.steps())
}

#[test]
fn answers_that_repeat_take_fewer_steps_and_are_the_same() {
    for temperature in [0.0, 1.0, 3.0] {
        let requests = requests(temperature);
        let (plain, steps) = run(&requests, 0, 400);
        let (drafted, fewer) = run(&requests, 8, 400);
        assert_eq!(drafted, plain, "temperature {temperature}");
        assert!(2 * fewer < steps, "{fewer} of {steps} steps");
        // With few blocks some have no room for a draft, and some are preempted.
        assert_eq!(run(&requests, 8, 40).0, plain);
        assert_eq!(run(&requests[..1], 8, 40).0, plain[..1]);
    }
}

#[test]
fn an_answer_may_end_within_a_draft() {
    let mut requests = requests(0.0);
    requests[0].sampling.stop = vec!["fga".into()];
    requests[1].sampling.stop_token_ids = vec![4];
    requests[1].sampling.min_tokens = 61;
    requests[2].sampling.max_tokens = 33;
    requests[3].sampling.top_logprobs = Some(2);
    let (plain, _) = run(&requests, 0, 400);
    assert_eq!(run(&requests, 8, 400).0, plain);
    let lengths: Vec<usize> = plain.iter().map(Vec::len).collect();
    assert!(
        lengths[0] < 60 && (61..80).contains(&lengths[1]) && lengths[2] == 33,
        "{lengths:?}"
    );
}

#[test]
fn a_grammar_and_penalties_see_every_token_once() {
    let grammars = Grammars::new(tokenizer());
    let grammar = grammars.compile("start: /[a-g]{50,60}/ \"ponm\"").unwrap();
    let mut requests = requests(1.0);
    requests[0].sampling.grammar = Some(grammar.clone());
    requests[1].sampling.grammar = Some(grammar);
    requests[1].sampling.temperature = 0.0;
    requests[2].sampling.frequency_penalty = 1.5;
    let (plain, steps) = run(&requests, 0, 400);
    let (drafted, fewer) = run(&requests, 8, 400);
    assert_eq!(drafted, plain);
    assert!(fewer < steps);
}

#[test]
fn the_totals_count_what_was_drafted_and_drawn() {
    let requests = requests(0.0);
    let mut bench = Bench::repeating(7, 8, 400, 8);
    let rows: usize = ids(&bench.answers(&requests)).iter().map(Vec::len).sum();
    let totals = bench.runner.scheduler.totals;
    assert!(totals.accepted <= totals.drafted);
    assert!(totals.accepted as usize > rows / 2, "{totals:?} of {rows}");
    // Beside many streams none is made.
    let one = |seed| {
        let mut request = request(prompt(seed, 20), 50, seed);
        request.sampling.ignore_eos = true;
        request
    };
    let many: Vec<_> = (0..8).map(one).collect();
    let mut bench = Bench::repeating(7, 8, 400, 8);
    bench.answers(&many);
    assert_eq!(bench.runner.scheduler.totals.drafted, 0);
}
