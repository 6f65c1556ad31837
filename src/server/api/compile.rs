//! Compiling grammars: bounded in time and in how many at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::AppState;
use super::error::ApiError;
use super::tools::{Format, Tools, grammar};
use realign_engine::grammar::{Constraint, GrammarError, Grammars};
use realign_model::Tokenizer;

/// Compilations at once. One that runs away keeps its place until it ends, so a hostile client
/// takes this many threads at most.
const AT_ONCE: usize = 2;
/// How long a client waits for its grammar. Compiling takes milliseconds, the first one of a server
/// up to a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server's grammars.
#[derive(Clone, Debug)]
pub struct Compiler {
    grammars: Arc<Grammars>,
    places: Arc<Semaphore>,
}

impl Compiler {
    /// Compiles for this tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            grammars: Arc::new(Grammars::new(tokenizer)),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    async fn compile(&self, lark: String, param: &'static str) -> Result<Constraint, ApiError> {
        let compiled = tokio::time::timeout(PATIENCE, async {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let grammars = Arc::clone(&self.grammars);
            tokio::task::spawn_blocking(move || {
                let _place = place;
                grammars.compile(&lark)
            })
            .await
        });
        let refused = |why: &str| {
            let message = format!("the schema cannot be enforced: {why}");
            ApiError::field(param, message)
        };
        match compiled.await {
            Ok(Ok(Ok(constraint))) => Ok(constraint),
            Ok(Ok(Err(GrammarError::Refused(why)))) => Err(refused(&why)),
            Ok(Ok(Err(error @ GrammarError::Vocabulary(_)))) => {
                Err(ApiError::Unavailable(error.to_string()))
            }
            Ok(Err(_panicked)) => Err(refused("it cannot be compiled")),
            Err(_elapsed) => Err(refused("compiling takes too long; make it simpler")),
        }
    }
}

/// The grammar that an answer must follow, if the request asks for one.
pub(crate) async fn constraint(
    state: &AppState,
    tools: &Tools,
    format: &Format,
    format_param: &'static str,
) -> Result<Option<Constraint>, ApiError> {
    let Some(lark) = grammar(tools, format, state.chat.call_style()) else {
        return Ok(None);
    };
    let param = match format {
        Format::Text => "tools",
        Format::Json { .. } => format_param,
    };
    state.compiler.compile(lark, param).await.map(Some)
}
