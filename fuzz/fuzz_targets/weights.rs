//! A base model's `model.safetensors`, beside the configuration of a tiny Llama.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use realign_fuzz::work_dir;
use realign_model::ModelSource;

const CONFIG: &str = include_str!("../../tests/golden/families/llama/config.json");

fn directory() -> &'static PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let dir = work_dir("weights");
        std::fs::write(dir.join("config.json"), CONFIG).expect("it can be written");
        std::fs::write(dir.join("tokenizer.json"), "{}").expect("it can be written");
        dir
    })
}

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(directory().join("model.safetensors"), bytes).expect("it can be written");
    if let Ok(files) = ModelSource::Directory(directory().clone()).fetch() {
        let _weights_or_error = realign_cpu::load(&files);
    }
});
