//! One transformer layer, in the orders of norms and residuals that the architectures have.

use candle_core::Tensor;

use super::{
    attention::{Attention, Prepare, ScoreBias, Segment},
    layers::{FeedForward, Linear, Mode},
    ops::{self, Activation, Norm},
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
        let mut attend = |x: &Tensor| -> Result<Tensor, ModelError> {
            let [q, k, v] = self.qkv.each_ref().map(|linear| linear.product(x, mode));
            let [q, k, v] = [q?, k?, v?];
            let depth = self.attention.depth;
            let [q, k, v] = [(&q, 0), (&k, 1), (&v, 2)].map(|(x, part)| self.prepare[part].run(x, depth, positions));
            self.out.product(&mix(&self.attention, [&q?, &k?, &v?])?, mode)
        };
        let (out_bias, down_bias) = (&self.out.bias, &self.feed.down.bias);
        match &self.order {
            Order::Post { attention, feed } => {
                let x = ops::join(&attend(x)?, out_bias, x, Some(attention))?;
                Ok(ops::join(&self.feed.product(&x, mode)?, down_bias, &x, Some(feed))?)
            }
            Order::Pre { attention, feed, after } => {
                let normed = attention.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.run(x))?;
                let x = add(&attend(&normed)?, out_bias, x, after.as_ref().map(|after| &after[0]))?;
                add(&self.feed.product(&feed.run(&x)?, mode)?, down_bias, &x, after.as_ref().map(|after| &after[1]))
            }
            Order::Parallel(norm) => {
                let normed = norm.run(x)?;
                let x = ops::join(&attend(&normed)?, out_bias, x, None)?;
                Ok(ops::join(&self.feed.product(&normed, mode)?, down_bias, &x, None)?)
            }
        }
    }
}

/// `residual + norm(block + bias)`, or without a norm `residual + block + bias`.
fn add(block: &Tensor, bias: &[f32], residual: &Tensor, norm: Option<&Norm>) -> Result<Tensor, ModelError> {
    let Some(norm) = norm else {
        return Ok(ops::join(block, bias, residual, None)?);
    };
    let block = if bias.is_empty() { block.clone() } else { ops::activate(block, bias, Activation::None)? };
    Ok(ops::join(&norm.run(&block)?, &[], residual, None)?)
}
