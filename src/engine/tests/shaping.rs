//! Biases, penalties and grammars in a batch: each changes its own sequence only.

use super::fake::{Bench, alone, generation, ids, prompt, request, tokenizer};
use crate::grammar::Grammars;
use crate::request::{FinishReason, GenerateEvent, GenerateRequest, SamplingParams};

fn with(change: impl FnOnce(&mut SamplingParams), seed: u64) -> GenerateRequest {
    let mut request = request(prompt(seed, 9), 40, seed);
    change(&mut request.sampling);
    request
}

#[test]
fn other_sequences_in_the_batch_change_nothing() {
    let grammars = Grammars::new(tokenizer());
    let grammar = grammars.compile("start: /[ab]{5,30}/").unwrap();
    let requests = [
        with(|s| s.grammar = Some(grammar.clone()), 1),
        with(|s| s.grammar = Some(grammar.clone()), 2),
        with(|s| s.logit_bias = vec![(2, 100.0)], 3),
        with(
            |s| (s.presence_penalty, s.frequency_penalty) = (2.0, 2.0),
            4,
        ),
        with(|s| (s.min_p, s.top_k) = (0.1, 3), 5),
        with(|_| (), 6),
    ];
    let together = ids(&Bench::new(256, 8, 64).answers(&requests));
    assert_eq!(together, alone(&requests));
    // With few blocks some are preempted and computed again: their grammars stay with them.
    assert_eq!(ids(&Bench::new(40, 8, 64).answers(&requests)), together);
    assert!(
        together[..2]
            .iter()
            .all(|ids| ids.iter().all(|id| *id < 2 || *id == 16))
    );
    assert_ne!(together[0], together[1]);
    assert!(together[2].iter().all(|id| *id == 2));
    let all = |penalty: f32| {
        let penalised = |seed| with(|s| s.frequency_penalty = penalty, seed);
        alone(&(10..20).map(penalised).collect::<Vec<_>>())
    };
    assert_ne!(all(2.0), all(0.0), "penalties change what is drawn");
}

#[test]
fn a_complete_grammar_ends_the_answer() {
    let grammars = Grammars::new(tokenizer());
    let grammar = grammars.compile("start: \"abc\"").unwrap();
    let mut request = request(vec![1], 40, 7);
    request.sampling.grammar = Some(grammar);
    request.generation = generation(0);
    let mut bench = Bench::new(64, 4, 64);
    let mut stream = bench.submit(request);
    bench.run();
    let (mut text, mut reason) = (String::new(), None);
    while let Ok(event) = stream.events.try_recv() {
        match event {
            GenerateEvent::Token { text: more, .. } => text.push_str(&more),
            GenerateEvent::Finished {
                reason: why,
                text: more,
                ..
            } => {
                text.push_str(&more);
                reason = Some(why);
            }
            GenerateEvent::Failed(why) => panic!("{why}"),
        }
    }
    assert_eq!((text.as_str(), reason), ("abc", Some(FinishReason::Stop)));
}

#[test]
fn what_a_grammar_forces_takes_no_steps_and_gives_the_same_text() {
    let grammars = Grammars::new(tokenizer());
    let grammar = grammars
        .compile("start: \"abcdefgh\" /[ab]/ \"mnopmnop\" /[cd]{1,3}/ \"aaaa\"")
        .unwrap();
    let constrained = |seed: u64| {
        let ask = |s: &mut SamplingParams| {
            s.grammar = Some(grammar.clone());
            s.temperature = 0.0;
        };
        with(ask, seed)
    };
    let mut requests: Vec<_> = (0..4).map(constrained).collect();
    // Ends within what is forced, and asks for log-probabilities.
    requests[1].sampling.max_tokens = 5;
    requests[2].sampling.stop = vec!["ef".into()];
    requests[3].sampling.top_logprobs = Some(1);
    let run = |jumps: bool, blocks: usize| {
        let mut bench = Bench::new(blocks, 8, 64);
        bench.runner = bench.runner.jumping(jumps);
        let answers = ids(&bench.answers(&requests));
        (answers, bench.steps())
    };
    let (slow, steps) = run(false, 256);
    let (fast, fewer) = run(true, 256);
    assert_eq!(fast, slow);
    assert_eq!(fast[1].len(), 5);
    assert_eq!(
        fewer, steps,
        "the one with log-probabilities takes them all"
    );
    // Some are preempted, and computed again with what was forced.
    assert_eq!(run(true, 16).0, slow);
    requests.truncate(3);
    let run = |jumps: bool| {
        let mut bench = Bench::new(256, 8, 64);
        bench.runner = bench.runner.jumping(jumps);
        bench.answers(&requests);
        bench.steps()
    };
    assert!(run(true) * 2 < run(false));
}
