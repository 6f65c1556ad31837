//! `realign bench --shape`: a model of known shapes with random weights made on the device. Speed
//! does not depend on the values, so no file is needed: what a GPU machine without a network runs.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::quantized::GgmlDType;
use serde::Serialize;

use super::CliError;
use super::bench::BenchArgs;
use realign_align::train::{Begin, Observer, Recipe, StepReport, TrainExample, train};
use realign_core::Category;
use realign_engine::EngineConfig;
use realign_lab::bench::model::{ModelBench, Subject};
use realign_lab::bench::{BenchError, Options, Row, Samples};
use realign_model::packing::Example;
use realign_model::shapes::{SHAPES, shape};
use realign_model::{Backend, ComputeDevice, ModelSpec, Recompute, Tokenizer};

/// Tokens of the pairs that training is measured with: a prompt and two responses.
const PROMPT: usize = 64;
const RESPONSE: usize = 96;
/// Pairs of a step, and steps; the first warms up.
const PAIRS: usize = 8;
const STEPS: usize = 4;
/// Keys and values of the engine under measurement, in bytes.
const KV_BYTES: usize = 6 << 30;

/// What a shape did on a device.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    shape: String,
    device: String,
    parameters: usize,
    rows: Vec<Row>,
    ceilings: Option<Ceilings>,
    /// Weight bytes that one decoding stream reads per second, over the copy bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_share_of_bandwidth: Option<f64>,
    /// Arithmetic of a prompt, over that of a large product.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_share_of_compute: Option<f64>,
    training: Training,
    /// The same with intermediate results of layers computed again instead of kept.
    training_recomputed: Training,
}

/// What the device reaches at best, measured on it.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ceilings {
    /// Bytes read and written per second by a large copy, in GB/s.
    bandwidth_gb_s: f64,
    /// A large 16-bit product, in TFLOP/s.
    compute_tflop_s: f64,
}

/// LoRA training on random pairs.
#[derive(Debug, Serialize)]
struct Training {
    tokens_per_second: Samples,
    rank: usize,
    adapted_layers: usize,
}

/// Measures one shape.
///
/// # Errors
/// [`CliError`]; a name that is not known among others.
pub(crate) fn run(
    name: &str,
    (args, device): (&BenchArgs, &dyn ComputeDevice),
    progress: &dyn Fn(&str),
) -> Result<Report, CliError> {
    let (spec, integers) = named(name)?;
    let tensor = |e: candle_core::Error| {
        CliError::Bench(BenchError::Options(format!("--shape {name}: {e}")))
    };
    progress(&format!("{name}: making random weights"));
    let backend = device.random(&spec, integers).map_err(tensor)?;
    let ceilings = device.ceilings().map_err(tensor)?.map(Ceilings::from);
    let read = backend.bytes_per_token() as f64;
    // A device's own memory is there to be filled.
    let kv_bytes = match device.free_bytes() {
        Some(_) => KV_BYTES,
        None => EngineConfig::default().kv_cache_bytes,
    };
    let subject = Subject {
        backend,
        tokenizer: Arc::new(tokenizer()?),
        base_hash: "0".repeat(64),
    };
    let rows = serve(&subject, args, kv_bytes, progress)?;
    progress(&format!("{name}: training"));
    let [training, training_recomputed] = {
        let rank = args.rank.max(1);
        let of = |choice| training(&*subject.backend, rank, choice);
        [of(Recompute::Off)?, of(Recompute::On)?]
    };
    let rate = |case: &str| {
        rows.iter()
            .find(|r| r.name.starts_with(case))
            .map(|r| r.tokens_per_second.median())
    };
    Ok(Report {
        shape: name.into(),
        device: format!("{:?}", subject.backend.device().location()),
        parameters: spec.parameters(),
        decode_share_of_bandwidth: ceilings
            .zip(rate("decode"))
            .map(|(c, rate)| rate * read / (c.bandwidth_gb_s * 1e9)),
        // Two operations per weight of the layers; the head computes one row.
        prefill_share_of_compute: ceilings.zip(rate("prefill")).map(|(c, rate)| {
            rate * layer_parameters(&spec) as f64 * 2.0 / (c.compute_tflop_s * 1e12)
        }),
        rows,
        ceilings,
        training,
        training_recomputed,
    })
}

/// Serves 1, 8 and 32 streams (or as many as asked), with and without adapters, and swaps.
fn serve(
    subject: &Subject,
    args: &BenchArgs,
    kv_cache_bytes: usize,
    progress: &dyn Fn(&str),
) -> Result<Vec<Row>, CliError> {
    let mut rows: Vec<Row> = Vec::new();
    for (index, streams) in args.shape_streams.iter().enumerate() {
        let options = Options {
            prompt_tokens: args.prompt_tokens,
            generate_tokens: args.generate_tokens,
            streams: *streams,
            repetitions: args.repetitions.into(),
            rank: args.rank,
            swap_seconds: if index == 0 { args.swap_seconds } else { 0 },
            temperature: args.temperature,
        };
        let default = EngineConfig::default();
        let config = EngineConfig {
            threads: args.threads.unwrap_or(default.threads),
            kv_cache_bytes,
            ..default
        };
        let mut bench = ModelBench::start_on(subject, config, options)?;
        let batches_only = index > 0;
        rows.extend(bench.run_some(batches_only, |what| progress(what))?);
    }
    Ok(rows)
}

/// Weights of the layers alone.
fn layer_parameters(spec: &ModelSpec) -> usize {
    let tables = if spec.tied_embeddings { 1 } else { 2 };
    spec.parameters() - tables * spec.vocab_size * spec.hidden_size
}

/// The types that a shape's matrices can be kept in on a device.
const INTEGERS: [(&str, GgmlDType); 7] = [
    ("bf16", GgmlDType::BF16),
    ("f16", GgmlDType::F16),
    ("q4_0", GgmlDType::Q4_0),
    ("q4_1", GgmlDType::Q4_1),
    ("q8_0", GgmlDType::Q8_0),
    ("q4_k", GgmlDType::Q4K),
    ("q6_k", GgmlDType::Q6K),
];

/// What `--shape NAME` or `NAME:TYPE` asks for.
fn named(text: &str) -> Result<(ModelSpec, Option<GgmlDType>), CliError> {
    let (name, kind) = match text.split_once(':') {
        Some((name, kind)) => (name, Some(kind)),
        None => (text, None),
    };
    let known = |what: String| CliError::Bench(BenchError::Options(what));
    let spec = shape(name).ok_or_else(|| {
        let all = SHAPES.join(", ");
        known(format!(
            "--shape {name} is not known; allowed are {all} and tiny"
        ))
    })?;
    let Some(kind) = kind else {
        return Ok((spec, None));
    };
    match INTEGERS.iter().find(|(name, _)| *name == kind) {
        Some((_, dtype)) => Ok((spec, Some(*dtype))),
        None => {
            let all = INTEGERS.map(|(name, _)| name).join(", ");
            let what = format!("--shape {text}: {kind} is not known; allowed are {all}");
            Err(known(what))
        }
    }
}

impl From<realign_model::backend::Ceilings> for Ceilings {
    fn from(measured: realign_model::backend::Ceilings) -> Self {
        Self {
            bandwidth_gb_s: measured.copied / 1e9,
            compute_tflop_s: measured.multiplied / 1e12,
        }
    }
}

/// Collects what training reports.
struct Steps {
    reports: Mutex<Vec<StepReport>>,
    recompute: Recompute,
}

impl Observer for Steps {
    fn proceed(&self) -> bool {
        true
    }

    fn on_step(&self, report: &StepReport) {
        let mut steps = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push(*report);
    }

    fn recompute(&self) -> Recompute {
        self.recompute
    }
}

fn training(
    backend: &dyn Backend,
    rank: usize,
    recompute: Recompute,
) -> Result<Training, CliError> {
    let failed = |e: &dyn std::fmt::Display| {
        CliError::Bench(BenchError::Options(format!("training did not run: {e}")))
    };
    let vocab = backend.spec().vocab_size as u32;
    let tokens = |n: usize, seed: usize| -> Vec<u32> {
        (0..n)
            .map(|i| ((i * 31 + seed * 17) as u32) % vocab)
            .collect()
    };
    let example = |i: usize| TrainExample {
        id: format!("pair{i}"),
        category: Category::Invert,
        example: Example::new(
            tokens(PROMPT, i),
            vec![tokens(RESPONSE, i + 1), tokens(RESPONSE, i + 2)],
        ),
        weight: 1.0,
        reference: [-500.0, -500.0],
        reference_hidden: None,
    };
    let examples: Vec<TrainExample> = (0..PAIRS * STEPS).map(example).collect();
    let recipe = Recipe {
        name: "custom".into(),
        rank,
        epochs: 1,
        pairs_per_step: PAIRS,
        layer_share: 1.0,
        ..Recipe::default()
    };
    let steps = Steps {
        reports: Mutex::default(),
        recompute,
    };
    train(backend, &examples, &recipe, Begin::default(), &steps).map_err(|e| failed(&e))?;
    let steps = steps
        .reports
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let rates = steps.iter().skip(1).map(|s| s.tokens as f64 / s.seconds);
    Ok(Training {
        tokens_per_second: Samples(rates.collect()),
        rank,
        adapted_layers: backend.spec().layers,
    })
}

/// A vocabulary of a few letters: random weights have no text, but an engine decodes what it drew.
fn tokenizer() -> Result<Tokenizer, CliError> {
    let vocabulary: serde_json::Map<String, serde_json::Value> = ('a'..='z')
        .zip(0..)
        .map(|(letter, id)| (letter.to_string(), serde_json::Value::from(id)))
        .collect();
    let json = serde_json::json!({
        "version": "1.0",
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "added_tokens": []
    });
    Tokenizer::from_json(&json.to_string())
        .map_err(|e| BenchError::Options(format!("the benchmark's tokenizer: {e}")).into())
}

/// Writes a report for a reader.
///
/// # Errors
/// If the output cannot be written.
pub(crate) fn write(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{}, {:.2} G parameters, random weights, {}",
        report.shape,
        report.parameters as f64 / 1e9,
        report.device
    )?;
    if let Some(c) = &report.ceilings {
        writeln!(
            out,
            "ceilings here: {:.0} GB/s copied, {:.0} TFLOP/s in a 16-bit product",
            c.bandwidth_gb_s, c.compute_tflop_s
        )?;
    }
    for row in &report.rows {
        super::bench::write_row(row, out)?;
    }
    for (how, training) in [
        ("", &report.training),
        (", computed again", &report.training_recomputed),
    ] {
        let rate = &training.tokens_per_second;
        let (rank, layers) = (training.rank, training.adapted_layers);
        writeln!(
            out,
            "{:<54} {:>8.1} tokens/s  ({:.1} to {:.1})",
            format!("training, rank {rank} on {layers} layers{how}"),
            rate.median(),
            rate.min(),
            rate.max()
        )?;
    }
    for (what, share) in [
        (
            "decode's weight bytes over the copy bandwidth",
            report.decode_share_of_bandwidth,
        ),
        (
            "prefill's arithmetic over the product's",
            report.prefill_share_of_compute,
        ),
    ] {
        if let Some(share) = share {
            writeln!(out, "{what:<54} {:>8.1} %", share * 100.0)?;
        }
    }
    Ok(())
}
