//! Compilation of grammars, limited in time and concurrency.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::error::ApiError;
use super::tools::{AnswerFormat, Tools, grammar};
use super::{AppState, spawn_blocking};
use realign_engine::grammar::{Constraint, GrammarError, Grammars};
use realign_model::Tokenizer;

/// Maximum number of concurrent compilations. One that exceeds its time keeps its permit until it
/// ends, so a malicious client can occupy at most this many threads.
const MAX_CONCURRENT: usize = 2;
/// How long a client waits for its grammar. Compiling takes milliseconds, up to a second for a
/// server's first one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Compiles and caches the server's grammars.
#[derive(Clone, Debug)]
pub struct Compiler {
    grammars: Arc<Grammars>,
    permits: Arc<Semaphore>,
}

impl Compiler {
    /// Creates a compiler for this tokenizer's vocabulary.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            grammars: Arc::new(Grammars::new(tokenizer)),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT)),
        }
    }

    async fn compile(&self, lark: String, param: &'static str) -> Result<Constraint, ApiError> {
        let compiled = tokio::time::timeout(TIMEOUT, async {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let grammars = Arc::clone(&self.grammars);
            spawn_blocking(move || {
                let _permit = permit;
                grammars.compile(&lark)
            })
            .await
        });
        let refused = |why: &str| {
            let message = format!("the schema cannot be enforced: {why}");
            ApiError::field(param, message)
        };
        match compiled.await {
            Ok(Some(Ok(constraint))) => Ok(constraint),
            Ok(Some(Err(GrammarError::Refused(why)))) => Err(refused(&why)),
            Ok(Some(Err(error @ GrammarError::Vocabulary(_)))) => {
                Err(ApiError::Unavailable(error.to_string()))
            }
            Ok(None) => Err(refused("it cannot be compiled")),
            Err(_elapsed) => Err(refused("compiling takes too long; make it simpler")),
        }
    }
}

/// Compiles the grammar that an answer must follow, if the request requires one.
///
/// # Errors
/// [`ApiError::Field`] if the schema cannot be enforced or takes too long to compile.
pub(crate) async fn constraint(
    state: &AppState,
    tools: &Tools,
    format: &AnswerFormat,
    format_param: &'static str,
) -> Result<Option<Constraint>, ApiError> {
    let Some(lark) = grammar(tools, format, state.chat.call_style()) else {
        return Ok(None);
    };
    let param = match format {
        AnswerFormat::Text => "tools",
        AnswerFormat::Json { .. } => format_param,
    };
    state.compiler.compile(lark, param).await.map(Some)
}
