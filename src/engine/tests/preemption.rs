//! A pool that is too small for all sequences.

use super::fake::{BLOCK, Bench, alone, generation, ids, prompt, request};

/// Requests that end by length or by the end-of-turn token, on three generations.
fn requests(
    count: u64,
    length: usize,
    max_tokens: usize,
) -> Vec<super::super::request::GenerateRequest> {
    let asked = |i: u64| {
        let mut asked = request(prompt(i, length), max_tokens, i);
        asked.sampling.top_k = [0, 3, 0][i as usize % 3];
        asked.sampling.top_p = [1.0, 1.0, 0.8][i as usize % 3];
        asked.generation = generation((i % 3) as u32);
        asked
    };
    (0..count).map(asked).collect()
}

#[test]
fn preempted_sequences_answer_as_if_they_ran_alone() {
    let asked = requests(6, 10, 60);
    let expected = alone(&asked);
    assert!(expected.iter().any(|ids| ids.len() > 20), "they grow");
    for blocks in [18, 20, 30, 45] {
        let mut bench = Bench::new(blocks, 6, 24);
        assert_eq!(ids(&bench.answers(&asked)), expected, "{blocks} blocks");
        let preemptions = bench.runner.scheduler.totals.preemptions;
        assert!(blocks > 18 || preemptions > 0, "nothing was preempted");
    }
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    let asked = requests(2, 20, 50);
    let expected = alone(&asked);
    let mut bench = Bench::new(18, 2, 64);
    assert_eq!(ids(&bench.answers(&asked)), expected);
    assert!(bench.runner.scheduler.totals.preemptions > 0);
    let once: usize = expected.iter().map(|ids| 20 + ids.len() - 1).sum();
    let totals = bench.runner.scheduler.totals;
    let again = bench.rows() - once;
    assert!(
        again < totals.preemptions as usize * 20,
        "{again} rows ran again after {} preemptions: not even a prompt was found",
        totals.preemptions
    );
    assert_eq!(totals.prefix_hits, 0, "finding its own blocks is no hit");
}

#[test]
fn prompts_that_exceed_the_pool_together_do_not_block_each_other() {
    // Each takes three quarters of the pool, and many steps.
    let asked: Vec<_> = (0..4)
        .map(|i| request(prompt(i, 12 * BLOCK), 8, i))
        .collect();
    let mut bench = Bench::new(16, 4, 8);
    assert_eq!(ids(&bench.answers(&asked)), alone(&asked));
}

#[test]
fn a_sequence_may_fill_the_whole_pool() {
    let asked = [request(prompt(1, 4 * BLOCK), 4 * BLOCK, 1)];
    let mut bench = Bench::new(8, 4, 8);
    assert_eq!(ids(&bench.answers(&asked)), alone(&asked));
}

#[test]
fn a_sequence_that_can_never_fit_fails_and_delays_no_other() {
    let mut bench = Bench::new(8, 4, 8);
    let answers = bench.answers(&[
        request(prompt(1, 9 * BLOCK), 4, 1),
        request(prompt(2, BLOCK), 4, 1),
    ]);
    assert!(answers[0].failed.is_some());
    assert!(answers[1].cached.is_some());
}
