//! Learning on the CPU: forward passes that keep what gradients need, their backward, and
//! tangents, on flat buffers and straight from the packed weights that serve.
//!
//! Nothing is copied or unpacked for longer than one product needs it, so training beside serving
//! costs activations and no second model. With [`Precision::Mixed`](realign_model::Precision::Mixed), where the processor has the
//! instructions, values and tangents run in 16-bit fixed point, which is as good as f32 to five
//! digits, and gradients in bfloat16: they are means over many tokens. Candle's automatic
//! differentiation stays the slow twin.

mod attention;
mod backward;
mod experts;
mod factors;
mod forward;
mod head;
#[cfg(target_arch = "x86_64")]
mod limbs;
mod pass;
mod product;
mod rows;
mod small;
mod tangent;
mod tile;
mod unpack;

pub use pass::Differentiator;
