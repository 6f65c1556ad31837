//! A mixture of experts in place of an MLP: a router chooses some experts for each row, and what
//! they give is summed with the router's weights (arXiv 1701.06538).

use candle_core::Result;

/// The experts of one layer, the matrices in the form `W`. All of them are frozen, and no adapter
/// attaches to them.
#[derive(Clone, Debug)]
pub struct Experts<W> {
    /// The router, (experts, hidden): the softmax over its product with a row is the experts'
    /// weights. Never quantised: a choice cannot be a little off.
    pub router: W,
    /// Gate and up, (inner, hidden), and down, (hidden, inner), of each expert.
    pub experts: Vec<[W; 3]>,
    /// Experts that a row goes through.
    pub used: usize,
    /// Whether the weights of those are scaled to sum to 1.
    pub normalised: bool,
}

impl<W> Experts<W> {
    /// All matrices, the router first.
    pub fn weights(&self) -> impl Iterator<Item = &W> {
        std::iter::once(&self.router).chain(self.experts.iter().flatten())
    }

    /// The same experts with their weights in another form.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map<V>(self, mut f: impl FnMut(W) -> Result<V>) -> Result<Experts<V>> {
        let router = f(self.router)?;
        let mut one = |[gate, up, down]: [W; 3]| Ok([f(gate)?, f(up)?, f(down)?]);
        let experts = self.experts.into_iter().map(&mut one);
        Ok(Experts {
            router,
            experts: experts.collect::<Result<_>>()?,
            used: self.used,
            normalised: self.normalised,
        })
    }
}
