//! mistralrs as a second engine, behind the cargo feature of the same name.
//!
//! It computes logits and nothing else: a custom logits processor hands them to the sequence's
//! [`Driver`], which draws the token as the native engine does, and hands back logits under which
//! no other token can win. The crate is built on another version of candle, so tensors never cross
//! this file's border; token ids, numbers and files do.
//!
//! Its own way to load an adapter is not used: see docs/mistralrs.md for what it does not do.

mod error;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mistralrs::core::{
    DefaultSchedulerMethod, DeviceMapSetting, GGUFLoaderBuilder, GGUFSpecificConfig, IsqType,
    Loader, MistralRs, MistralRsBuilder, ModelDType, NormalLoaderBuilder, NormalSpecificConfig,
    SchedulerConfig, TokenSource, parse_isq_value,
};
use mistralrs::{
    CustomLogitsProcessor, Device, NormalRequest, Request, RequestMessage, Response,
    SamplingParams, Tensor,
};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{Receiver, channel};

use realign_engine::adapter::generation::Generation;
use realign_engine::driver::Driver;
use realign_engine::merged::{BuildError, Builder, ModelCopy};
use realign_model::{LoraWeights, ModelFiles};

pub use error::MistralError;

/// Chunks that the engine may be ahead of the processor: one a step, and each step empties them.
const CHUNKS: usize = 8;
/// The logit of every token but the drawn one.
const NEVER: f32 = -1.0e30;

/// Builds engines from a model's files.
pub struct Mistral {
    files: ModelFiles,
    /// For merged copies of the files, which exist while they are loaded.
    scratch: PathBuf,
    isq: Option<IsqType>,
}

impl Mistral {
    /// Checks what can be checked before anything is loaded. `scratch` is a directory for merged
    /// copies; `isq` a quantisation to apply while loading, by mistralrs' name for it.
    ///
    /// # Errors
    /// What is wrong with `isq`.
    pub fn new(
        files: ModelFiles,
        scratch: PathBuf,
        isq: Option<&str>,
    ) -> Result<Self, MistralError> {
        if isq.is_some() && files.gguf().is_some() {
            return Err(MistralError::IsqOfGguf);
        }
        let parse = |name| parse_isq_value(name, Some(&Device::Cpu));
        let isq = isq.map(parse).transpose();
        Ok(Self {
            files,
            scratch,
            isq: isq.map_err(|why| MistralError::Isq(why.to_string()))?,
        })
    }

    /// Loads the files of `dir` (one GGUF file, or a directory that [`stage`] laid out).
    fn load(&self, from: &Path) -> Result<Arc<MistralRs>, MistralError> {
        let loader = match self.files.gguf() {
            Some(_) => gguf_loader(from)?,
            None => NormalLoaderBuilder::new(
                NormalSpecificConfig::default(),
                None,
                None,
                Some(from.display().to_string()),
                false,
                None,
            )
            .build(None)
            .map_err(|e| MistralError::Load(e.to_string()))?,
        };
        let pipeline = loader.load_model_from_hf(
            None,
            TokenSource::None,
            &ModelDType::F32,
            &Device::Cpu,
            true,
            DeviceMapSetting::dummy(),
            self.isq,
            None,
        );
        let pipeline = pipeline.map_err(|e| MistralError::Load(format!("{e:#}")))?;
        let method = DefaultSchedulerMethod::Fixed(NonZeroUsize::MIN);
        let scheduler = SchedulerConfig::DefaultScheduler { method };
        let builder = MistralRsBuilder::new(pipeline, scheduler, false, None)
            // It keeps whole sequences without a bound in bytes.
            .with_no_prefix_cache(true)
            // Where an answer ends is the driver's to say.
            .with_disable_eos_stop(true);
        // Without threads of its own it makes no trial run; the copy is warmed afterwards anyway.
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        Ok(runtime.block_on(builder.build()))
    }

    fn load_generation(
        &self,
        adapter: Option<&LoraWeights>,
        dir: &Path,
    ) -> Result<Arc<MistralRs>, MistralError> {
        match (self.files.gguf(), adapter) {
            (Some(file), None) => self.load(file),
            (Some(_), Some(adapter)) => {
                self.files.write_merged(adapter, dir)?;
                self.load(&dir.join("model.gguf"))
            }
            (None, adapter) => {
                stage(&self.files, adapter, dir)?;
                self.load(dir)
            }
        }
    }
}

impl Builder for Mistral {
    fn build(&self, generation: &Generation) -> Result<Box<dyn ModelCopy>, BuildError> {
        let running = self.run(generation);
        running.map_err(|error| BuildError::Load(error.to_string()))
    }
}

impl Mistral {
    fn run(&self, generation: &Generation) -> Result<Box<dyn ModelCopy>, MistralError> {
        let dir = Scratch::new(self.scratch.join(&generation.id.0))?;
        let adapter = generation.adapter.as_ref().map(|a| &*a.weights);
        // A thread of its own: mistralrs keeps settings of a load in thread-locals and never clears
        // them, may panic over a file, and must not find a runtime around it.
        let loaded = std::thread::scope(|scope| {
            let load = || self.load_generation(adapter, &dir.0);
            let thread = std::thread::Builder::new().name("load-mistralrs".into());
            let thread = thread.spawn_scoped(scope, load)?;
            thread.join().unwrap_or(Err(MistralError::Panicked))
        });
        let turns = Turns {
            engine: loaded?,
            queue: Mutex::default(),
        };
        Ok(Box::new(Running(Arc::new(turns))))
    }
}

fn gguf_loader(file: &Path) -> Result<Box<dyn Loader>, MistralError> {
    let wrong = || MistralError::NotAFile(file.into());
    let name = file
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(wrong)?;
    let dir = match file.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => parent.display().to_string(),
        None => ".".into(),
    };
    let config = GGUFSpecificConfig::default();
    let files = vec![name.to_string()];
    Ok(GGUFLoaderBuilder::new(None, None, dir, files, config, false, None).build())
}

/// A directory that goes with all it holds.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, MistralError> {
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(MistralError::at(&path))?;
        }
        std::fs::create_dir_all(&path).map_err(MistralError::at(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What was loaded stays in memory, or mapped.
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot be removed");
        }
    }
}

/// Lays a safetensors model out as mistralrs reads it: weight files by the names it looks for, a
/// configuration that names its architecture, and no chat template, which is ours to apply.
fn stage(
    files: &ModelFiles,
    adapter: Option<&LoraWeights>,
    dir: &Path,
) -> Result<(), MistralError> {
    match adapter {
        Some(adapter) => files.write_merged(adapter, dir),
        // Without a site to merge every file is linked.
        None => files.write_merged(&LoraWeights::default(), dir),
    }?;
    let config = with_architecture(read_json(&files.root.join("config.json"))?)?;
    write_json(&dir.join("config.json"), &config)?;
    let tokenizer = files.root.join("tokenizer.json");
    let copied = std::fs::copy(&tokenizer, dir.join("tokenizer.json"));
    copied.map_err(MistralError::at(&tokenizer))?;
    let conventions = read_json(&files.root.join("tokenizer_config.json")).unwrap_or_default();
    let kept: Map<String, Value> = ["bos_token", "eos_token", "unk_token"]
        .into_iter()
        .filter_map(|key| Some((key.to_string(), conventions.get(key)?.clone())))
        .collect();
    write_json(&dir.join("tokenizer_config.json"), &Value::Object(kept))
}

fn read_json(path: &Path) -> Result<Value, MistralError> {
    let text = std::fs::read(path).map_err(MistralError::at(path))?;
    serde_json::from_slice(&text).map_err(|source| MistralError::Json {
        path: path.into(),
        source,
    })
}

fn write_json(path: &Path, value: &Value) -> Result<(), MistralError> {
    std::fs::write(path, value.to_string()).map_err(MistralError::at(path))
}

/// mistralrs chooses its code by `architectures`, which files may lack.
fn with_architecture(mut config: Value) -> Result<Value, MistralError> {
    if config["architectures"][0].is_string() {
        return Ok(config);
    }
    let name = match config["model_type"].as_str() {
        Some("llama") => "LlamaForCausalLM",
        Some("mistral") => "MistralForCausalLM",
        Some("gemma2") => "Gemma2ForCausalLM",
        Some("qwen2") => "Qwen2ForCausalLM",
        Some("qwen3") => "Qwen3ForCausalLM",
        other => return Err(MistralError::Architecture(other.map(String::from))),
    };
    config["architectures"] = json!([name]);
    Ok(config)
}

/// One loaded engine, and the sequences that wait for their turn in it.
///
/// One sequence at a time: mistralrs 0.8.1 computes wrong attention for a batch on the CPU. In
/// `flash_attn_cpu_single_q` (attention/backends/cpu.rs) the buffer for partial sums has no place
/// for the batch, so that every sequence of a step gets what the last one attends to: answers
/// to different clients run into each other.
struct Turns {
    engine: Arc<MistralRs>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    busy: bool,
    waiting: VecDeque<Driver>,
}

/// The right to run; the next sequence gets it when this is dropped.
struct Turn(Arc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        while let Some(mut driver) = self.0.next() {
            if !driver.is_over() {
                return self.0.start(driver);
            }
        }
    }
}

struct Running(Arc<Turns>);

impl ModelCopy for Running {
    fn submit(&self, driver: Driver) {
        let mut queue = self.0.queue();
        if queue.busy {
            return queue.waiting.push_back(driver);
        }
        queue.busy = true;
        drop(queue);
        self.0.start(driver);
    }
}

impl Turns {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while the lock is held; if it did, the queue is still valid.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sequence whose turn it is; without one, the next to come need not wait.
    fn next(&self) -> Option<Driver> {
        let mut queue = self.queue();
        let next = queue.waiting.pop_front();
        queue.busy = next.is_some();
        next
    }

    /// Hands a sequence to mistralrs.
    fn start(self: &Arc<Self>, mut driver: Driver) {
        let turn = Turn(Arc::clone(self));
        let sender = match self.engine.get_sender(None) {
            Ok(sender) => sender,
            Err(error) => return driver.because(format!("mistralrs has stopped: {error}")),
        };
        let (response, responses) = channel(CHUNKS);
        let messages = RequestMessage::CompletionTokens(driver.prompt().to_vec());
        let sampling_params = SamplingParams {
            // None would be taken for 1.
            temperature: Some(0.0),
            max_len: Some(driver.max_tokens()),
            ..SamplingParams::neutral()
        };
        let mut request =
            NormalRequest::new_simple(messages, sampling_params, response, 0, None, None);
        request.is_streaming = true;
        request.logits_processors = Some(vec![Arc::new(Processor(Mutex::new(Steered {
            driver,
            responses: Some(responses),
            _turn: turn,
        })))]);
        // A full queue or an engine that has ended drops the request, and with it the driver.
        if sender.try_send(Request::Normal(Box::new(request))).is_err() {
            tracing::error!("mistralrs took no request");
        }
    }
}

/// Where mistralrs meets the driver.
struct Processor(Mutex<Steered>);

struct Steered {
    driver: Driver,
    /// mistralrs' own answer, of which only errors are of interest. It gives a sequence up when
    /// no receiver is left, which is how an ended one is taken from it at once.
    responses: Option<Receiver<Response>>,
    /// After the driver, which is dropped first.
    _turn: Turn,
}

impl CustomLogitsProcessor for Processor {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> mistralrs::Result<Tensor> {
        let mut values = logits.to_vec1::<f32>()?;
        // A panic in a step of this sequence alone: it is dropped with the sequence.
        let mut steered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steered.listen();
        let drawn = steered.driver.advance(&values);
        if drawn.is_none() {
            steered.responses = None;
        }
        // It notices that no receiver is left when it has text to send, which half a character is not.
        let token = drawn.unwrap_or_else(|| steered.driver.filler());
        values.fill(NEVER);
        if let Some(value) = values.get_mut(token as usize) {
            *value = 1.0;
        }
        let len = values.len();
        Tensor::from_vec(values, len, logits.device())
    }
}

impl Steered {
    /// Takes the chunks of earlier steps out, and keeps an error for the report of the end.
    fn listen(&mut self) {
        let Some(responses) = &mut self.responses else {
            return;
        };
        while let Ok(response) = responses.try_recv() {
            let error = match response {
                Response::InternalError(error) | Response::ValidationError(error) => {
                    error.to_string()
                }
                Response::ModelError(error, _) | Response::CompletionModelError(error, _) => error,
                _ => continue,
            };
            self.driver.because(format!("mistralrs: {error}"));
        }
    }
}

impl Drop for Steered {
    fn drop(&mut self) {
        self.listen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_is_kept_or_found_by_the_model_type() {
        let named = json!({ "architectures": ["Other"], "model_type": "llama" });
        assert_eq!(with_architecture(named.clone()).unwrap(), named);
        let found = with_architecture(json!({ "model_type": "qwen2" })).unwrap();
        assert_eq!(found["architectures"], json!(["Qwen2ForCausalLM"]));
        let error = with_architecture(json!({ "model_type": "new" })).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("--engine native"), "{error}");
    }
}
