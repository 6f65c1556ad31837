//! Every reader of preference data, compressed ones included. `cargo +nightly fuzz run preferences`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use realign_align::preferences::Dataset;

fuzz_target!(|bytes: &[u8]| {
    let _pairs_or_error = Dataset::from_bytes("fuzz.jsonl", bytes.to_vec());
});
