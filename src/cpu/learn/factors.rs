//! Adapters as flat factors, with their gradients and tangents.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::product::View;
use super::rows::fit;
use super::small::{self, Grid, Sum};
use realign_model::time_slices::TimeSlices;
use realign_model::{Dropout, LoraPair, LoraSite, LoraWeights, SiteGradients};

/// The factor of each element of some rows of `columns`: 0 or 1 / (1 − share).
fn kept(dropout: Dropout, site: LoraSite, rows: usize, columns: usize) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mix = (site.layer as u64) << 8 | site.projection as u64;
    let seed = dropout.seed ^ mix.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let kept = 1.0 / (1.0 - dropout.share);
    let mut one = || {
        if rng.random::<f32>() < dropout.share {
            0.0
        } else {
            kept
        }
    };
    (0..rows * columns).map(|_| one()).collect()
}

/// One site's factors: y += scale · B (A x).
#[derive(Clone, Debug)]
pub(crate) struct Factor {
    /// Where it sits.
    pub(crate) site: LoraSite,
    /// What training leaves out of x.
    pub(crate) dropout: Dropout,
    /// (rank, in).
    pub(crate) a: Vec<f32>,
    /// (out, rank).
    pub(crate) b: Vec<f32>,
    /// Rows of A.
    pub(crate) rank: usize,
    /// Columns of A.
    pub(crate) inner: usize,
    /// Rows of B.
    pub(crate) out: usize,
    /// alpha / rank.
    pub(crate) scale: f32,
    /// Whether B is zero: then nothing is added, whatever A is.
    pub(crate) silent: bool,
    /// Whom its products yield to.
    pub(crate) slices: Arc<TimeSlices>,
}

impl Factor {
    fn new(
        site: LoraSite,
        pair: &LoraPair,
        dropout: Dropout,
        slices: &Arc<TimeSlices>,
    ) -> Result<Self> {
        let ((rank, inner), (out, _)) = (pair.a.dims2()?, pair.b.dims2()?);
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let (a, b) = (flat(&pair.a)?, flat(&pair.b)?);
        let silent = b.iter().all(|v| *v == 0.0);
        Ok(Self {
            site,
            dropout,
            a,
            b,
            rank,
            inner,
            out,
            scale: pair.scale as f32,
            silent,
            slices: slices.clone(),
        })
    }

    fn a(&self) -> Grid<'_> {
        Grid::rows(&self.a, self.inner)
    }

    fn b(&self) -> Grid<'_> {
        Grid::rows(&self.b, self.rank)
    }

    /// c ← [c +] factor · a b, split over the learning threads.
    fn multiply(&self, dims: (usize, usize, usize), a: Grid, b: Grid, c: Sum) {
        self.slices.yield_to_serving();
        small::multiply(dims, a, b, c, true);
    }

    /// shrunk ← x Aᵀ, then y[columns from `column` on] += scale · shrunk Bᵀ.
    pub(crate) fn apply(&self, rows: usize, x: &[f32], shrunk: &mut Vec<f32>, y: Columns) {
        let shrunk = fit(shrunk, rows * self.rank);
        match self.mask(rows) {
            Some(mut thinned) => {
                thinned.iter_mut().zip(x).for_each(|(m, x)| *m *= x);
                self.shrink(rows, &thinned, shrunk);
            }
            None => self.shrink(rows, x, shrunk),
        }
        if !self.silent {
            self.expand(rows, shrunk, &self.b, y);
        }
    }

    fn mask(&self, rows: usize) -> Option<Vec<f32>> {
        let some = self.dropout.share > 0.0;
        some.then(|| kept(self.dropout, self.site, rows, self.inner))
    }

    fn shrink(&self, rows: usize, x: &[f32], shrunk: &mut [f32]) {
        let into = Sum {
            data: shrunk,
            at: 0,
            stride: self.rank,
            add: false,
            factor: 1.0,
        };
        self.multiply(
            (rows, self.rank, self.inner),
            Grid::rows(x, self.inner),
            self.a().transposed(),
            into,
        );
    }

    fn expand(&self, rows: usize, shrunk: &[f32], b: &[f32], y: Columns) {
        let into = Sum {
            data: y.data,
            at: y.column,
            stride: y.stride,
            add: true,
            factor: self.scale,
        };
        let b = Grid::rows(b, self.rank).transposed();
        self.multiply(
            (rows, self.out, self.rank),
            Grid::rows(shrunk, self.rank),
            b,
            into,
        );
    }

    /// Gradients of A and B for an upstream gradient `g` of y; d_x, if wanted, gets what flows to x.
    pub(crate) fn pull(
        &self,
        rows: usize,
        (x, shrunk): (&[f32], &[f32]),
        g: View,
        d_x: Option<&mut [f32]>,
    ) -> (Vec<f32>, Vec<f32>) {
        let upstream = Grid {
            data: g.data,
            at: g.column,
            row: g.stride,
            column: 1,
        };
        let mut d_b = vec![0f32; self.out * self.rank];
        let into = Sum {
            data: &mut d_b,
            at: 0,
            stride: self.rank,
            add: false,
            factor: self.scale,
        };
        let shrunk = Grid::rows(shrunk, self.rank);
        self.multiply(
            (self.out, self.rank, rows),
            upstream.transposed(),
            shrunk,
            into,
        );
        let mut d_a = vec![0f32; self.rank * self.inner];
        if self.silent {
            return (d_a, d_b);
        }
        let mut d_shrunk = vec![0f32; rows * self.rank];
        let into = Sum {
            data: &mut d_shrunk,
            at: 0,
            stride: self.rank,
            add: false,
            factor: self.scale,
        };
        self.multiply((rows, self.rank, self.out), upstream, self.b(), into);
        let d_shrunk = Grid::rows(&d_shrunk, self.rank);
        let into = Sum {
            data: &mut d_a,
            at: 0,
            stride: self.inner,
            add: false,
            factor: 1.0,
        };
        let mask = self.mask(rows);
        let thinned: Option<Vec<f32>> = mask
            .as_ref()
            .map(|mask| mask.iter().zip(x).map(|(m, x)| m * x).collect());
        let seen = Grid::rows(thinned.as_deref().unwrap_or(x), self.inner);
        let dims = (self.rank, self.inner, rows);
        self.multiply(dims, d_shrunk.transposed(), seen, into);
        if let Some(d_x) = d_x {
            self.pull_input(rows, d_shrunk, mask, d_x);
        }
        (d_a, d_b)
    }

    /// d_x += what flows to x through A.
    fn pull_input(&self, rows: usize, d_shrunk: Grid, mask: Option<Vec<f32>>, d_x: &mut [f32]) {
        let dims = (rows, self.inner, self.rank);
        let into = |data, add| Sum {
            data,
            at: 0,
            stride: self.inner,
            add,
            factor: 1.0,
        };
        let Some(mask) = mask else {
            return self.multiply(dims, d_shrunk, self.a(), into(d_x, true));
        };
        let mut through = vec![0f32; d_x.len()];
        self.multiply(dims, d_shrunk, self.a(), into(&mut through, false));
        for ((d, t), m) in d_x.iter_mut().zip(&through).zip(&mask) {
            *d += m * t;
        }
    }

    /// t_y += the tangent of scale · B (A x) along (t_a, t_b) and the tangent `t_x` of x.
    pub(crate) fn push(
        &self,
        rows: usize,
        (x, shrunk): (&[f32], &[f32]),
        t_x: &[f32],
        along: &Factor,
        t_y: Columns,
    ) {
        let Columns {
            data,
            stride,
            column,
        } = t_y;
        self.expand(
            rows,
            shrunk,
            &along.b,
            Columns {
                data,
                stride,
                column,
            },
        );
        if !self.silent {
            let mut moved = vec![0f32; rows * self.rank];
            self.shrink(rows, t_x, &mut moved);
            let into = Sum {
                data: &mut moved,
                at: 0,
                stride: self.rank,
                add: true,
                factor: 1.0,
            };
            self.multiply(
                (rows, self.rank, self.inner),
                Grid::rows(x, self.inner),
                along.a().transposed(),
                into,
            );
            self.expand(
                rows,
                &moved,
                &self.b,
                Columns {
                    data,
                    stride,
                    column,
                },
            );
        }
    }
}

/// Some columns of a matrix that something is added to.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    /// The whole matrix.
    pub(crate) data: &'a mut [f32],
    /// Its columns.
    pub(crate) stride: usize,
    /// First column.
    pub(crate) column: usize,
}

/// All of an adapter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Factors(BTreeMap<LoraSite, Factor>);

impl Factors {
    /// Copies an adapter's tensors; training leaves out some of what the factors read.
    ///
    /// # Errors
    /// If a factor is not an f32 matrix.
    pub(super) fn new(
        adapter: Option<&LoraWeights>,
        dropout: Dropout,
        slices: &Arc<TimeSlices>,
    ) -> Result<Self> {
        let sites = adapter.into_iter().flat_map(|a| &a.sites);
        let flat = |(site, pair): (&LoraSite, &LoraPair)| {
            Ok((*site, Factor::new(*site, pair, dropout, slices)?))
        };
        Ok(Self(sites.map(flat).collect::<Result<_>>()?))
    }

    /// The factor at a site, if it is adapted.
    pub(crate) fn get(&self, site: LoraSite) -> Option<&Factor> {
        self.0.get(&site)
    }

    /// The lowest layer that is adapted.
    pub(crate) fn lowest_layer(&self) -> Option<usize> {
        self.0.keys().map(|site| site.layer).min()
    }

    /// Gradients that were gathered as flat values, as tensors; zero where none was.
    pub(crate) fn gradients(
        &self,
        mut flat: BTreeMap<LoraSite, (Vec<f32>, Vec<f32>)>,
    ) -> Result<SiteGradients> {
        let tensors = |(site, factor): (&LoraSite, &Factor)| {
            let zero = || (vec![0.0; factor.a.len()], vec![0.0; factor.b.len()]);
            let (a, b) = flat.remove(site).unwrap_or_else(zero);
            let a = Tensor::from_vec(a, (factor.rank, factor.inner), &Device::Cpu)?;
            let b = Tensor::from_vec(b, (factor.out, factor.rank), &Device::Cpu)?;
            Ok((*site, (a, b)))
        };
        self.0.iter().map(tensors).collect()
    }
}
