//! Steps that run as they were recorded, against the same steps launched kernel by kernel: the same
//! bits have to come out, whatever changes between steps of one shape.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Result, bail};

use super::executor::{BLOCKS, Rows, Stream, VOCABULARY, families, lay_out, step_of, streams};
use super::{UnderTest, devices, random_floats};
use crate::gpu::{Buffer, Graph, Launch, Product};
use crate::graphs::Counts;
use crate::{CudaExecutor, Gpu, Options};
use realign_model::Outputs;
use realign_model::draw::DrawRequest;

const DRAWN: DrawRequest = DrawRequest {
    uniform: 0.4,
    temperature: 0.9,
    top_p: 0.95,
    min_p: 0.0,
    top_k: 0,
};

/// Logits and tokens of a step; what is not written stays 0.
fn run<G: Gpu>(
    executor: &mut CudaExecutor<G>,
    rows: &Rows,
    draws: &[Option<DrawRequest>],
) -> Result<(Vec<f32>, Vec<Option<u32>>)> {
    let (mut logits, mut tokens) = (vec![0.0; rows.outputs.len() * VOCABULARY], Vec::new());
    let mut outputs = Outputs {
        draws,
        logits: &mut logits,
        tokens: &mut tokens,
    };
    executor.forward(&step_of(rows), &mut outputs)?;
    Ok((logits, tokens))
}

fn options(graphs: usize) -> Options {
    Options {
        graphs,
        ..Options::default()
    }
}

/// What a step of the script takes: prompt rows or one row of so many streams, and whether the
/// device draws.
const SCRIPT: [(usize, usize, bool); 16] = [
    (4, 5, false),
    (4, 1, false),
    (4, 1, false),
    (4, 1, false),
    // The device draws: another shape.
    (4, 1, true),
    (4, 1, true),
    (4, 1, true),
    // A stream pauses, and another.
    (3, 1, true),
    (3, 1, true),
    (2, 1, false),
    (2, 1, false),
    (2, 1, false),
    // Back to what is recorded, over the border of a block.
    (4, 1, false),
    (4, 1, false),
    (4, 1, true),
    (3, 1, true),
];

fn check(test: &UnderTest, spec: &realign_model::ModelSpec) -> Result<Counts> {
    let model = Arc::new(random_floats(spec.clone(), DType::F32, &test.device)?);
    let mut plain = CudaExecutor::new(&*test.gpu, model.clone(), BLOCKS, options(0))?;
    let mut recorded = CudaExecutor::new(&*test.gpu, model.clone(), BLOCKS, options(32))?;
    let mut all = streams(&model)?;
    for (index, (count, take, draw)) in SCRIPT.into_iter().enumerate() {
        let rows = lay_out(&mut all[..count], |_| take);
        let of = |i: usize| DrawRequest {
            uniform: ((index * 7 + i) % 10) as f64 / 10.0,
            ..DRAWN
        };
        let draws: Vec<_> = (0..count).map(|i| draw.then(|| of(i))).collect();
        let expected = run(&mut plain, &rows, &draws)?;
        let got = run(&mut recorded, &rows, &draws)?;
        // Bit for bit, and so that a NaN would fail.
        assert!(got == expected, "step {index} on {}", test.name);
        assert_eq!(expected.1.iter().all(Option::is_some), draw);
    }
    assert_eq!(plain.graph_counts(), Counts::default());
    Ok(recorded.graph_counts())
}

#[test]
fn recorded_steps_give_what_launched_ones_give() -> Result<()> {
    for test in devices() {
        for (name, spec) in families() {
            let counts = check(&test, &spec)?;
            // Four shapes come again, each runs as it was recorded from its second step on. A model
            // whose products need cuBLAS records nothing.
            if name == "odd" {
                assert_eq!(counts, Counts::default());
                continue;
            }
            assert_eq!(counts.captured, 4, "{name} on {}: {counts:?}", test.name);
            assert_eq!(counts.replayed, 11, "{name} on {}: {counts:?}", test.name);
        }
    }
    Ok(())
}

#[test]
fn adapters_that_change_are_another_shape_or_another_table() -> Result<()> {
    let Some(test) = devices().into_iter().next() else {
        return Ok(());
    };
    let (_, spec) = families().remove(0);
    let model = Arc::new(random_floats(spec.clone(), DType::F32, &test.device)?);
    let mut plain = CudaExecutor::new(&*test.gpu, model.clone(), BLOCKS, options(0))?;
    let mut recorded = CudaExecutor::new(&*test.gpu, model.clone(), BLOCKS, options(32))?;
    let mut all = streams(&model)?;
    let others = streams(&model)?;
    for step in 0..9 {
        // A swap: other factors of the same ranks and sites, then none at all.
        if step == 4 {
            let swap = |(stream, other): (&mut Stream, &Stream)| {
                stream.adapter = other.adapter.clone();
            };
            all.iter_mut().zip(&others).for_each(swap);
        }
        if step == 7 {
            all.iter_mut().for_each(|stream| stream.adapter = None);
        }
        let rows = lay_out(&mut all, |_| 1);
        let draws = vec![None; 4];
        let expected = run(&mut plain, &rows, &draws)?;
        assert!(
            run(&mut recorded, &rows, &draws)? == expected,
            "step {step}"
        );
    }
    // The swap takes the same recording, as factors are found by the table.
    let counts = Counts {
        captured: 2,
        replayed: 7,
    };
    assert_eq!(recorded.graph_counts(), counts);
    Ok(())
}

/// A device that cannot record, or not run what it has recorded.
struct Unable<'a> {
    gpu: &'a (dyn Gpu + Sync),
    records: bool,
    asked: &'a AtomicBool,
}

impl Gpu for Unable<'_> {
    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        self.gpu.allocate(bytes)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.write(at, bytes)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.gpu.read(at, into)
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.gpu.clear(at, bytes)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.gpu.launch(launch)
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.gpu.product(product)
    }

    fn begin_capture(&self) -> Result<()> {
        self.gpu.begin_capture()
    }

    fn end_capture(&self) -> Result<Graph> {
        assert!(!self.asked.swap(true, Ordering::Relaxed), "asked once only");
        let graph = self.gpu.end_capture()?;
        match self.records {
            true => Ok(graph),
            false => bail!("this device cannot record"),
        }
    }

    fn replay(&self, _graph: &Graph) -> Result<()> {
        bail!("this device cannot run what was recorded")
    }

    fn finish(&self) -> Result<()> {
        self.gpu.finish()
    }

    fn blocks_to_fill(&self) -> usize {
        self.gpu.blocks_to_fill()
    }
}

#[test]
fn a_device_that_cannot_record_computes_the_same_and_is_asked_once() -> Result<()> {
    let Some(test) = devices().into_iter().next() else {
        return Ok(());
    };
    let (_, spec) = families().remove(0);
    let model = Arc::new(random_floats(spec.clone(), DType::F32, &test.device)?);
    for records in [false, true] {
        let asked = AtomicBool::new(false);
        let unable = Unable {
            gpu: &*test.gpu,
            records,
            asked: &asked,
        };
        let mut plain = CudaExecutor::new(&*test.gpu, model.clone(), BLOCKS, options(0))?;
        let mut executor = CudaExecutor::new(unable, model.clone(), BLOCKS, options(32))?;
        let mut all = streams(&model)?;
        for step in 0..5 {
            let rows = lay_out(&mut all, |_| 1);
            let draws = vec![None; 4];
            let expected = run(&mut plain, &rows, &draws)?;
            assert!(
                run(&mut executor, &rows, &draws)? == expected,
                "step {step}"
            );
        }
        assert!(asked.load(Ordering::Relaxed));
    }
    Ok(())
}
