//! Which sequences wait for others, and for how long.

use std::time::Duration;

use super::fake::{Answer, BLOCK, Bench, prompt, request};
use crate::blocks::BlockPool;
use crate::scheduler::Scheduler;

#[test]
fn prefills_share_the_budget_and_short_ones_leave_their_rest() {
    let mut bench = Bench::new(512, 8, 256);
    let lengths = [600, 20, 400, 600];
    let _streams: Vec<_> = (0..4)
        .map(|i| bench.submit(request(prompt(i, lengths[i as usize]), 8, i)))
        .collect();
    let mut rows: Vec<usize> = bench.step().iter().map(|part| part.1).collect();
    rows.sort_unstable();
    // One prompt has only 20 tokens; the other three share the remaining 236 rows.
    assert_eq!(rows, [20, 78, 79, 79]);
}

#[test]
fn a_long_prompt_gets_fewer_rows_beside_a_stream_that_would_wait_for_it() {
    let mut bench = Bench::new(512, 8, 256);
    bench.runner.scheduler =
        Scheduler::new(BlockPool::new(512, BLOCK), 8, 256).within(Some(Duration::from_millis(50)));
    let mut long = request(prompt(1, 2000), 1, 1);
    long.sampling.temperature = 0.0;
    let _long = bench.submit(long.clone());
    assert_eq!(bench.step(), [(0, 256)], "nothing waits for it");
    let mut short = request(prompt(2, 3), 400, 2);
    short.sampling.temperature = 0.0;
    let stream = bench.submit(short);
    let mut chunks = Vec::new();
    while bench.runner.scheduler.running.len() < 2 || chunks.len() < 6 {
        let parts = bench.step();
        // Besides the fake model's no time at all, a millisecond a row is learned.
        let rows = parts.iter().map(|part| part.1).sum::<usize>();
        let time = Duration::from_millis(rows as u64);
        bench.runner.scheduler.took(time);
        chunks.push(parts.iter().map(|part| part.1).max().unwrap());
    }
    assert!(chunks[2..].iter().all(|rows| *rows < 200), "{chunks:?}");
    drop(stream);
    assert_eq!(bench.step().last().unwrap().1, 256, "alone again");
}

#[test]
fn a_small_budget_is_given_to_prompts_round_robin() {
    // 64 rows are one chunk: each of three prompts gets every third step.
    let mut bench = Bench::new(512, 8, 64);
    let _streams: Vec<_> = (0..3)
        .map(|i| bench.submit(request(prompt(i, 128 + i as usize), 1, i)))
        .collect();
    let chunks: Vec<_> = (0..6).flat_map(|_| bench.step()).collect();
    let chunk = |cached| (cached, 64);
    assert_eq!(chunks[..3], [chunk(0); 3]);
    assert!(chunks[3..].contains(&chunk(64)), "{chunks:?}");
    bench.run();
}

#[test]
fn every_stream_gets_a_token_in_every_step_while_prompts_make_progress() {
    // Twelve streams fill the eight rows that a step aims for.
    let mut bench = Bench::new(512, 16, 8);
    let mut streams: Vec<_> = (0..12)
        .map(|i| {
            let mut asked = request(prompt(i, 3), 400, i);
            asked.sampling.temperature = 0.0;
            bench.submit(asked)
        })
        .collect();
    while bench
        .runner
        .scheduler
        .running
        .iter()
        .any(|s| s.computed < 3)
        || !bench.runner.scheduler.waiting.is_empty()
    {
        bench.step();
    }
    let _long = bench.submit(request(prompt(99, 300), 4, 0));
    for step in 0..20 {
        let running = bench.runner.scheduler.running.len();
        let parts = bench.step();
        let decoding = parts.iter().filter(|part| part.1 == 1).count();
        let prefilling: usize = parts
            .iter()
            .map(|part| part.1)
            .filter(|rows| *rows > 1)
            .sum();
        assert!(decoding + 1 >= running, "step {step}: {parts:?}");
        assert_eq!(prefilling, 8, "step {step}: {parts:?}");
    }
    streams.clear();
    bench.run();
}

/// Steps until `answer`'s request has ended, with a new small request in every step.
fn steps_among_small_ones(bench: &mut Bench, big: usize) -> usize {
    let mut streams: Vec<_> = (0..6)
        .map(|i| bench.submit(request(prompt(i, 6), 20, i)))
        .collect();
    bench.step();
    let mut stream = bench.submit(request(prompt(77, big), 4, 0));
    let mut answer = Answer::default();
    for step in 1..2000 {
        let seed = 100 + step as u64;
        streams.push(bench.submit(request(prompt(seed, 6), 20, seed)));
        bench.step();
        answer.update(&mut stream);
        if answer.cached.is_some() {
            return step;
        }
    }
    panic!("the big prompt starved");
}

#[test]
fn a_big_prompt_is_not_starved_by_small_ones() {
    // It needs 30 of 32 blocks, so nearly all others have to end first.
    let mut bench = Bench::new(32, 8, 64);
    let steps = steps_among_small_ones(&mut bench, 29 * BLOCK);
    assert!(steps < 40, "{steps} steps");
    bench.run();
}

#[test]
fn a_small_prompt_is_not_delayed_by_a_long_prefill() {
    let mut bench = Bench::new(1024, 8, 128);
    let _long = bench.submit(request(prompt(1, 2000), 4, 0));
    bench.step();
    let mut stream = bench.submit(request(prompt(2, 20), 4, 0));
    let mut answer = Answer::default();
    bench.step();
    answer.update(&mut stream);
    assert_eq!(
        answer.ids.len(),
        1,
        "its first token comes with the next step"
    );
    bench.run();
}

#[test]
fn newcomers_with_one_chunk_do_not_starve_a_long_prefill() {
    // One chunk per step, and in each step room in the batch and a newcomer for it.
    let mut bench = Bench::new(1024, 4, 64);
    let mut long = bench.submit(request(prompt(1, 640), 1, 0));
    let mut answer = Answer::default();
    let mut streams = Vec::new();
    for step in 0..60 {
        streams.push(bench.submit(request(prompt(1000 + step, 60), 1, 0)));
        bench.step();
    }
    answer.update(&mut long);
    assert!(
        answer.cached.is_some(),
        "ten chunks did not run in sixty steps"
    );
    bench.run();
}
