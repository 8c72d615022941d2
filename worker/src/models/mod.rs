//! Networks, as far as the evaluators need them.
//!
//! - [`weights`]: named tensors, owned or lent from a memory map.
//! - [`ops`]: fused operators where candle's own are slow.
//! - [`bert`]: BERT encoders with a classification head.

mod bert;
mod ops;
mod weights;

pub use self::{
    bert::{Bert, BertConfig, Head},
    weights::{ModelError, ModelWeights, Values},
};
