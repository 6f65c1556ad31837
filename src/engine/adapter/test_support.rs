//! Small adapters for tests.

use candle_core::{Device, Tensor};

use realign_model::lora::{LoraPair, LoraSite, LoraWeights, Projection};

/// Two layers of q and v, 6 in and 4 out, with values that depend on `scale` and the site.
pub fn small_weights(rank: usize, scale: f64) -> LoraWeights {
    let mut weights = LoraWeights::default();
    for layer in 0..2 {
        for projection in [Projection::Q, Projection::V] {
            let first = scale as f32 + layer as f32;
            let values =
                |n: usize| -> Vec<f32> { (0..n).map(|i| first + i as f32 * 0.5).collect() };
            let tensor = |shape: (usize, usize)| {
                Tensor::from_vec(values(shape.0 * shape.1), shape, &Device::Cpu)
                    .expect("a small CPU tensor")
            };
            let pair = LoraPair {
                a: tensor((rank, 6)),
                b: tensor((4, rank)),
                scale,
            };
            weights.sites.insert(LoraSite { layer, projection }, pair);
        }
    }
    weights
}
