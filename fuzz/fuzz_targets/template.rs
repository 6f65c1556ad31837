//! A model's chat template: compiled, and a conversation rendered within its budget.
#![no_main]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use realign_model::test_support::test_model;
use realign_model::{ChatMessage, ChatRole, ChatTemplate, Tokenizer};

/// A rendering has a budget of steps and of time; compiling and the attempts that find out what a template does
/// have several. Beyond this something has none.
const LIMIT: Duration = Duration::from_secs(60);

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_gguf(&test_model()).expect("the test model has one"))
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let tokenizer = tokenizer();
    let began = Instant::now();
    if let Ok(template) = ChatTemplate::new(source, tokenizer) {
        let messages = [
            ChatMessage::new(ChatRole::System, "be <|im_start|> brief"),
            ChatMessage::user("hello"),
            ChatMessage::new(ChatRole::Assistant, "good day"),
            ChatMessage::user(source.chars().take(64).collect::<String>()),
        ];
        let _tokens_or_error = template.encode_chat(tokenizer, &messages, true);
    }
    assert!(began.elapsed() < LIMIT, "it took {:?}", began.elapsed());
});
