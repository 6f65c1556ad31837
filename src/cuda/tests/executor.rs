//! The whole executor against the shared decoder on candle's primitives: prompts in chunks, decoding,
//! mixed adapters, every family's departures.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::{UnderTest, devices, random_floats, reference};
use crate::Model;
use crate::{CudaExecutor, DeviceAdapter, Element, Options};
use realign_model::AdapterSpan;
use realign_model::Outputs;
use realign_model::Staged;
use realign_model::Step;
use realign_model::draw::DrawRequest;
use realign_model::lora::{LoraPair, LoraSite, LoraWeights, Projection};
use realign_model::spec::{ModelSpec, RopeScaling, RopeSpec, Variant};
use realign_model::{Activation, PagedSequence, Segment};
use realign_reference::AdapterRows;
use realign_reference::Batch;
use realign_reference::Reference;

pub(super) const BLOCKS: usize = 24;
pub(super) const VOCABULARY: usize = 61;

pub(super) fn spec(variant: Variant) -> ModelSpec {
    ModelSpec {
        architecture: "test".into(),
        vocab_size: VOCABULARY,
        hidden_size: 40,
        intermediate_size: 56,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        rms_norm_eps: 1e-5,
        rope: RopeSpec {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        },
        max_position: 256,
        qkv_bias: false,
        tied_embeddings: false,
        variant,
    }
}

pub(super) fn families() -> Vec<(&'static str, ModelSpec)> {
    let gemma = Variant {
        qk_norm: true,
        output_norms: true,
        activation: Activation::GeluTanh,
        embedding_scale: Some(6.3),
        attention_scale_width: Some(24.0),
        attention_cap: Some(3.0),
        logit_cap: Some(4.0),
        windows: vec![Some(20), None],
        local_rope: Some(RopeSpec {
            theta: 100.0,
            scaling: RopeScaling::None,
        }),
        ..Variant::default()
    };
    let qwen = ModelSpec {
        qkv_bias: true,
        tied_embeddings: true,
        ..spec(Variant {
            output_bias: true,
            ..Variant::default()
        })
    };
    // A width that is no multiple of eight takes the general product.
    let odd = ModelSpec {
        hidden_size: 36,
        ..spec(Variant::default())
    };
    vec![
        ("llama", spec(Variant::default())),
        ("qwen", qwen),
        ("gemma", spec(gemma)),
        ("odd", odd),
    ]
}

/// An adapter on some sites, its factors on the CPU as they are loaded.
fn adapter(spec: &ModelSpec, rank: usize, projections: &[Projection]) -> Result<Arc<LoraWeights>> {
    let mut sites = BTreeMap::new();
    for layer in 0..spec.layers {
        for projection in projections {
            let (inner, out) = spec.projection_shape(*projection);
            let random = |shape| Tensor::randn(0f32, 0.2, shape, &Device::Cpu);
            let pair = LoraPair {
                a: random((rank, inner))?,
                b: random((out, rank))?,
                scale: 0.5,
            };
            let site = LoraSite {
                layer,
                projection: *projection,
            };
            sites.insert(site, pair);
        }
    }
    Ok(Arc::new(sites.into()))
}

/// A stream: its tokens, how many are in the cache, its blocks and its adapter.
pub(super) struct Stream {
    pub(crate) tokens: Vec<u32>,
    pub(crate) cached: usize,
    pub(crate) blocks: Arc<[u32]>,
    pub(crate) adapter: Option<(Arc<LoraWeights>, Staged)>,
}

pub(super) struct Rows {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) sequences: Arc<[PagedSequence]>,
    pub(crate) adapters: Vec<AdapterSpan>,
    pub(crate) outputs: Vec<u32>,
}

/// Lays out `take` tokens of each stream; the last row of each is an output.
pub(super) fn lay_out(streams: &mut [Stream], take: impl Fn(&Stream) -> usize) -> Rows {
    let mut rows = Rows {
        tokens: Vec::new(),
        positions: Vec::new(),
        sequences: Arc::from([]),
        adapters: Vec::new(),
        outputs: Vec::new(),
    };
    let mut sequences = Vec::new();
    for stream in streams {
        let (start, count) = (rows.tokens.len(), take(stream));
        let range = stream.cached..stream.cached + count;
        rows.tokens.extend_from_slice(&stream.tokens[range.clone()]);
        rows.positions.extend(range.map(|p| p as u32));
        sequences.push(PagedSequence {
            start,
            rows: count,
            cached: stream.cached,
            blocks: stream.blocks.clone(),
        });
        rows.outputs.push((start + count - 1) as u32);
        if let Some((_, adapter)) = &stream.adapter {
            rows.adapters.push(AdapterSpan {
                rows: start..start + count,
                adapter: adapter.clone(),
            });
        }
        stream.cached += count;
    }
    rows.sequences = sequences.into();
    rows
}

/// Logits of every stream's last token, from whole sequences.
fn expected_logits(model: &Reference, streams: &[Stream]) -> Result<Tensor> {
    let (mut tokens, mut positions) = (Vec::new(), Vec::new());
    let (mut segments, mut adapters, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for stream in streams {
        let start = tokens.len();
        tokens.extend_from_slice(&stream.tokens[..stream.cached]);
        positions.extend(0..stream.cached as u32);
        segments.push(Segment::sequence(start, stream.cached));
        if let Some((adapter, _)) = &stream.adapter {
            adapters.push(AdapterRows {
                rows: start..tokens.len(),
                adapter,
            });
        }
        last.push(tokens.len() as u32 - 1);
    }
    let hidden = model.hidden(&Batch {
        tokens: &tokens,
        positions: &positions,
        adapters: &adapters,
        segments: segments.into(),
    })?;
    let outputs = Tensor::new(&last[..], &Device::Cpu)?;
    model.logits(&hidden.index_select(&outputs, 0)?)
}

pub(super) fn streams(model: &Model) -> Result<Vec<Stream>> {
    let spec = &model.spec;
    let element = Element::of(model.embedding.product_dtype())?;
    let staged = |adapter: Arc<LoraWeights>| -> Result<(Arc<LoraWeights>, Staged)> {
        let device = model.final_norm.device();
        let form = DeviceAdapter::new(&adapter.sites, device, element)?;
        Ok((adapter, Staged::new(form)))
    };
    let (a, b) = (
        staged(adapter(spec, 4, &[Projection::Q, Projection::V])?)?,
        staged(adapter(spec, 3, &Projection::ALL)?)?,
    );
    let stream = |(number, adapter): (u32, Option<(Arc<LoraWeights>, Staged)>)| Stream {
        tokens: (0..60)
            .map(|i| (i * 7 + number * 11) % VOCABULARY as u32)
            .collect(),
        cached: 0,
        // Five blocks each, not in order.
        blocks: (0..5).map(|i| (i * 5 + number) % BLOCKS as u32).collect(),
        adapter,
    };
    let adapters = [Some(a.clone()), None, Some(b), Some(a)];
    Ok((0..).zip(adapters).map(stream).collect())
}

/// Logits of four steps, prompts and decoding, on the device and by the reference.
fn compare(test: &UnderTest, name: &str, spec: &ModelSpec, dtype: DType) -> Result<()> {
    let model = random_floats(spec.clone(), dtype, &test.device)?;
    let tolerance = if dtype == DType::F32 { 1e-4 } else { 0.06 };
    compare_model(test, (name, model), Options::default(), tolerance)
}

/// As [`compare`], of a model.
pub(super) fn compare_model(
    test: &UnderTest,
    (name, model): (&str, Model),
    options: Options,
    tolerance: f32,
) -> Result<()> {
    let exact = tolerance < 0.01;
    let model = Arc::new(model);
    let twin = reference(&model)?;
    let mut executor = CudaExecutor::new(&*test.gpu, model.clone(), BLOCKS, options)?;
    let mut streams = streams(&model)?;
    let mut tokens = Vec::new();
    for step in 0..4 {
        let rows = lay_out(&mut streams, |s| match step {
            0 => 19,
            1 => {
                if s.cached % 2 == 1 {
                    12
                } else {
                    5
                }
            }
            _ => 1,
        });
        let expected = expected_logits(&twin, &streams)?;
        let mut logits = vec![f32::NAN; rows.outputs.len() * VOCABULARY];
        let greedy = DrawRequest {
            uniform: 0.0,
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            top_k: 0,
        };
        // In the last step, the device draws for two of the streams.
        let draws = [step == 3, false, step == 3, false].map(|draw| draw.then_some(greedy));
        let mut outputs = Outputs {
            draws: &draws,
            logits: &mut logits,
            tokens: &mut tokens,
        };
        executor.forward(&step_of(&rows), &mut outputs)?;
        for (i, draw) in draws.iter().enumerate() {
            let expected = expected.get(i)?;
            let what = format!("{name}, step {step}, stream {i}");
            match draw {
                None => {
                    let got = Tensor::new(&logits[i * VOCABULARY..][..VOCABULARY], &Device::Cpu)?;
                    test.same(&what, &got, &expected, tolerance)?;
                    assert_eq!(tokens[i], None);
                }
                Some(_) if exact => {
                    let best = expected.argmax(0)?.to_scalar::<u32>()?;
                    assert_eq!(tokens[i], Some(best), "{what} on {}", test.name);
                }
                Some(_) => assert!(tokens[i].is_some()),
            }
        }
    }
    Ok(())
}

pub(super) fn step_of(rows: &Rows) -> Step<'_> {
    Step {
        tokens: &rows.tokens,
        positions: &rows.positions,
        sequences: &rows.sequences,
        adapters: &rows.adapters,
        outputs: &rows.outputs,
    }
}

#[test]
fn steps_agree_with_the_shared_decoder_for_every_family() -> Result<()> {
    for test in devices() {
        for (name, spec) in families() {
            compare(&test, name, &spec, DType::F32)?;
        }
        let (name, spec) = families().remove(2);
        compare(&test, name, &spec, DType::BF16)?;
        compare(&test, name, &spec, DType::F16)?;
    }
    Ok(())
}

#[test]
fn steps_that_do_not_fit_are_errors() -> Result<()> {
    let Some(test) = devices().into_iter().next() else {
        return Ok(());
    };
    let spec = spec(Variant::default());
    let model = Arc::new(random_floats(spec.clone(), DType::F32, &test.device)?);
    let mut executor = CudaExecutor::new(&*test.gpu, model.clone(), BLOCKS, Options::default())?;
    let mut refused = |change: &dyn Fn(&mut Rows), wanted: &str| -> Result<()> {
        let mut rows = lay_out(&mut streams(&model)?, |_| 3);
        change(&mut rows);
        let mut logits = vec![0.0; rows.outputs.len() * VOCABULARY];
        let (draws, mut tokens) = (vec![None; rows.outputs.len()], Vec::new());
        let mut outputs = Outputs {
            draws: &draws,
            logits: &mut logits,
            tokens: &mut tokens,
        };
        let error = executor.forward(&step_of(&rows), &mut outputs).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        Ok(())
    };
    refused(&|r| r.tokens[1] = 61, "vocabulary of 61")?;
    refused(&|r| r.outputs[0] = 12, "cannot give the logits")?;
    refused(&|r| r.positions.truncate(2), "positions")?;
    refused(
        &|r| r.sequences = r.sequences[..3].into(),
        "belong to no sequence",
    )?;
    refused(&|r| r.adapters[0].rows.end = 99, "beyond the 12")?;
    let moved = |r: &mut Rows| {
        let mut all = r.sequences.to_vec();
        all[0].blocks = Arc::from([BLOCKS as u32]);
        r.sequences = all.into();
    };
    refused(&moved, "does not fit")?;
    let narrow = ModelSpec {
        head_dim: 20,
        ..spec.clone()
    };
    let model = Arc::new(random_floats(narrow, DType::F32, &test.device)?);
    let error = CudaExecutor::new(&*test.gpu, model, BLOCKS, Options::default())
        .err()
        .map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("no attention kernel for heads of 20")));
    Ok(())
}
