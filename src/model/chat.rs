//! Conversations to token ids, through the model's own Jinja template.
//!
//! A template writes control tokens as text (`<|im_start|>`), and a user may type the same
//! letters. Before rendering, a guard character is put inside every such literal in the messages;
//! the tokenizer drops it after control tokens were recognised. So a message can never open or
//! close a turn, and a conversation without such literals takes no detour at all.

mod arguments;
mod budget;
mod compiled;
mod errors;
mod functions;
#[cfg(test)]
mod golden;
mod guard;
mod guarded;
mod message;
mod prepare;
mod probe;
mod python;
#[cfg(test)]
mod tests;
mod tools;
mod turn;

use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value as GgufValue};
use minijinja::value::merge_maps;
use minijinja::{Environment, context};
use realign_core::files::{self, Limit};
use realign_core::thoughts;
use serde_json::{Map, Value};

use guard::{all_texts, guard_literals, holds_control, unused_character};
use message::Form;
pub use message::{ChatMessage, ChatRole};
pub use tools::CallStyle;
use tools::{ToolSupport, map_strings, support};
use turn::Mark;
pub use turn::{Next, Turn};

use super::tokenizer::{Tokenizer, TokenizerError};

/// Why a template could not be loaded, or a conversation not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model's files hold no template.
    #[error(
        "{place} has no chat template: this is a base model (use /v1/completions), or its template \
         belongs into {wanted}"
    )]
    NoTemplate {
        /// Where it was looked for.
        place: String,
        /// The file that may hold one.
        wanted: String,
    },
    /// A file could not be read or parsed.
    #[error("{place}: {problem}")]
    Malformed {
        /// The file or the metadata key.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// The template is not valid Jinja.
    #[error("the chat template does not compile: {0}")]
    Template(String),
    /// The template refuses this conversation. The message is the template's own, and safe to show.
    #[error("the model's chat template does not accept these messages: {0}")]
    Refused(String),
    /// The template takes more steps, time or memory than a rendering may.
    #[error("the model's chat template is refused: {0}")]
    Exceeded(String),
    /// The text could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl ChatError {
    /// Whether the conversation is at fault rather than the model's files.
    pub fn is_client_fault(&self) -> bool {
        use ChatError::{Exceeded, NoTemplate, Refused, Tokenizer};
        // A template that suits a model exceeds its budget for conversations that are too large.
        matches!(
            self,
            NoTemplate { .. } | Refused(_) | Exceeded(_) | Tokenizer(_)
        )
    }
}

/// A compiled chat template with what it needs of the tokenizer.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    end_of_turn: u32,
    /// Where a template was looked for and where one could be put, if there is none.
    absent: Option<[String; 2]>,
    tools: ToolSupport,
    /// Whether a conversation may begin with a system message.
    takes_system: bool,
    /// Whether it opens the model's thoughts at the end of a prompt.
    opens_thoughts: bool,
    /// Whether a function is shown with fields that nothing knows.
    shows_functions_whole: bool,
    form: Form,
    /// The template as it was written.
    source: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("end_of_turn", &self.end_of_turn)
            .finish_non_exhaustive()
    }
}

const NAME: &str = "chat";
/// Maximum size of a template's file, and of the `tokenizer_config.json` that may hold one.
const MAX_FILE: Limit = Limit::mib(64);

impl ChatTemplate {
    /// Compiles a template and finds the token with which it ends an assistant's turn.
    ///
    /// # Errors
    /// [`ChatError::Template`] if it is not valid Jinja; [`ChatError::Exceeded`] if it does not
    /// render a short conversation within its budget; [`ChatError::Malformed`] if neither the
    /// template nor the tokenizer says which token ends a turn.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        let mut environment = prepare::environment();
        environment.set_fuel(Some(budget::MAX_STEPS));
        functions::register(&mut environment);
        python::register(&mut environment);
        guarded::register(&mut environment);
        let invalid = |e: minijinja::Error| match budget::reason(&e) {
            Some(why) => ChatError::Exceeded(why),
            None => ChatError::Template(e.to_string()),
        };
        let prepared = prepare::prepare(source).map_err(invalid)?;
        compiled::contained(|| environment.add_template_owned(NAME, prepared)).map_err(invalid)?;
        let literal = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
        let mut template = Self {
            environment,
            bos: literal(tokenizer.bos_id()),
            eos: literal(tokenizer.eos_id()),
            end_of_turn: 0,
            absent: None,
            tools: support(source),
            takes_system: false,
            opens_thoughts: false,
            shows_functions_whole: false,
            form: Form::default(),
            source: source.to_owned(),
        };
        template.form = template.found_form()?;
        template.takes_system = template.accepts_system()?;
        template.opens_thoughts = template.found_opened_thoughts()?;
        template.shows_functions_whole = template.found_whole_functions()?;
        template.end_of_turn = template
            .written_end_of_turn(tokenizer)?
            .or(tokenizer.eos_id())
            .ok_or_else(|| ChatError::Malformed {
                place: "the chat template".into(),
                problem: "no control token ends an assistant's turn, and the model declares no \
                          end-of-sequence token"
                    .into(),
            })?;
        Ok(template)
    }

    /// The template of a GGUF file: the file of the same name that ends in `.jinja`, or else the
    /// metadata's `tokenizer.chat_template`. A base model has none: its conversations are refused
    /// when they are rendered, everything else works.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn from_gguf(
        file: &Path,
        content: &Content,
        tokenizer: &Tokenizer,
    ) -> Result<Self, ChatError> {
        let beside = file.with_extension("jinja");
        if let Some(source) = read(&beside)? {
            return Self::new(&source, tokenizer);
        }
        let key = "tokenizer.chat_template";
        match content.metadata.get(key) {
            Some(GgufValue::String(source)) => Self::new(source, tokenizer),
            Some(_) => Err(malformed(key, "not a string")),
            None => Self::absent(&file.display().to_string(), &beside, tokenizer),
        }
    }

    /// Stands where a base model has no template.
    fn absent(place: &str, wanted: &Path, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        tracing::info!("{place} has no chat template: it serves completions, not conversations");
        Ok(Self {
            absent: Some([place.to_owned(), wanted.display().to_string()]),
            ..Self::new("", tokenizer)?
        })
    }

    /// The template of a Hugging Face model directory: `chat_template.jinja`, or else the entry
    /// `chat_template` of `tokenizer_config.json` (of several, the one named `default`). A base
    /// model has none, as with [`ChatTemplate::from_gguf`].
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub(crate) fn from_directory(dir: &Path, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        let wanted = dir.join("chat_template.jinja");
        if let Some(source) = read(&wanted)? {
            return Self::new(&source, tokenizer);
        }
        let path = dir.join("tokenizer_config.json");
        let place = path.display().to_string();
        let Some(text) = read(&path)? else {
            return Self::absent(&dir.display().to_string(), &wanted, tokenizer);
        };
        let config: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| malformed(&place, e.to_string()))?;
        let source = match config.get("chat_template") {
            Some(serde_json::Value::String(source)) => Some(source.as_str()),
            Some(serde_json::Value::Array(named)) => named
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str()),
            Some(_) | None => None,
        };
        match source {
            Some(source) => Self::new(source, tokenizer),
            None => Self::absent(&place, &wanted, tokenizer),
        }
    }

    /// The conversation as the model's text, control tokens written out.
    ///
    /// # Errors
    /// [`ChatError::Refused`] if the template raises, e.g. because roles must alternate;
    /// [`ChatError::NoTemplate`] for a base model.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.render_with(messages, &[], &Turn::new(add_generation_prompt))
    }

    /// Whether the template has a variable or a text. Variables that it does not have change nothing.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// Whether the template reads a field of this name, of a message or a function.
    pub fn reads(&self, field: &str) -> bool {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        self.source.match_indices(field).any(|(at, _)| {
            let before = self.source[..at].chars().next_back();
            let after = self.source[at + field.len()..].chars().next();
            before.is_some_and(|c| matches!(c, '.' | '\'' | '"')) && !after.is_some_and(is_word)
        })
    }

    /// Whether the model is shown all of a function's definition, fields that nothing knows included.
    pub fn shows_functions_whole(&self) -> bool {
        self.shows_functions_whole
    }

    /// The template as it was written; `None` if the model has none.
    pub fn source(&self) -> Option<&str> {
        self.absent.is_none().then_some(&self.source)
    }

    /// Where a template could be put, for a base model that has none.
    pub fn wanted(&self) -> Option<&str> {
        self.absent.as_ref().map(|[_, wanted]| wanted.as_str())
    }

    /// Whether the model thinks before it answers, between `<think>` and `</think>`.
    pub fn thinks(&self) -> bool {
        self.mentions("</think>")
    }

    fn render_with(
        &self,
        messages: &[ChatMessage],
        tools: &[Value],
        turn: &Turn,
    ) -> Result<String, ChatError> {
        if let Some([place, wanted]) = self.absent.clone() {
            return Err(ChatError::NoTemplate { place, wanted });
        }
        let mark = turn.mark(messages, || all_texts(messages, tools))?;
        let messages = messages.iter().map(|message| message.json(self.form));
        let tools = (!tools.is_empty()).then_some(tools);
        self.render_json(messages.collect(), tools, turn, mark)
    }

    /// Renders messages as JSON, as `transformers` does.
    fn render_json(
        &self,
        mut messages: Vec<Map<String, Value>>,
        tools: Option<&[Value]>,
        turn: &Turn,
        mark: Option<Mark>,
    ) -> Result<String, ChatError> {
        let marked = match (&mark, messages.last_mut()) {
            (Some(mark), Some(last)) => mark.set(last)?,
            _ => String::new(),
        };
        let messages: Vec<minijinja::Value> = messages.iter().map(message::for_template).collect();
        let variables = context! {
            messages => messages,
            tools => tools,
            documents => (),
            add_generation_prompt => turn.opens(),
            bos_token => self.bos,
            eos_token => self.eos,
        };
        let variables = match turn.variables.is_empty() {
            true => variables,
            // The conversation's own come first.
            false => merge_maps([variables, minijinja::Value::from_serialize(&turn.variables)]),
        };
        let text = compiled::render(&self.environment, NAME, variables).map_err(|e| {
            if let Some(why) = budget::reason(&e) {
                return ChatError::Exceeded(why);
            }
            // `detail` is what `raise_exception` was given; the kind alone says little otherwise.
            let reason = e
                .detail()
                .map_or_else(|| e.kind().to_string(), str::to_owned);
            ChatError::Refused(reason)
        })?;
        match mark {
            Some(mark) => mark.cut(text, &marked),
            None => Ok(text),
        }
    }

    /// The conversation as token ids. Control literals inside messages are text.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], or [`ChatError::Tokenizer`].
    pub fn encode_chat(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ChatError> {
        self.encode_chat_with(tokenizer, messages, &[], &Turn::new(add_generation_prompt))
    }

    /// As [`ChatTemplate::encode_chat`], with functions that the model may call, each as OpenAI's
    /// `{"type": "function", "function": {…}}`. Control literals inside them are text, too.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_chat`].
    pub fn encode_chat_with(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
        tools: &[Value],
        turn: &Turn,
    ) -> Result<Vec<u32>, ChatError> {
        if holds_control(
            tokenizer,
            &Value::Object(turn.variables.clone()).to_string(),
        ) {
            let why = "a variable of the request holds a control token";
            return Err(ChatError::Refused(why.into()));
        }
        if !self.tools.native {
            let plain = self.plain(messages, tools);
            return self.encode_guarding(tokenizer, &plain, &[], turn);
        }
        arguments::in_any_form(messages, |messages| {
            self.encode_guarding(tokenizer, messages, tools, turn)
        })
    }

    fn encode_guarding(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
        tools: &[Value],
        turn: &Turn,
    ) -> Result<Vec<u32>, ChatError> {
        let texts = all_texts(messages, tools);
        if !holds_control(tokenizer, &texts) {
            let text = self.render_with(messages, tools, turn)?;
            return Ok(tokenizer.encode(&text, true)?);
        }
        let guard = unused_character(&texts)?;
        let change = |text: &str| guard_literals(tokenizer, text, guard);
        let guarded: Vec<ChatMessage> = messages.iter().map(|m| m.guarded(&change)).collect();
        let tools: Vec<Value> = tools.iter().map(|t| map_strings(t, &change)).collect();
        let text = self.render_with(&guarded, &tools, turn)?;
        Ok(tokenizer.encode_guarded(&text, guard)?)
    }

    /// A response's token ids as a model would have generated them: the text, in which control
    /// literals are text, then the end of the turn. Where the template opens the thoughts in the prompt, it
    /// begins behind their tag, and a response without thoughts ends them at once.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn encode_response(
        &self,
        tokenizer: &Tokenizer,
        response: &str,
    ) -> Result<Vec<u32>, ChatError> {
        let mut ids = match self.opens_thoughts {
            true => tokenizer.encode(&thoughts::after_opened(response), false)?,
            false => tokenizer.encode(response, false)?,
        };
        ids.push(self.end_of_turn);
        Ok(ids)
    }

    /// The token that ends an assistant's turn.
    pub fn end_of_turn_id(&self) -> u32 {
        self.end_of_turn
    }
}

fn read(path: &Path) -> Result<Option<String>, ChatError> {
    files::read_text_if_there(path, MAX_FILE)
        .map_err(|e| malformed(&path.display().to_string(), e.to_string()))
}

fn malformed(place: &str, problem: impl Into<String>) -> ChatError {
    ChatError::Malformed {
        place: place.into(),
        problem: problem.into(),
    }
}
