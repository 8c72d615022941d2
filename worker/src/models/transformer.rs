//! One transformer layer, in the orders of norms and residuals that the architectures have.

use candle_core::Tensor;

use super::{
    attention::{Attention, Prepare, ScoreBias, Segment},
    layers::{FeedForward, Linear},
    matrix::Mode,
    ops::{Join, Norm},
    weights::ModelError,
};

/// Where norms and residuals stand.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// A norm after each residual, as BERT has it.
    Post {
        /// After the attention's.
        attention: Norm,
        /// After the feed-forward block's.
        feed: Norm,
    },
    /// A norm before each block; with `after` also behind each block, before its residual.
    Pre {
        /// Before the attention; none where what comes in is normalised already.
        attention: Option<Norm>,
        /// Before the feed-forward block.
        feed: Norm,
        /// Behind the attention and behind the feed-forward block.
        after: Option<[Norm; 2]>,
    },
    /// Both blocks read the same normalised state.
    Parallel(Norm),
}

/// A layer of self-attention and feed-forward block.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) order: Order,
    pub(super) attention: Attention,
    /// Queries, keys and values; their biases are in `prepare`.
    pub(super) qkv: [Linear; 3],
    pub(super) prepare: [Prepare; 3],
    pub(super) out: Linear,
    pub(super) feed: FeedForward,
}

/// Mixes prepared queries, keys and values.
pub(super) type Mix<'a> = &'a mut dyn FnMut(&Attention, [&Tensor; 3]) -> Result<Tensor, ModelError>;

/// Moves the biases of queries, keys and values to where they are added.
pub(super) fn prepare(qkv: &mut [Linear; 3]) -> [Prepare; 3] {
    qkv.each_mut().map(|linear| Prepare { bias: std::mem::take(&mut linear.bias), ..Prepare::default() })
}

impl Layer {
    /// Runs whole texts.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        segments: &[Segment],
        positions: &[usize],
        bias: Option<&dyn ScoreBias>,
    ) -> Result<Tensor, ModelError> {
        self.run(x, Mode::Batch, positions, &mut |attention, qkv| Ok(attention.run(qkv, segments, bias)?))
    }

    /// Runs rows at these positions, mixed by `mix`.
    pub(super) fn run(&self, x: &Tensor, mode: Mode, positions: &[usize], mix: Mix<'_>) -> Result<Tensor, ModelError> {
        let depth = self.attention.depth;
        let mut mixed = |x: &Tensor| -> Result<Tensor, ModelError> {
            let [q, k, v] = [0, 1, 2].map(|part| {
                let (linear, prepare) = (&self.qkv[part], self.prepare[part].at(depth, positions));
                linear.product(x, mode, |first, out| prepare.rows(first, out, linear.width()))
            });
            mix(&self.attention, [&q?, &k?, &v?])
        };
        match &self.order {
            Order::Post { attention, feed } => {
                let join = |after| Join { before: None, after: Some(after) };
                let x = self.out.joined(&mixed(x)?, mode, x, join(attention))?;
                self.feed.joined(&x, mode, &x, join(feed))
            }
            Order::Pre { attention, feed, after } => {
                let join = |part: usize| Join { before: after.as_ref().map(|after| &after[part]), after: None };
                let normed = attention.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.run(x))?;
                let x = self.out.joined(&mixed(&normed)?, mode, x, join(0))?;
                self.feed.joined(&feed.run(&x)?, mode, &x, join(1))
            }
            Order::Parallel(norm) => {
                let normed = norm.run(x)?;
                let x = self.out.joined(&mixed(&normed)?, mode, x, Join::default())?;
                self.feed.joined(&normed, mode, &x, Join::default())
            }
        }
    }
}
