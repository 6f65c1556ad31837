//! Steps of the engine on the device: one upload of tables, the launches of all layers, and back
//! come the drawn tokens, or logits where the host has to look at them.

mod check;
mod hidden;
mod launch;

use std::sync::Arc;

use candle_core::Result;

use super::adapters::StepAdapters;
use super::gpu::{Buffer, Element, Gpu};
use super::graphs::{Counts, Graphs, Shape, StepTables};
use super::launches::FEW_ROWS;
use super::machine::heads_of;
use super::registers::{Places, Registers};
use super::tables::{self, Tile, Upload};
use super::weights::{Largest, Weights};
use crate::Model;
use crate::integer::STRIPE;
use realign_model::draw::DrawRequest;
use realign_model::spec::{ModelSpec, RopeSpec};
use realign_model::{BLOCK_TOKENS, Outputs, Step};

/// How an executor goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most shapes of steps that are recorded to run again with one call; 0 for none.
    pub(crate) graphs: usize,
    /// Elements of integers that are unpacked at a time for a large product.
    pub(crate) stripe: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            graphs: 32,
            stripe: STRIPE,
        }
    }
}

/// Runs forward passes of one model on a device. Owns the KV cache and all buffers.
pub struct CudaExecutor<G> {
    gpu: G,
    model: Arc<Model>,
    weights: Weights,
    blocks: usize,
    cache: Vec<[Buffer; 2]>,
    /// Of layers that see all, and of those with a window where theirs differ.
    frequencies: [Option<Buffer>; 2],
    /// Where integers are unpacked.
    scratch: Option<Buffer>,
    adapters: StepAdapters,
    registers: Registers,
    upload: Upload,
    graphs: Graphs,
}

/// Bytes of keys and values per block of a model's cache in an element type.
pub fn bytes_per_block(spec: &ModelSpec, element: Element) -> usize {
    2 * spec.layers * spec.kv_heads * spec.head_dim * BLOCK_TOKENS * element.bytes()
}

impl<G: Gpu> CudaExecutor<G> {
    /// An executor with a cache of `blocks` blocks of 16 tokens.
    ///
    /// # Errors
    /// If the kernels do not fit the model, or the cache the device.
    pub fn new(gpu: G, model: Arc<Model>, blocks: usize, options: Options) -> Result<Self> {
        supported(&model.spec)?;
        let weights = Weights::new(&model)?;
        let element = weights.element;
        let spec = &model.spec;
        let bytes = blocks * BLOCK_TOKENS * spec.kv_heads * spec.head_dim * element.bytes();
        let cache = (0..spec.layers)
            .map(|_| Ok([gpu.allocate(bytes)?, gpu.allocate(bytes)?]))
            .collect::<Result<_>>()?;
        let frequencies = |rope: &RopeSpec| -> Result<Buffer> {
            let values = rope.frequencies(spec.head_dim);
            let bytes: Vec<u8> = values.iter().flat_map(|f| f.to_le_bytes()).collect();
            let buffer = gpu.allocate(bytes.len())?;
            gpu.write(buffer.address, &bytes)?;
            Ok(buffer)
        };
        let local = spec.variant.local_rope.as_ref();
        let scratch = match weights.integers {
            None => None,
            Some(Largest { elements, columns }) => {
                // A row is the least that is unpacked.
                let elements = elements.min(options.stripe).max(columns);
                Some(gpu.allocate(elements * element.bytes())?)
            }
        };
        Ok(Self {
            frequencies: [
                Some(frequencies(&spec.rope)?),
                local.map(frequencies).transpose()?,
            ],
            scratch,
            adapters: StepAdapters::default(),
            registers: Registers::default(),
            upload: Upload::default(),
            graphs: Graphs::new(match recordable(spec) {
                true => options.graphs,
                false => 0,
            }),
            gpu,
            weights,
            blocks,
            cache,
            model,
        })
    }

    /// Logits per output.
    pub(crate) fn vocab_size(&self) -> usize {
        self.model.spec.vocab_size
    }

    /// How many steps were recorded, and how many ran so.
    pub(crate) fn graph_counts(&self) -> Counts {
        self.graphs.counts()
    }

    /// Runs a step: writes its keys and values, and what `outputs` asks for.
    ///
    /// # Errors
    /// If the step does not fit the cache or the model, or the device fails.
    pub(crate) fn forward(&mut self, step: &Step, outputs: &mut Outputs) -> Result<()> {
        self.check(step, outputs)?;
        let result = self.run(step, outputs);
        // Buffers may grow and adapters go between steps: nothing may run then, not even after an
        // error. The first error is the telling one.
        let finished = self.gpu.finish();
        result.and(finished)
    }

    fn run(&mut self, step: &Step, outputs: &mut Outputs) -> Result<()> {
        let order = order(outputs.draws, step.outputs);
        let wanted: Vec<DrawRequest> = outputs.draws.iter().flatten().copied().collect();
        let shape = self.prepare(step, (&order.rows, &wanted))?;
        self.compute(&shape)?;
        self.fetch(&order, &shape, outputs)
    }

    /// Everything that comes before the first launch: adapters, room, and the upload of the tables.
    fn prepare(
        &mut self,
        step: &Step,
        (out_rows, draws): (&[u32], &[DrawRequest]),
    ) -> Result<Shape> {
        let (model, rows) = (self.model.clone(), step.tokens.len());
        self.adapters
            .set(&self.gpu, (step.adapters, rows, model.layers.len()))?;
        let spec = &model.spec;
        let group = spec.heads / spec.kv_heads;
        let most = tables::block_shape(spec.head_dim, group).map_or(1, |shape| shape.1);
        let (tiles, blocks) = tables::tiles(step.sequences, most);
        let tables = self.upload(step, (&tiles, &blocks), (out_rows, draws))?;
        let (attention, _) = tables::attention_blocks(tiles.len(), heads_of(&model));
        let fill = self.gpu.blocks_to_fill();
        let split = |layer| tables::splits(&tiles, spec.attention(layer).window, attention, fill);
        let splits: Vec<(usize, usize)> = (0..spec.layers).map(split).collect();
        let most_splits = tables::most_splits(&tiles, attention, fill);
        Ok(Shape {
            rows,
            tiles: tiles.len(),
            at: self.places([rows, out_rows.len(), draws.len()], most_splits)?,
            splits,
            adapters: self.adapters.shape(),
            outputs: out_rows.len(),
            drawn: draws.len(),
            tables,
        })
    }

    /// Copies a step's tables to the device. Those whose length a step's shape says come first, so
    /// that they lie where they did in the last step of that shape.
    fn upload(
        &mut self,
        step: &Step,
        (tiles, blocks): (&[Tile], &[u32]),
        (rows, draws): (&[u32], &[DrawRequest]),
    ) -> Result<StepTables> {
        let upload = &mut self.upload;
        upload.bytes.clear();
        let offsets = [
            upload.numbers(step.tokens),
            upload.numbers(step.positions),
            upload.numbers(&tables::slots(step.sequences, step.tokens.len())),
            upload.signed(&self.adapters.owners),
            upload.tiles(tiles),
            upload.numbers(rows),
            upload.draws(draws),
            upload.numbers(blocks),
        ];
        let tables = &mut self.registers.tables;
        let base = tables.at_least(&self.gpu, upload.bytes.len())?;
        self.gpu.write(base, &upload.bytes)?;
        let [
            tokens,
            positions,
            slots,
            owners,
            tiles,
            out_rows,
            draws,
            blocks,
        ] = offsets.map(|at| base + at);
        Ok(StepTables {
            tokens,
            positions,
            slots,
            owners,
            tiles,
            out_rows,
            draws,
            blocks,
        })
    }

    /// Makes room for a step of so many rows, outputs and draws.
    fn places(&mut self, [rows, outputs, draws]: [usize; 3], splits: usize) -> Result<Places> {
        let spec = &self.model.spec;
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let (queries, half) = (spec.heads * spec.head_dim, spec.head_dim / 2);
        let heads = queries + 2 * spec.kv_heads * spec.head_dim;
        let r = &mut self.registers;
        let gpu = &self.gpu;
        let floats = |n: usize| rows * n * size_of::<f32>();
        let elements = |n: usize| rows * n * self.weights.element.bytes();
        let mut angles = [0; 4];
        for (at, register) in angles.iter_mut().zip(&mut r.angles) {
            *at = register.at_least(gpu, floats(half))?;
        }
        let logits = outputs * spec.vocab_size * size_of::<f32>();
        Ok(Places {
            x: r.x.at_least(gpu, floats(hidden))?,
            y: r.y.at_least(gpu, floats(hidden))?,
            h: r.h.at_least(gpu, elements(hidden))?,
            m: r.m.at_least(gpu, elements(queries.max(inner)))?,
            wide: r.wide.at_least(gpu, floats(heads.max(2 * inner)))?,
            partial: r
                .partial
                .at_least(gpu, floats(spec.heads * splits * (spec.head_dim + 2)))?,
            shrunk: r
                .shrunk
                .at_least(gpu, floats(3 * self.adapters.places().max(1)))?,
            angles: [[angles[0], angles[1]], [angles[2], angles[3]]],
            logits: match outputs {
                0 => 0,
                _ => r.logits.at_least(gpu, logits)?,
            },
            tokens: match draws {
                0 => 0,
                _ => r.tokens.at_least(gpu, draws * size_of::<u32>())?,
            },
        })
    }

    /// Brings the drawn tokens to the host, and the logits that it asked for.
    fn fetch(&self, order: &Order, shape: &Shape, outputs: &mut Outputs) -> Result<()> {
        let vocab = self.vocab_size();
        outputs.tokens.clear();
        outputs.tokens.resize(shape.outputs, None);
        if shape.drawn > 0 {
            let mut ids = vec![0u8; shape.drawn * size_of::<u32>()];
            self.gpu.read(shape.at.tokens, &mut ids)?;
            for (id, place) in ids.chunks_exact(4).zip(&order.places) {
                let id = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
                outputs.tokens[*place] = Some(id);
            }
        }
        for (row, place) in order.places.iter().enumerate().skip(shape.drawn) {
            let from = shape.at.logits + (row * vocab * size_of::<f32>()) as u64;
            let into = &mut outputs.logits[place * vocab..(place + 1) * vocab];
            self.gpu.read(from, bytes_of(into))?;
        }
        Ok(())
    }
}

/// Refuses what the kernels do not do.
///
/// # Errors
/// If a part of a head is rotated, as the kernels rotate whole heads, or if layers have experts.
pub(crate) fn supported(spec: &ModelSpec) -> Result<()> {
    let rotated = spec.rotary_width();
    if rotated != spec.head_dim {
        candle_core::bail!(
            "{} rotates {rotated} of the {} columns of a head, which the CUDA backend does not do: \
             serve it with --device cpu",
            spec.architecture,
            spec.head_dim
        );
    }
    if spec.variant.mixture.is_some() {
        candle_core::bail!(
            "{} has mixtures of experts, which the CUDA backend does not compute: serve it with \
             --device cpu",
            spec.architecture
        );
    }
    Ok(())
}

/// Whether every product of a step of few rows takes our own kernels, which read eight elements at a
/// time.
fn recordable(spec: &ModelSpec) -> bool {
    let widths = [
        spec.hidden_size,
        spec.heads * spec.head_dim,
        spec.intermediate_size,
    ];
    widths.iter().all(|width| width.is_multiple_of(8))
}

/// Whether a step is of those that are recorded.
fn is_small(shape: &Shape) -> bool {
    shape.rows <= FEW_ROWS && shape.outputs <= FEW_ROWS
}

/// The bytes of floats, to be read into.
fn bytes_of(floats: &mut [f32]) -> &mut [u8] {
    let bytes = size_of_val(floats);
    // SAFETY: any bytes are f32 values, and the slice is as long.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast::<u8>(), bytes) }
}

/// Outputs in the order in which the device computes them: those that it draws come first.
struct Order {
    /// Their rows in the step.
    rows: Vec<u32>,
    /// Their places among the outputs.
    places: Vec<usize>,
}

fn order(draws: &[Option<DrawRequest>], rows: &[u32]) -> Order {
    let mut places: Vec<usize> = (0..rows.len()).collect();
    places.sort_by_key(|place| draws[*place].is_none());
    Order {
        rows: places.iter().map(|place| rows[*place]).collect(),
        places,
    }
}
