//! Launches on matrices of integers.

use super::{Embed, ROW_THREADS, WARP_THREADS, WARPS, launch, per_row, stretches};
use crate::gpu::{Arg, Element, Integers, Launch, Product};
use crate::integer::Bits;

/// The instance of a kernel for a number of bits.
macro_rules! of_bits {
    ($bits:expr, $element:expr, $prefix:literal, $suffix:literal) => {
        match $bits {
            Bits::Four => instance!($element, $prefix, "4", $suffix),
            Bits::Five => instance!($element, $prefix, "5", $suffix),
            Bits::Six => instance!($element, $prefix, "6", $suffix),
            Bits::Eight => instance!($element, $prefix, "8", $suffix),
        }
    };
}

/// How rows of integers are stored, as all kernels want it after the address.
fn form(matrix: &Integers) -> [Arg; 4] {
    let layout = &matrix.layout;
    [
        Arg::int(matrix.row_bytes),
        Arg::int(layout.group.ilog2() as usize),
        Arg::int(usize::from(layout.minimum)),
        Arg::int(layout.zero.unsigned_abs() as usize),
    ]
}

/// [`Product`] of up to [`super::FEW_ROWS`] rows with a matrix of integers.
pub(super) fn few_rows(p: &Product, matrix: &Integers) -> Launch {
    let bits = matrix.layout.bits;
    let kernel = match p.rows {
        0..=1 => of_bits!(bits, p.element, "few_integer_", "_1"),
        2 => of_bits!(bits, p.element, "few_integer_", "_2"),
        3..=4 => of_bits!(bits, p.element, "few_integer_", "_4"),
        _ => of_bits!(bits, p.element, "few_integer_", "_8"),
    };
    let mut args = vec![Arg::address(matrix.at)];
    args.extend(form(matrix));
    args.extend([Arg::address(p.x), Arg::int(p.rows), Arg::int(p.inner)]);
    args.extend([Arg::int(p.out), Arg::int(p.stride), Arg::address(p.y)]);
    launch(kernel, [p.out.div_ceil(WARPS), 1, 1], WARP_THREADS, args)
}

/// y (rows, inner) ← the floats of a matrix of integers.
pub fn unpack(element: Element, m: &Integers, [rows, inner]: [usize; 2], y: u64) -> Launch {
    let kernel = of_bits!(m.layout.bits, element, "unpack_integer_", "");
    let mut args = vec![Arg::address(m.at)];
    args.extend(form(m));
    args.extend([Arg::int(inner), Arg::address(y)]);
    launch(kernel, [rows, stretches(inner / 8), 1], ROW_THREADS, args)
}

/// See [`Embed`].
pub(super) fn embed(e: &Embed, table: &Integers) -> Launch {
    let kernel = match table.layout.bits {
        Bits::Four => "embed_integer_4",
        Bits::Five => "embed_integer_5",
        Bits::Six => "embed_integer_6",
        Bits::Eight => "embed_integer_8",
    };
    let mut args = vec![Arg::address(e.tokens), Arg::address(table.at)];
    args.extend(form(table));
    args.extend([Arg::float(e.scale), Arg::int(e.width), Arg::address(e.x)]);
    per_row(kernel, e.rows, args)
}
