//! One panel of weights times up to sixteen rows of activations, in three forms.
//!
//! All forms share a contract: a row's result is the same whatever other rows are computed with
//! it. Chunked prefill, batching and recomputation therefore change no bit of a sequence's logits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bits;
mod brain;
mod dense;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use super::activations::{ActivationUnit, Activations, ROW_SLACK, Wanted, pairs_of};
use super::packed::{Encoding, PANEL, PackedWeight};
use realign_model::Precision;
use realign_model::blocks::{Format, UNIT};

/// Results of a panel: up to sixteen activation rows by sixteen outputs.
pub(crate) type Tile = [[f32; PANEL]; ROW_SLACK];

/// An instruction set that kernels were written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust.
    Portable,
    /// 256-bit vectors: AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// These, with 8-bit dot products: AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// 512-bit vectors with 8-bit dot products: AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 128-bit vectors, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// These, and 8-bit dot products (ARMv8.2 and later).
    #[cfg(target_arch = "aarch64")]
    Dotprod,
}

impl Isa {
    /// Those of this architecture, the best one last.
    pub(crate) const ALL: &[Self] = &[
        Isa::Portable,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon,
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod,
    ];

    /// Those of this processor, the best one last.
    pub(crate) fn available() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_here())
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Portable => "plain Rust",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "AVX2 with VNNI",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "AVX-512 with VNNI",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => "NEON with dot products",
        }
    }

    /// The best one of this processor.
    pub(crate) fn detect() -> Self {
        Self::available().next_back().unwrap_or(Isa::Portable)
    }

    #[cfg(target_arch = "x86_64")]
    fn is_here(self) -> bool {
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2(),
            Isa::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            Isa::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_here(self) -> bool {
        match self {
            Isa::Portable => true,
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Isa::Dotprod => {
                std::arch::is_aarch64_feature_detected!("neon")
                    && std::arch::is_aarch64_feature_detected!("dotprod")
            }
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_here(self) -> bool {
        true
    }
}

/// The instructions that the kernels use on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionSet {
    /// Their names.
    pub name: &'static str,
    /// Whether there are kernels for them, rather than plain Rust.
    pub is_fast: bool,
}

/// What serving uses on this processor.
pub fn instruction_set() -> InstructionSet {
    match Isa::detect() {
        Isa::Portable => InstructionSet {
            name: "no vector instructions that there are kernels for",
            is_fast: false,
        },
        isa => InstructionSet {
            name: isa.name(),
            is_fast: true,
        },
    }
}

/// The forms of activations that weights in these encodings are multiplied with. In mixed precision
/// these are rounded to bfloat16 for weights in bfloat16, where the processor multiplies pairs of
/// those.
pub(crate) fn wanted(
    isa: Isa,
    encodings: impl Iterator<Item = Encoding>,
    precision: Precision,
) -> Wanted {
    let mut wanted = Wanted::default();
    let in_pairs = precision == Precision::Mixed && brain::is_fast(isa);
    for encoding in encodings {
        match encoding {
            Encoding::Integer(_) => wanted.integers = true,
            Encoding::Bf16 => wanted.pairs = in_pairs,
            Encoding::F32 | Encoding::F16 => {}
        }
    }
    wanted
}

/// Rows of 32-bit elements, some distance apart.
#[derive(Clone, Copy)]
struct Strided<T> {
    at: *const T,
    stride: usize,
}

impl<T> Strided<T> {
    /// The start of a row.
    #[inline(always)]
    fn row(self, index: usize) -> *const T {
        self.at.wrapping_add(index * self.stride)
    }
}

/// Pointers into [`Activations`] at a first row. Of integers and their units, sixteen rows from
/// there may be read; of floats and pairs, the rows that the matrix has.
#[derive(Clone, Copy)]
struct Rows {
    floats: Strided<f32>,
    pairs: Option<Strided<u32>>,
    rounded: *const i8,
    units: *const ActivationUnit,
    columns: usize,
}

impl Rows {
    fn new(x: &Activations, first: usize) -> Self {
        assert!(first <= x.rows && x.values.len() >= (x.rows + ROW_SLACK) * x.columns);
        assert!(x.rounded.len() >= (x.rows + ROW_SLACK) * x.columns);
        assert!(x.units.len() >= (x.rows + ROW_SLACK) * x.columns / UNIT);
        let floats = Strided {
            at: x.values.as_ptr().wrapping_add(first * x.columns),
            stride: x.columns,
        };
        let pairs = x.in_pairs.then(|| {
            let stride = pairs_of(x.columns);
            assert!(x.pairs.len() >= x.rows * stride);
            let at = x.pairs.as_ptr().wrapping_add(first * stride);
            Strided { at, stride }
        });
        Self {
            floats,
            pairs,
            rounded: x.rounded.as_ptr().wrapping_add(first * x.columns),
            units: x.units.as_ptr().wrapping_add(first * x.columns / UNIT),
            columns: x.columns,
        }
    }
}

/// Rows `first .. first + rows` of `x` (at most sixteen) times panel `panel` of `weight`. Rows of
/// the tile beyond `rows` hold nothing of meaning.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn panel(
    isa: Isa,
    weight: &PackedWeight,
    panel: usize,
    x: &Activations,
    first: usize,
    rows: usize,
    tile: &mut Tile,
) {
    assert!(rows <= ROW_SLACK && first + rows <= x.rows && x.columns == weight.columns);
    let bytes = weight.panel(panel);
    let view = Rows::new(x, first);
    match weight.encoding {
        Encoding::Integer(format) => {
            integer(isa, format, bytes, view, rows, tile);
            if weight.gain != 1.0 {
                for value in tile[..rows].as_flattened_mut() {
                    *value *= weight.gain;
                }
            }
        }
        Encoding::F32 | Encoding::Bf16 | Encoding::F16 => {
            let target = &mut tile[..rows];
            match view.pairs.filter(|_| weight.encoding == Encoding::Bf16) {
                Some(pairs) => brain::panel(isa, bytes, pairs, target),
                None => dense::panel::<false>(isa, weight, bytes, view, target),
            }
        }
    }
}

/// Adds rows `first ..` of `x` times panel `panel` of an unquantised weight to as many rows of a
/// tile, at most sixteen.
///
/// # Panics
/// If shapes do not fit, or the weight is quantised.
pub(crate) fn add_panel(
    isa: Isa,
    weight: &PackedWeight,
    panel: usize,
    x: &Activations,
    first: usize,
    tile: &mut [[f32; PANEL]],
) {
    let rows = tile.len();
    assert!(rows <= ROW_SLACK && first + rows <= x.rows && x.columns == weight.columns);
    assert!(!matches!(weight.encoding, Encoding::Integer(_)));
    dense::panel::<true>(isa, weight, weight.panel(panel), Rows::new(x, first), tile);
}

/// Starts to bring a panel into the caches.
pub(crate) fn prefetch(weight: &PackedWeight, panel: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in weight.panel(panel).chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch changes no memory and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(target_arch = "aarch64")]
    for line in weight.panel(panel).chunks(64) {
        // SAFETY: a prefetch changes no memory and faults nowhere.
        unsafe {
            std::arch::asm!(
                "prfm pldl1keep, [{0}]", in(reg) line.as_ptr(),
                options(nostack, preserves_flags, readonly)
            );
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (weight, panel);
}

fn integer(isa: Isa, format: Format, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    match isa {
        // SAFETY: `panel` checked the shapes, and every `Isa` comes from `detect` or, in tests, is
        // below it.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::integer(format, bytes, x, rows, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => unsafe { vnni::plain::integer(format, bytes, x, rows, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::integer(format, bytes, x, rows, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod => unsafe { neon::dotprod(format, bytes, x, rows, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => unsafe { neon::widening(format, bytes, x, rows, tile) },
        Isa::Portable => portable::integer(format, bytes, x, rows, tile),
    }
}

/// Calls a kernel that is generic over a format with the format's constants: bits, scales, whether there are
/// minima, whether there are factors. There are kernels for the formats of [`Format::of`] alone.
macro_rules! for_format {
    ($format:expr, $call:ident) => {
        match (
            $format.bits,
            $format.scales,
            $format.minimum,
            $format.factored,
        ) {
            (4, 1, false, _) => $call!(4, 1, false, false),
            (4, 1, true, false) => $call!(4, 1, true, false),
            (4, 1, true, true) => $call!(4, 1, true, true),
            (4, _, false, _) => $call!(4, 2, false, true),
            (4, _, true, _) => $call!(4, 2, true, true),
            (5, _, false, _) => $call!(5, 1, false, false),
            (5, _, true, false) => $call!(5, 1, true, false),
            (5, _, true, true) => $call!(5, 1, true, true),
            (6, _, _, _) => $call!(6, 2, false, true),
            // All that is left is Q8_0.
            (_, _, _, _) => $call!(8, 1, false, false),
        }
    };
}
pub(crate) use for_format;
