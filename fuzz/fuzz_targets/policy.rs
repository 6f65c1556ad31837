//! The policy parser and the reader of labelled files. `cargo +nightly fuzz run policy`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use realign_align::policy::{Exchange, PolicySet, read_labelled};

fuzz_target!(|bytes: &[u8]| {
    let _rows_or_error = read_labelled(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(set) = PolicySet::from_yaml("fuzz.yaml", text) {
        let exchange = Exchange { prompt: text, response: text, labels: &[] };
        for rule in set.policies().iter().flat_map(|policy| &policy.rules) {
            let _verdict = rule.evaluate(&exchange);
        }
        let _report = set.run_examples();
    }
});
