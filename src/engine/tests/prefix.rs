//! What the prefix cache shares, and what it must not.

use super::fake::{BLOCK, Bench, alone, generation, ids, prompt, request};

#[test]
fn a_prompt_seen_before_computes_its_last_block_only() {
    let mut bench = Bench::new(64, 8, 64);
    for length in [1, BLOCK, BLOCK + 1, 21, 40] {
        let asked = [request(prompt(length as u64, length), 6, 1)];
        let first = bench.answers(&asked);
        assert_eq!(first[0].cached, Some(0), "{length}");
        let before = bench.rows();
        let again = bench.answers(&asked);
        assert_eq!(again[0].ids, first[0].ids);
        let cached = (length - 1) / BLOCK * BLOCK;
        assert_eq!(again[0].cached, Some(cached), "{length}");
        let rows = length - cached + again[0].ids.len() - 1;
        assert_eq!(bench.rows() - before, rows);
    }
    let totals = bench.runner.scheduler.totals;
    assert_eq!(totals.prefix_queries, 2 * (1 + 4 + 5 + 21 + 40));
    assert_eq!(totals.prefix_hits, 4 + 20 + 36);
}

#[test]
fn the_next_turn_finds_prompt_and_answer() {
    let mut bench = Bench::new(64, 8, 64);
    let first = request(prompt(1, 18), 20, 1);
    let answer = bench.answers(std::slice::from_ref(&first)).remove(0);
    let mut conversation = [first.prompt, answer.ids.clone()].concat();
    // The last token was drawn but never ran.
    let computed = (conversation.len() - 1) / BLOCK * BLOCK;
    conversation.extend(prompt(2, 9));
    let next = [request(conversation, 5, 3)];
    let answers = bench.answers(&next);
    assert_eq!(answers[0].cached, Some(computed));
    assert_eq!(ids(&answers), alone(&next));
}

#[test]
fn generations_share_nothing() {
    let mut bench = Bench::new(64, 8, 64);
    let on = |number| {
        let mut asked = request(prompt(1, 30), 12, 1);
        asked.generation = generation(number);
        asked
    };
    let mut answered = Vec::new();
    for number in [0, 1, 2] {
        let asked = [on(number)];
        let answers = bench.answers(&asked);
        assert_eq!(answers[0].cached, Some(0));
        assert_eq!(ids(&answers), alone(&asked));
        answered.push(answers[0].ids.clone());
    }
    answered.dedup();
    assert_eq!(
        answered.len(),
        3,
        "the generations answer alike: this test shows nothing"
    );
    let together = bench.answers(&[on(0), on(1), on(2)]);
    assert_eq!(ids(&together), answered);
    assert!(
        together.iter().all(|a| a.cached == Some(28)),
        "each finds its own"
    );
}

#[test]
fn choices_of_one_prompt_compute_it_once() {
    let mut bench = Bench::new(128, 8, 16);
    let asked: Vec<_> = (0..4).map(|seed| request(prompt(1, 50), 1, seed)).collect();
    let answers = bench.answers(&asked);
    assert_eq!(ids(&answers), alone(&asked));
    assert_eq!(
        bench.rows(),
        50 + 3 * 2,
        "the others run from the last full block on"
    );
}

#[test]
fn an_unrelated_request_does_not_wait_for_a_shared_prefix() {
    let mut bench = Bench::new(128, 8, 128);
    let _choices: Vec<_> = (0..2)
        .map(|s| bench.submit(request(prompt(1, 60), 4, s)))
        .collect();
    let _other = bench.submit(request(prompt(2, 8), 4, 0));
    assert_eq!(bench.step().len(), 2);
    assert_eq!(bench.runner.scheduler.waiting.len(), 1);
    bench.run();
}

#[test]
fn a_prefix_survives_the_sequence_that_computes_it() {
    let mut bench = Bench::new(128, 8, 8);
    let leader = bench.submit(request(prompt(1, 60), 4, 0));
    let followers: Vec<_> = (1..3).map(|s| request(prompt(1, 60), 9, s)).collect();
    let mut streams: Vec<_> = followers.iter().map(|f| bench.submit(f.clone())).collect();
    bench.step();
    drop(leader);
    bench.run();
    for (stream, expected) in streams.iter_mut().zip(alone(&followers)) {
        let mut answer = super::fake::Answer::default();
        answer.update(stream);
        assert_eq!(answer.ids, expected);
    }
}

#[test]
fn a_failed_step_leaves_nothing_in_the_cache() {
    let mut bench = Bench::failing_at(Some(1), 64, 8, 64);
    let asked = [request(prompt(1, 30), 6, 1)];
    assert!(bench.answers(&asked)[0].failed.is_some());
    let answers = bench.answers(&asked);
    assert_eq!(answers[0].cached, Some(0));
    assert_eq!(ids(&answers), alone(&asked));
}
