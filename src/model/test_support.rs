//! What the unit tests of several modules read: the default model's metadata, the golden values.

use std::path::PathBuf;

use candle_core::quantized::gguf_file;

const MODEL_FILE: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The repository's root.
///
/// # Panics
/// If this is not built from the repository.
pub fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = package
        .ancestors()
        .find(|d| d.join("tests/golden").is_dir());
    root.expect("built from the repository").to_path_buf()
}

/// A path below the repository's root.
///
/// # Panics
/// If the path is not UTF-8.
pub fn path(relative: &str) -> String {
    let path = root().join(relative).into_os_string();
    path.into_string().expect("a UTF-8 path")
}

/// The default model's file, from `REALIGN_TEST_MODEL` or the `models` directory.
///
/// # Panics
/// If it is missing.
pub fn test_model_path() -> PathBuf {
    let given = std::env::var_os("REALIGN_TEST_MODEL");
    let path = given.map_or_else(|| root().join(MODEL_FILE), PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: run `make test`, which fetches it, or set REALIGN_TEST_MODEL",
        path.display()
    );
    path
}

/// The default model's GGUF header: metadata and tensor directory, no weights.
///
/// # Panics
/// If it is missing or not GGUF.
pub fn test_model() -> gguf_file::Content {
    let mut file = std::fs::File::open(test_model_path()).expect("the model opens");
    gguf_file::Content::read(&mut file).expect("the model is GGUF")
}

/// The values that tests/golden/README.md describes.
///
/// # Panics
/// If they are missing.
pub fn golden() -> serde_json::Value {
    let path = root().join("tests/golden/golden.json");
    let bytes = std::fs::read(path).expect("golden.json is in the repository");
    serde_json::from_slice(&bytes).expect("golden.json parses")
}
