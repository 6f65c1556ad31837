//! Bounded, reproducible mutations of valid input: parsers accept it or return an error, and never
//! panic.
//!
//! `fuzz/` tests the same entry points without a bound.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use realign_align::policy::{Exchange, PolicySet, read_labelled};
use realign_align::preferences::Dataset;

const ROUNDS: usize = 1500;

/// Fragments that often break parsers.
const PIECES: [&str; 24] = [
    "&a ",
    "*a",
    "<<: *a",
    "---\n",
    "!!binary ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    ": ",
    "\n",
    "\t",
    "\\u0000",
    "\u{feff}",
    "1e999",
    "-0",
    "null",
    "(?i)(a+)+$",
    "{900}",
    "é",
    "\r\n",
    "\\ud800",
];

fn mutate(random: &mut ChaCha8Rng, seed: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        let to = random.random_range(at..=bytes.len().min(at + 40));
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let copy = bytes[at..to].to_vec();
                let target = random.random_range(0..=bytes.len());
                bytes.splice(target..target, copy);
            }
            3 => bytes.truncate(at),
            _ => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                bytes.splice(at..at, piece.bytes());
            }
        }
    }
    bytes
}

const FITTED: &str = r#"apiVersion: realign/v1
id: p
version: 1
rules:
  - id: r
    description: Be polite.
    minimum: { accuracy: 0.9 }
    violates:
      cascade:
        - yes_if: { label: [rude] }
        - no_if: { response: { any_phrase: ["thank you"] } }
        - { probe: { threshold: 0.4 }, unsure: [0.2, 0.8] }
        - judge: { url: "http://127.0.0.1:1/v1", model: m, key_env: KEY, question: "Rude?", template: "{{ prompt }}" }
    examples:
      - { prompt: a, response: b, verdict: complies }
"#;

#[test]
fn no_text_breaks_the_policy_parser() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let seeds = [
        FITTED.to_owned(),
        std::fs::read_to_string("policies/examples/medical-dosing.yaml").unwrap(),
        std::fs::read_to_string("policies/helpful-answers.yaml").unwrap(),
    ];
    let mut valid = 0;
    for round in 0..ROUNDS {
        let bytes = mutate(&mut random, seeds[round % seeds.len()].as_bytes());
        let Ok(text) = std::str::from_utf8(&bytes) else {
            continue;
        };
        match PolicySet::from_yaml("mutated.yaml", text) {
            Ok(set) => {
                valid += 1;
                let exchange = Exchange {
                    prompt: text,
                    response: text,
                    labels: &[],
                };
                for rule in set.policies().iter().flat_map(|policy| &policy.rules) {
                    rule.evaluate(&exchange);
                }
                set.run_examples();
            }
            Err(errors) => {
                assert!(!errors.0.is_empty() && errors.0.iter().all(|e| !e.message.is_empty()))
            }
        }
    }
    assert!(
        (20..ROUNDS - 20).contains(&valid),
        "{valid} of {ROUNDS} mutations are valid: too easy"
    );
}

/// One line of every format.
const LINES: &str = r#"{"prompt":"a","chosen":"b","rejected":"c","meta":{"holdout":true,"labels":["x"]}}
{"prompt":[{"role":"user","content":"a"}],"chosen":[{"role":"assistant","content":"b"}],"rejected":[{"role":"assistant","content":"c"}],"score_chosen":2,"score_rejected":1}
{"chosen":"\n\nHuman: a\n\nAssistant: b\n\nHuman: d\n\nAssistant: e","rejected":"\n\nHuman: a\n\nAssistant: b\n\nHuman: d\n\nAssistant: f"}
{"conversations":[{"from":"human","value":"a"}],"chosen":{"from":"gpt","value":"b"},"rejected":{"from":"gpt","value":"c"}}
{"prompt":"a","response_0":"b","response_1":"c","is_response_0_safe":false,"is_response_1_safe":true,"response_0_harm_category":{"Violence":true},"response_0_severity_level":2,"better_response_id":0,"safer_response_id":1}
{"instruction":"a","completions":[{"response":"b","overall_score":2.0},{"response":"c","annotations":{"honesty":{"Rating":"5"}}}]}
{"prompt":"a","responses":["b","c","d"],"scores":[1,3,2]}
{"prompt":"a","response":"b","verdict":"complies"}
"#;

#[test]
fn no_bytes_break_a_reader_and_no_line_is_lost() {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    for _ in 0..ROUNDS {
        let bytes = mutate(&mut random, LINES.as_bytes());
        let _rows_or_error = read_labelled(&bytes);
        let lines = bytes.split(|b| *b == b'\n').filter(|line| {
            let text = std::str::from_utf8(line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line));
            text.map_or(true, |t| !t.trim().is_empty())
        });
        let lines = lines.count();
        // Bytes that look like a compressed file are not lines.
        let Ok(data) = Dataset::from_bytes("mutated.jsonl", bytes) else {
            continue;
        };
        let accounted = data.pairs.len() + data.duplicates + data.skipped.len();
        assert_eq!(accounted, lines);
    }
}

#[test]
fn broken_archives_are_errors() {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(LINES.repeat(20).as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(
        LINES.repeat(20).as_bytes(),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for seed in [gzip, zstd] {
        let whole = Dataset::from_bytes("good", seed.clone()).unwrap();
        assert_eq!((whole.pairs.len(), whole.duplicates), (5, 7 * 20 - 5));
        // Two concatenated archives are one valid file.
        let twice = Dataset::from_bytes("twice", seed.repeat(2)).unwrap();
        assert_eq!(twice.duplicates, 7 * 40 - 5);
        assert!(Dataset::from_bytes("cut", seed[..seed.len() / 2].to_vec()).is_err());
        for _ in 0..300 {
            let _pairs_or_error = Dataset::from_bytes("mutated", mutate(&mut random, &seed));
        }
    }
}
