//! A PEFT adapter: its configuration and its file of tensors, divided by the first zero byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use realign_engine::adapter::{peft, validate};

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (config, model) = bytes.split_at(at);
    if let Ok(weights) = peft::read_bytes(config, model.get(1..).unwrap_or_default()) {
        let _fits_or_not = validate(&weights, &|_| Some((2, 3)));
        // What was read can be written.
        assert!(peft::encode(&weights, "fuzz").is_ok());
    }
});
