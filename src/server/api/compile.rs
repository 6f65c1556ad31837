//! Compilation of grammars, limited in time and concurrency.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::tools::{
    AnswerFormat, Bounds, Built, Checks, Effort, Efforts, Notice, Tools, grammar, json_after,
    schema_alone,
};
use super::{AppState, spawn_blocking};
use realign_engine::grammar::{Constraint, GrammarError, Grammars};
use realign_model::Tokenizer;

/// Maximum number of concurrent compilations. One that exceeds its time keeps its permit until it
/// ends, so a malicious client can occupy at most this many threads.
const MAX_CONCURRENT: usize = 2;
/// Header that names what of a JSON schema is left to the model.
const NOTICE: HeaderName = HeaderName::from_static("x-realign-schema-notice");
/// Longest value of that header.
const MAX_NOTICE: usize = 1000;
/// What llguidance's errors say of a schema that nothing satisfies.
const UNSATISFIABLE: &str = "Unsatisfiable schema";
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
            let message = format!("`{param}` cannot be enforced: {why}");
            ApiError::field(param, message)
        };
        match compiled.await {
            Ok(Some(Ok(constraint))) => Ok(constraint),
            // So it is called where no token can be the first.
            Ok(Some(Err(GrammarError::Refused(why)))) if why.contains("NoExtension") => {
                Err(refused("no text satisfies it"))
            }
            Ok(Some(Err(GrammarError::Refused(why)))) => Err(refused(&why)),
            Ok(Some(Err(error @ GrammarError::Vocabulary(_)))) => {
                Err(ApiError::Unavailable(error.to_string()))
            }
            Ok(None) => Err(refused("it cannot be compiled")),
            Err(_elapsed) => Err(refused("compiling takes too long; make it simpler")),
        }
    }
}

impl Compiler {
    /// How much of each schema that is not strict can be compiled.
    async fn efforts(&self, tools: &Tools, format: &AnswerFormat, bounds: Bounds) -> Efforts {
        let mut efforts = Efforts::most(bounds);
        if let AnswerFormat::Json {
            schema,
            strict: false,
        } = format
        {
            efforts.format = self.effort(schema, bounds).await;
        }
        if tools.callable() {
            for tool in tools.allowed() {
                let effort = match tool.strict {
                    true => Effort::Most,
                    false => self.effort(&tool.parameters, bounds).await,
                };
                efforts.tools.push(effort);
            }
        }
        efforts
    }

    async fn effort(&self, schema: &Value, bounds: Bounds) -> Effort {
        for effort in [Effort::Most, Effort::AnyOf, Effort::NoPatterns] {
            let alone = schema_alone(schema, effort, bounds);
            if self.compile(alone, "schema").await.is_ok() {
                return effort;
            }
        }
        Effort::Type
    }
}

/// Compiles the grammar that an answer must follow, if the request requires one.
///
/// # Errors
/// [`ApiError::Field`] if the constraint cannot be enforced or takes too long to compile, or a schema has a
/// reference that leads nowhere.
pub(crate) async fn constraint(
    state: &AppState,
    tools: &Tools,
    format: &AnswerFormat,
    format_param: &'static str,
) -> Result<Enforced, ApiError> {
    let style = state.chat.call_style();
    let (tools, format) = resolved(tools, format, format_param)?;
    let mut efforts = Efforts::most(state.schema_bounds);
    let Some(mut built) = grammar(&tools, &format, style, &efforts) else {
        return Ok(Enforced::default());
    };
    let param = match format {
        AnswerFormat::Text => "tools",
        AnswerFormat::Json { .. }
        | AnswerFormat::Regex(_)
        | AnswerFormat::Choice(_)
        | AnswerFormat::Grammar(_) => format_param,
    };
    if let Some((of, _, notice)) = built.notices.iter().find(|(_, strict, _)| *strict) {
        let message = format!(
            "`{param}` cannot be enforced as `strict` asks: {notice}, in the schema of {of}. Leave the \
             keyword out, or ask without `strict`"
        );
        return Err(ApiError::field(param, message));
    }
    let lark = std::mem::take(&mut built.lark);
    let mut compiled = state.compiler.compile(lark, param).await;
    // A schema that nothing satisfies is wrong, whatever is left to the model.
    let too_much = |error: &ApiError| {
        error.status().is_client_error() && !error.to_string().contains(UNSATISFIABLE)
    };
    if compiled.as_ref().is_err_and(too_much) {
        efforts = state
            .compiler
            .efforts(&tools, &format, efforts.bounds)
            .await;
        let weaker = grammar(&tools, &format, style, &efforts).unwrap_or_default();
        if let Ok(constraint) = state.compiler.compile(weaker.lark.clone(), param).await {
            (compiled, built) = (Ok(constraint), weaker);
        }
    }
    let mut constraint = compiled?;
    if let Some(mark) = json_after(&tools, &format, style) {
        constraint = constraint.ending_numbers(mark);
    }
    let left = |of: Option<&str>| {
        let of = of.unwrap_or(Built::ANSWER);
        built.notices.iter().any(|(whose, _, _)| whose == of)
    };
    let checks = Checks::new(&tools, &format, left).map(Arc::new);
    let notices = built.notices.into_iter();
    let notices = notices.map(|(of, _, notice)| format!("{of}: {notice}"));
    Ok(Enforced {
        constraint: Some(constraint),
        checks,
        notices: notices.collect(),
    })
}

/// The schemas with references that are pointers.
fn resolved(
    tools: &Tools,
    format: &AnswerFormat,
    format_param: &'static str,
) -> Result<(Tools, AnswerFormat), ApiError> {
    let (mut tools, mut format) = (tools.clone(), format.clone());
    let broken = |param: &str, of: &str, broken: &Notice| {
        let message = format!(
            "`{param}` has a schema whose reference leads nowhere: {broken}, in the schema of {of}. A schema \
             can refer to itself by a JSON pointer, an anchor or an `$id` in it, not to other documents"
        );
        ApiError::field(param, message)
    };
    format
        .resolve()
        .map_err(|notice| broken(format_param, Built::ANSWER, &notice))?;
    tools
        .resolve()
        .map_err(|(of, notice)| broken("tools", &of, &notice))?;
    Ok((tools, format))
}

/// A grammar, and what the model is trusted with.
#[derive(Debug, Default)]
pub(crate) struct Enforced {
    pub(crate) constraint: Option<Constraint>,
    /// What finished answers are checked against.
    pub(crate) checks: Option<Arc<Checks>>,
    /// What of the schemas is not enforced, in words.
    notices: Vec<String>,
}

impl Enforced {
    /// Takes what is said of the schemas, to be added to the answer.
    pub(crate) fn said(&mut self) -> Said {
        let all = std::mem::take(&mut self.notices);
        if !all.is_empty() {
            tracing::info!(
                keywords = all.join("; "),
                "parts of a JSON schema are left to the model"
            );
        }
        Said(all)
    }
}

/// What is said of a request's schemas.
#[derive(Debug)]
pub(crate) struct Said(Vec<String>);

impl Said {
    /// The response with a header that says it, behind what the header says of the answers.
    pub(crate) fn in_header(mut self, mut response: Response) -> Response {
        let found = response.headers().get(NOTICE);
        let found = found.and_then(|value| Some(value.to_str().ok()?.to_owned()));
        self.0.splice(0..0, found);
        let all = self.0.join("; ");
        let plain = all.chars().filter(|c| c.is_ascii_graphic() || *c == ' ');
        let text: String = plain.take(MAX_NOTICE).collect();
        if let Some(value) = HeaderValue::from_str(&text)
            .ok()
            .filter(|value| !value.is_empty())
        {
            response.headers_mut().insert(NOTICE, value);
        }
        response
    }

    /// What the checks of a whole answer's choices found.
    pub(crate) fn of_choices<'a>(notices: impl Iterator<Item = Option<&'a str>>) -> Self {
        let said = notices.enumerate();
        let said = said.filter_map(|(i, notice)| Some(format!("choice {i}: {}", notice?)));
        Self(said.collect())
    }
}
