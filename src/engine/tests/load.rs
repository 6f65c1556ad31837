//! The engine's thread under many requests.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::ask::{AskError, Prompt, ask};
use super::super::blocks::BlockPool;
use super::super::engine::EngineHandle;
use super::super::handle::{Computing, EngineConfig, start_with};
use super::super::request::{GenerateStream, SamplingParams, SubmitError};
use super::fake::{Answer, BLOCK, FakeModel, generation, prompt, request, tokenizer};

fn engine(blocks: usize, config: EngineConfig) -> EngineHandle {
    let computing = Computing {
        executor: Box::new(FakeModel::new(blocks)),
        pool: BlockPool::new(blocks, BLOCK),
        limit: 4096,
        slices: Arc::default(),
    };
    start_with(computing, tokenizer(), config).unwrap()
}

fn finish(mut stream: GenerateStream) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = stream.blocking_next() {
        answer.take(event);
    }
    answer
}

/// A figure of this process from the kernel's status file: threads, or kilobytes.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Other tests' threads would be counted too, so the body runs in a process of its own.
#[test]
#[cfg(target_os = "linux")]
fn a_thousand_waiting_requests_cost_no_threads_and_little_memory() {
    const OWN_PROCESS: &str = "REALIGN_TEST_OWN_PROCESS";
    if std::env::var_os(OWN_PROCESS).is_some() {
        return a_thousand_requests();
    }
    let name = "tests::load::a_thousand_waiting_requests_cost_no_threads_and_little_memory";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--test-threads=1", "--nocapture"])
        .env(OWN_PROCESS, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{output:?}"
    );
}

#[cfg(target_os = "linux")]
fn a_thousand_requests() {
    const WAITING: usize = 1000;
    let config = EngineConfig {
        max_running: 4,
        max_waiting: WAITING,
        ..EngineConfig::default()
    };
    let engine = engine(256, config);
    let (threads, kilobytes) = (status("Threads:"), status("VmRSS:"));
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for i in 0..WAITING as u64 + 300 {
        match engine.submit(request(prompt(i, 40), 12, i)) {
            Ok(stream) => accepted.push(stream),
            Err(SubmitError::QueueFull { limit, .. }) => {
                assert_eq!(limit, WAITING);
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(accepted.len() >= WAITING, "{} accepted", accepted.len());
    assert_eq!(accepted.len() + refused, WAITING + 300);
    assert_eq!(status("Threads:"), threads);
    let more = status("VmRSS:").saturating_sub(kilobytes);
    assert!(
        more < 32 << 10,
        "{more} kB more for {WAITING} short prompts"
    );
    // Every other client disconnects.
    let mut kept = Vec::new();
    for (i, stream) in accepted.into_iter().enumerate() {
        if i % 2 == 0 {
            kept.push(stream);
        }
    }
    for stream in kept {
        let answer = finish(stream);
        assert!(
            answer.cached.is_some() && !answer.ids.is_empty(),
            "{answer:?}"
        );
    }
    wait("empty engine", || !engine.is_busy());
    assert_eq!(engine.stats().kv_cache_usage, 0.0);
    assert_eq!(status("Threads:"), threads);
    engine.shutdown();
}

#[test]
fn cancelled_requests_leave_the_queue() {
    let config = EngineConfig {
        max_running: 1,
        max_waiting: 8,
        ..EngineConfig::default()
    };
    let engine = engine(1024, config);
    let mut running = engine.submit(request(prompt(1, 4), 4000, 1)).unwrap();
    running.blocking_next();
    for round in 0..20 {
        let submit = |i| engine.submit(request(prompt(i, 9), 4, round));
        let streams: Vec<_> = (0..8).map(submit).collect();
        let accepted = streams.iter().filter(|s| s.is_ok()).count();
        assert!(accepted > 0, "round {round}: the queue did not empty");
        drop(streams);
        wait("empty queue", || engine.stats().waiting == 0);
    }
    drop(running);
    wait("empty engine", || !engine.is_busy());
    engine.shutdown();
}

#[test]
fn the_context_is_what_model_configuration_and_pool_allow() {
    let limit = |blocks: usize, max_model_len| {
        let config = EngineConfig {
            max_model_len,
            ..EngineConfig::default()
        };
        let engine = engine(blocks, config);
        let limit = engine.max_model_len();
        assert!(engine.submit(request(prompt(1, limit - 1), 1, 1)).is_ok());
        let refused = engine
            .submit(request(prompt(1, limit - 1), 2, 1))
            .unwrap_err();
        let expected = SubmitError::TooLong {
            prompt: limit - 1,
            max_tokens: 2,
            limit,
        };
        assert_eq!(refused, expected);
        engine.shutdown();
        limit
    };
    assert_eq!(limit(2048, None), 4096, "the model's");
    assert_eq!(limit(2048, Some(100)), 100, "the operator's");
    assert_eq!(limit(16, Some(100)), 16 * BLOCK, "the pool's");
}

#[test]
fn requests_after_the_end_are_refused() {
    let engine = engine(16, EngineConfig::default());
    let hanging = engine.submit(request(prompt(1, 4), 60, 1)).unwrap();
    engine.shutdown();
    let answer = finish(hanging);
    assert!(answer.failed.is_some() || answer.cached.is_some());
    let refused = engine.submit(request(prompt(1, 4), 4, 1));
    assert_eq!(refused.unwrap_err(), SubmitError::ShuttingDown);
}

/// Longer answers first, so that those behind them end before.
#[test]
fn what_is_asked_at_once_is_answered_in_order_as_it_is_alone() {
    let engine = engine(4096, EngineConfig::default());
    let prompts: Vec<Prompt> = (0..200u64)
        .map(|i| Prompt {
            tokens: prompt(i, 3 + i as usize % 20),
            sampling: SamplingParams {
                top_logprobs: (i % 3 == 0).then_some(0),
                ..request(Vec::new(), 60 - i as usize % 50, i).sampling
            },
        })
        .collect();
    let together = ask(&engine, &generation(1), &prompts, &|| true).unwrap();
    for (one, prompt) in together.iter().zip(&prompts) {
        let alone = std::slice::from_ref(prompt);
        let alone = ask(&engine, &generation(1), alone, &|| true).unwrap();
        assert_eq!(alone, std::slice::from_ref(one));
        let measured = prompt.sampling.top_logprobs.map_or(0, |_| one.tokens.len());
        assert_eq!(one.logprobs.len(), measured);
    }
    let steps = std::cell::Cell::new(0);
    let proceed = || steps.replace(steps.get() + 1) < 20;
    let cancelled = ask(&engine, &generation(1), &prompts, &proceed);
    assert!(matches!(cancelled, Err(AskError::Cancelled)));
    wait("empty engine", || !engine.is_busy());
    engine.shutdown();
}
