//! What is done once, without a search: merging by mergekit's YAML, checking, comparing.
//!
//! - [`config`]: the definition of a merge, read and written.
//! - [`plan`]: a definition bound to models, from their headers alone: every output tensor, where it comes from, and all that is wrong.
//! - [`vocabulary`]: several vocabularies become one.
//! - [`build`]: a plan carried out, block by block.
//! - [`output`]: shards, config, tokenizer, chat template, model card.
//! - [`check`]: what a merge would cost.
//! - [`diff`]: how two models differ.

pub mod build;
pub mod check;
pub mod config;
pub mod diff;
pub mod output;
pub mod plan;
pub mod vocabulary;
