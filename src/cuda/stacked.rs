//! Maps that read one input, moved one behind the other, so that a device multiplies with all of
//! them at once.

use candle_core::{Result, Tensor};

use realign_model::Mlp;

use super::integer::IntegerWeight;
use super::{Linear, Model, Weight};

/// The same model with q, k and v, and gate and up, as rows of one tensor each. Layer by layer: the
/// copies take one layer's memory at a time besides the model's.
///
/// # Errors
/// If the device has no room for a layer's copies.
pub fn stacked(mut model: Model) -> Result<Model> {
    for layer in &mut model.layers {
        stack(&mut layer.attention[..3])?;
        if let Mlp::Dense(maps) = &mut layer.mlp {
            stack(&mut maps[..2])?;
        }
    }
    Ok(model)
}

/// Replaces dense weights of one width and type, or integers of one form, by rows of one tensor;
/// others stay.
fn stack(maps: &mut [Linear]) -> Result<()> {
    let integers = maps.iter().map(|map| match map.weight() {
        Weight::Integers(w) => Some(w.clone()),
        Weight::Floats(_) => None,
    });
    if let Some(parts) = integers.collect::<Option<Vec<_>>>() {
        let stacked = IntegerWeight::stacked(&parts)?;
        for (map, part) in maps.iter_mut().zip(stacked.into_iter().flatten()) {
            map.weight = Weight::Integers(part);
        }
        return Ok(());
    }
    let dense = |map: &Linear| match map.weight() {
        Weight::Floats(tensor) => Some(tensor.clone()),
        Weight::Integers(_) => None,
    };
    let parts: Option<Vec<Tensor>> = maps.iter().map(dense).collect();
    let Some(parts) = parts.filter(|p| p.iter().all(|t| t.dtype() == p[0].dtype())) else {
        return Ok(());
    };
    let whole = Tensor::cat(&parts, 0)?;
    let mut first = 0;
    for (map, part) in maps.iter_mut().zip(&parts) {
        let rows = part.dim(0)?;
        map.weight = Weight::Floats(whole.narrow(0, first, rows)?);
        first += rows;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use realign_model::Projection;

    #[test]
    fn stacked_maps_keep_their_values() -> Result<()> {
        let weight = |rows| Tensor::randn(0f32, 1.0, (rows, 5), &Device::Cpu);
        let values = [weight(3)?, weight(2)?];
        let projections = [Projection::Gate, Projection::Up];
        let linear =
            |(p, w): (Projection, &Tensor)| Linear::new(0, p, Weight::Floats(w.clone()), None);
        let mut maps: Vec<Linear> = projections.into_iter().zip(&values).map(linear).collect();
        stack(&mut maps)?;
        for (map, value) in maps.iter().zip(&values) {
            let Weight::Floats(moved) = map.weight() else {
                panic!("still dense");
            };
            assert!(moved.is_contiguous());
            assert_eq!(moved.to_vec2::<f32>()?, value.to_vec2::<f32>()?);
        }
        Ok(())
    }
}
