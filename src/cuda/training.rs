//! Launches of what training differentiates, all in f32. Pure.

use super::gpu::{Arg, Launch};

const THREADS: u32 = 256;

fn launch(kernel: &'static str, grid: [usize; 3], args: Vec<Arg>) -> Launch {
    Launch {
        kernel,
        grid: grid.map(|n| n as u32),
        threads: THREADS,
        args,
    }
}

fn addresses<const N: usize>(at: [u64; N]) -> impl Iterator<Item = Arg> {
    at.into_iter().map(Arg::address)
}

/// y ← x / rms(x) · weight, rows of `width`.
pub(crate) fn norm_forward(
    [rows, width]: [usize; 2],
    eps: f32,
    [x, weight, y]: [u64; 3],
) -> Launch {
    let mut args: Vec<Arg> = addresses([x, weight]).collect();
    args.extend([Arg::float(eps), Arg::int(width), Arg::address(y)]);
    launch("norm_forward", [rows, 1, 1], args)
}

/// dx of [`norm_forward`] from the gradient g of y.
pub(crate) fn norm_backward(
    [rows, width]: [usize; 2],
    eps: f32,
    [x, weight, g, dx]: [u64; 4],
) -> Launch {
    let mut args: Vec<Arg> = addresses([x, weight, g]).collect();
    args.extend([Arg::float(eps), Arg::int(width), Arg::address(dx)]);
    launch("norm_backward", [rows, 1, 1], args)
}

/// y ← x rotated by its rows' angles, or back for a `direction` of −1.
pub(crate) fn rotate(
    [rows, width, half]: [usize; 3],
    direction: f32,
    [x, cosines, sines, y]: [u64; 4],
) -> Launch {
    let mut args: Vec<Arg> = addresses([x, cosines, sines]).collect();
    args.extend([Arg::float(direction), Arg::int(half), Arg::int(width)]);
    args.push(Arg::address(y));
    let stretches = (width / 2).div_ceil(THREADS as usize);
    launch("rotate", [rows, stretches, 1], args)
}

/// y ← activation(gate) · up, `count` elements.
pub(crate) fn gate_forward(gelu: bool, count: usize, [gate, up, y]: [u64; 3]) -> Launch {
    let mut args: Vec<Arg> = addresses([gate, up]).collect();
    args.extend([Arg::int(usize::from(gelu)), Arg::count(count)]);
    args.push(Arg::address(y));
    let blocks = count.div_ceil(THREADS as usize);
    launch("gate_forward", [blocks, 1, 1], args)
}

/// Both gradients of [`gate_forward`] from the gradient g of y.
pub(crate) fn gate_backward(
    gelu: bool,
    count: usize,
    [gate, up, g, d_gate, d_up]: [u64; 5],
) -> Launch {
    let mut args: Vec<Arg> = addresses([gate, up, g]).collect();
    args.extend([Arg::int(usize::from(gelu)), Arg::count(count)]);
    args.extend(addresses([d_gate, d_up]));
    let blocks = count.div_ceil(THREADS as usize);
    launch("gate_backward", [blocks, 1, 1], args)
}

/// out (rows) ← log p(targets); sums (rows) ← log Σ exp.
pub(crate) fn logprob_forward(
    [rows, vocab]: [usize; 2],
    [logits, targets, out, sums]: [u64; 4],
) -> Launch {
    let mut args: Vec<Arg> = addresses([logits, targets]).collect();
    args.push(Arg::int(vocab));
    args.extend(addresses([out, sums]));
    launch("logprob_forward", [rows, 1, 1], args)
}

/// d (rows, vocab) ← the gradient in the logits, from the gradient g (rows).
pub(crate) fn logprob_backward(
    [rows, vocab]: [usize; 2],
    [logits, targets, sums, g, d]: [u64; 5],
) -> Launch {
    let mut args: Vec<Arg> = addresses([logits, targets, sums, g]).collect();
    args.extend([Arg::int(vocab), Arg::address(d)]);
    launch("logprob_backward", [rows, 1, 1], args)
}

/// out (rows) ← KL(q ‖ p); sums (rows, 2) ← log Σ exp of p and of q.
pub(crate) fn kl_forward([rows, vocab]: [usize; 2], [p, q, out, sums]: [u64; 4]) -> Launch {
    let mut args: Vec<Arg> = addresses([p, q]).collect();
    args.push(Arg::int(vocab));
    args.extend(addresses([out, sums]));
    launch("kl_forward", [rows, 1, 1], args)
}

/// d (rows, vocab) ← the gradient in p's logits, from the gradient g (rows).
pub(crate) fn kl_backward([rows, vocab]: [usize; 2], [p, q, sums, g, d]: [u64; 5]) -> Launch {
    let mut args: Vec<Arg> = addresses([p, q, sums, g]).collect();
    args.extend([Arg::int(vocab), Arg::address(d)]);
    launch("kl_backward", [rows, 1, 1], args)
}
