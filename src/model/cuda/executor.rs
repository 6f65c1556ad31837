//! Steps of the engine on the device: one upload of tables, the launches of all layers, and back
//! come the drawn tokens, or logits where the host has to look at them.

use std::sync::Arc;

use candle_core::{Result, bail};

use super::adapters::{DeviceAdapter, StepAdapters};
use super::gpu::{Buffer, Element, Gpu, Product};
use super::launches::{self, Embed, Heads};
use super::machine::{Machine, StepTables};
use super::registers::{Places, Registers};
use super::tables::{self, Tile, Upload};
use super::weights::Weights;
use crate::model::compute::{Ropes, run_layers};
use crate::model::cpu::{BLOCK_TOKENS, Step};
use crate::model::decoder::Model;
use crate::model::draw::DrawRequest;
use crate::model::lora::LoraWeights;
use crate::model::spec::{ModelSpec, RopeSpec};

/// What a step gives for each of its outputs.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// How each output's token is to be drawn; `None` asks for its logits instead.
    pub draws: &'a [Option<DrawRequest>],
    /// (outputs, vocabulary); only the rows that were asked for are written.
    pub logits: &'a mut [f32],
    /// The drawn tokens, `None` where logits were asked for.
    pub tokens: &'a mut Vec<Option<u32>>,
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
    adapters: StepAdapters,
    registers: Registers,
    upload: Upload,
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
    pub fn new(gpu: G, model: Arc<Model>, blocks: usize) -> Result<Self> {
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
        Ok(Self {
            frequencies: [
                Some(frequencies(&spec.rope)?),
                local.map(frequencies).transpose()?,
            ],
            adapters: StepAdapters::default(),
            registers: Registers::default(),
            upload: Upload::default(),
            gpu,
            weights,
            blocks,
            cache,
            model,
        })
    }

    /// Logits per output.
    pub fn vocab_size(&self) -> usize {
        self.model.spec.vocab_size
    }

    /// Runs a step: writes its keys and values, and what `outputs` asks for.
    ///
    /// # Errors
    /// If the step does not fit the cache or the model, or the device fails.
    pub fn forward(&mut self, step: &Step, outputs: &mut Outputs) -> Result<()> {
        self.check(step, outputs)?;
        let result = self.run(step, outputs);
        // Buffers may grow and adapters go between steps: nothing may run then, not even after an
        // error. The first error is the telling one.
        let finished = self.gpu.finish();
        result.and(finished)
    }

    fn run(&mut self, step: &Step, outputs: &mut Outputs) -> Result<()> {
        let (model, rows) = (self.model.clone(), step.tokens.len());
        let (device, element) = (&model.device, self.weights.element);
        let on_device =
            |a: &LoraWeights| -> Result<Arc<DeviceAdapter>> { a.on_device(device, element) };
        self.adapters.set(
            &self.gpu,
            (step.adapters, rows, model.layers.len()),
            on_device,
        )?;
        let group = model.spec.heads / model.spec.kv_heads;
        let most = tables::block_shape(model.spec.head_dim, group).map_or(1, |shape| shape.1);
        let (tiles, blocks) = tables::tiles(step.sequences, most);
        let order = order(outputs.draws, step.outputs);
        let wanted: Vec<DrawRequest> = outputs.draws.iter().flatten().copied().collect();
        let [
            tokens,
            positions,
            slots,
            owners,
            tile_list,
            block_list,
            out_rows,
            draws,
        ] = self.upload(step, (&tiles, &blocks), (&order.rows, &wanted))?;
        let at = self.places(rows, &tiles)?;
        self.begin(&at, rows, tokens, positions)?;
        let tables = StepTables {
            slots,
            owners,
            tiles: tile_list,
            blocks: block_list,
        };
        let mut machine = self.machine(rows, at, (&tiles, tables));
        run_layers(
            &mut machine,
            &model,
            &Ropes::new(&model.spec, &[]),
            0..model.layers.len(),
        )?;
        if !step.outputs.is_empty() {
            machine.norm(&model.final_norm, out_rows, step.outputs.len())?;
        }
        self.finish_outputs(&order, (at.h, draws, wanted.len()), outputs)
    }

    /// Copies a step's tables to the device: tokens, positions, slots, owners, tiles, blocks, the
    /// outputs' rows and their draws.
    fn upload(
        &mut self,
        step: &Step,
        (tiles, blocks): (&[Tile], &[u32]),
        (rows, draws): (&[u32], &[DrawRequest]),
    ) -> Result<[u64; 8]> {
        let upload = &mut self.upload;
        upload.bytes.clear();
        let offsets = [
            upload.numbers(step.tokens),
            upload.numbers(step.positions),
            upload.numbers(&tables::slots(step.sequences, step.tokens.len())),
            upload.signed(&self.adapters.owners),
            upload.tiles(tiles),
            upload.numbers(blocks),
            upload.numbers(rows),
            upload.draws(draws),
        ];
        let tables = &mut self.registers.tables;
        let base = tables.at_least(&self.gpu, upload.bytes.len())?;
        self.gpu.write(base, &upload.bytes)?;
        Ok(offsets.map(|at| base + at))
    }

    fn machine<'a>(
        &'a self,
        rows: usize,
        at: Places,
        (tiles, tables): (&'a [Tile], StepTables),
    ) -> Machine<'a, G> {
        Machine {
            gpu: &self.gpu,
            model: &self.model,
            weights: &self.weights,
            rows,
            at,
            cache: &self.cache,
            adapters: &self.adapters,
            tiles,
            tables,
            pending: None,
        }
    }

    /// Makes room for a step of `rows` rows.
    fn places(&mut self, rows: usize, tiles: &[Tile]) -> Result<Places> {
        let spec = &self.model.spec;
        let shape = Heads {
            queries: spec.heads,
            kv: spec.kv_heads,
            dim: spec.head_dim,
        };
        let (blocks, _) = tables::attention_blocks(tiles.len(), shape);
        let splits = tables::most_splits(tiles, blocks, self.gpu.blocks_to_fill());
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
                .at_least(gpu, floats(3 * self.adapters.places.max(1)))?,
            angles: [[angles[0], angles[1]], [angles[2], angles[3]]],
        })
    }

    /// Embeds the tokens and makes the rotations of their positions.
    fn begin(&self, at: &Places, rows: usize, tokens: u64, positions: u64) -> Result<()> {
        let spec = &self.model.spec;
        self.gpu.launch(&launches::embed(
            self.weights.element,
            &Embed {
                tokens,
                table: self.weights.table(&self.model.embedding)?,
                scale: spec.variant.embedding_scale.unwrap_or(1.0) as f32,
                rows,
                width: spec.hidden_size,
                x: at.x,
            },
        ))?;
        for (frequencies, angles) in self.frequencies.iter().zip(at.angles) {
            if let Some(frequencies) = frequencies {
                let from = [positions, frequencies.address];
                self.gpu
                    .launch(&launches::rope_table(rows, spec.head_dim / 2, from, angles))?;
            }
        }
        Ok(())
    }

    /// Logits of the rows in h, then draws, then what goes to the host.
    fn finish_outputs(
        &mut self,
        order: &Order,
        (h, draws, drawn): (u64, u64, usize),
        outputs: &mut Outputs,
    ) -> Result<()> {
        let (count, vocab) = (order.rows.len(), self.vocab_size());
        outputs.tokens.clear();
        outputs.tokens.resize(count, None);
        if count == 0 {
            return Ok(());
        }
        let bytes = count * vocab * size_of::<f32>();
        let logits = self.registers.logits.at_least(&self.gpu, bytes)?;
        let product = Product {
            element: self.weights.element,
            weight: self.weights.table(&self.model.head)?,
            x: h,
            y: logits,
            rows: count,
            inner: self.model.spec.hidden_size,
            out: vocab,
            stride: vocab,
        };
        if count <= launches::FEW_ROWS && product.inner.is_multiple_of(8) {
            self.gpu.launch(&launches::few_rows(&product))?;
        } else {
            self.gpu.product(&product)?;
        }
        if let Some(cap) = self.model.spec.variant.logit_cap {
            self.gpu
                .launch(&launches::soft_cap(logits, cap as f32, count * vocab))?;
        }
        if drawn > 0 {
            let bytes = drawn * size_of::<u32>();
            let tokens = self.registers.tokens.at_least(&self.gpu, bytes)?;
            self.gpu
                .launch(&launches::sample([drawn, vocab], [logits, draws, tokens]))?;
            let mut ids = vec![0u8; bytes];
            self.gpu.read(tokens, &mut ids)?;
            for (id, place) in ids.chunks_exact(4).zip(&order.places) {
                let id = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
                outputs.tokens[*place] = Some(id);
            }
        }
        for (row, place) in order.places.iter().enumerate().skip(drawn) {
            let from = logits + (row * vocab * size_of::<f32>()) as u64;
            let into = &mut outputs.logits[place * vocab..(place + 1) * vocab];
            // SAFETY: any bytes are f32 values, and the slice is as long.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(into.as_mut_ptr().cast::<u8>(), size_of_val(into))
            };
            self.gpu.read(from, bytes)?;
        }
        Ok(())
    }

    fn check(&self, step: &Step, outputs: &Outputs) -> Result<()> {
        let (rows, spec) = (step.tokens.len(), &self.model.spec);
        let room = step.outputs.len() * spec.vocab_size;
        if rows == 0 || step.positions.len() != rows {
            bail!(
                "a step of {rows} rows has {} positions",
                step.positions.len()
            );
        }
        if outputs.draws.len() != step.outputs.len() || outputs.logits.len() < room {
            bail!("a step's outputs and what is asked for them differ in number");
        }
        if let Some(id) = step
            .tokens
            .iter()
            .find(|id| **id as usize >= spec.vocab_size)
        {
            bail!("token {id} is not in a vocabulary of {}", spec.vocab_size);
        }
        if step.outputs.iter().any(|row| *row as usize >= rows) {
            bail!(
                "a step of {rows} rows cannot give the logits of {:?}",
                step.outputs
            );
        }
        if step.adapters.iter().any(|span| span.rows.end > rows) {
            bail!("an adapter lies on rows beyond the {rows} of its step");
        }
        let mut next = 0;
        for s in step.sequences {
            let holds = s.blocks.len() * BLOCK_TOKENS;
            let in_pool = s.blocks.iter().all(|b| (*b as usize) < self.blocks);
            let in_order = s.start == next && s.rows > 0;
            if !in_order || s.start + s.rows > rows || s.cached + s.rows > holds || !in_pool {
                bail!(
                    "sequence {s:?} does not fit {rows} rows and {} blocks",
                    self.blocks
                );
            }
            next = s.start + s.rows;
        }
        if next != rows {
            bail!(
                "{} of a step's {rows} rows belong to no sequence",
                rows - next
            );
        }
        Ok(())
    }
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
