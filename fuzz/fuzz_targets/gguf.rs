//! A GGUF model's header, tokenizer and chat template, as `realign model info` reads them, and its weights.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use realign_fuzz::work_dir;
use realign_model::{Described, ModelSource};

fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| work_dir("gguf").join("model.gguf"))
}

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(file(), bytes).expect("a temporary directory can be written to");
    let files = ModelSource::Gguf(file().clone()).fetch().expect("it is a file");
    let _weights_or_error = realign_cpu::load(&files);
    let _parts_or_error = Described::read(files, None);
});
