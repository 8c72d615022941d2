//! Several vocabularies become one, by mergekit's rules.
//!
//! The output's tokens are the base's, the union of all, or a given model's, and those that have rules of their own. A model's embedding of a token is
//! its own where it has the token and nothing forces another; else what the token's rule says; else, in this order: that of the only model that
//! has the token, the base's, the mean of those that have it; zeros where none has. Rows that pad the number of embeddings to a multiple hold
//! the mean of the model's other rows.
//!
//! Where mergekit leaves an order open (which tokens of a union come first), it is here that of the models in the definition, then of the ids.

mod rows;
mod tokenizer;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use evolver_common::checkpoint::Checkpoint;

pub use self::{
    rows::{Row, Rows},
    tokenizer::Tokenizer,
};
use crate::config::{ModelReference, TokenRule, TokenSource, TokenizerRule, TokenizerSource};

/// Names of modules that hold one row for each token.
const INPUT: [&str; 7] = ["embed_tokens", "wte", "word_embeddings", "tok_embeddings", "shared", "embed_in", "embeddings"];
const OUTPUT: [&str; 5] = ["lm_head", "embed_out", "output_layer", "vocab_projector", "output"];
/// The whole names where the module's alone would say too little.
const OUTPUT_NAMES: [&str; 4] =
    ["cls.predictions.decoder.weight", "cls.predictions.bias", "cls.predictions.decoder.bias", "lm_head.decoder.weight"];

/// A model as its vocabulary is seen.
pub(crate) struct Speaker<'a> {
    pub(crate) reference: &'a ModelReference,
    pub(crate) checkpoint: &'a Checkpoint,
    /// Where it has one of its own.
    pub(crate) tokenizer: Option<Tokenizer>,
}

/// The output's vocabulary.
#[derive(Debug)]
pub struct Vocabulary {
    /// The output's tokenizer.
    pub tokenizer: Tokenizer,
    /// Index of the model whose tokenizer it is, or begins with.
    pub origin: usize,
    /// Whether the tokenizer differs from that model's.
    pub changed: bool,
    /// Number of embeddings.
    pub rows: usize,
    /// For each model, where the output's rows come from; `None` where it has no embeddings.
    pub models: Vec<Option<Arc<Rows>>>,
    /// What its user should know.
    pub notes: Vec<String>,
}

/// Whether a tensor holds one row for each token.
#[must_use]
pub fn is_embedding(name: &str) -> bool {
    let module = name.rsplit_once('.').map_or("", |(module, _)| module);
    let last = module.rsplit('.').next().unwrap_or("");
    let input = INPUT.contains(&last) && name.ends_with(".weight");
    // A number before it means a layer's own module of that name.
    let top = !module.split('.').any(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    top && (input || OUTPUT.contains(&last) || OUTPUT_NAMES.contains(&name))
}

/// Rows of a model's embeddings, and the tensor that tells.
pub(crate) fn rows_of(checkpoint: &Checkpoint) -> Result<Option<usize>, String> {
    let mut found: Option<(&String, usize)> = None;
    for (name, info) in checkpoint.tensors().iter().filter(|(name, _)| is_embedding(name)) {
        let Some(&rows) = info.shape.first() else { continue };
        match found {
            Some((first, other)) if other != rows => {
                return Err(format!("{first:?} has {other} rows and {name:?} has {rows}: one vocabulary is expected"));
            }
            _ => found = Some((name, rows)),
        }
    }
    Ok(found.map(|(_, rows)| rows))
}

impl Vocabulary {
    /// Joins the vocabularies of `models`, of which the one at `base` is the base (the first where there is none).
    pub(crate) fn join(rule: &TokenizerRule, models: &[Speaker<'_>], base: Option<usize>) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut notes = Vec::new();
        let first = base.unwrap_or(0);
        let at = |reference: &ModelReference| models.iter().position(|model| model.reference == reference);
        let mut rows = Vec::new();
        for model in models {
            rows.push(rows_of(model.checkpoint).unwrap_or_else(|sentence| {
                problems.push(format!("{}: {sentence}", model.reference));
                None
            }));
        }
        let Some(Some(first_tokenizer)) = models.get(first).map(|model| &model.tokenizer) else {
            let name = models.get(first).map_or_else(String::new, |model| model.reference.to_string());
            return Err(vec![format!(
                "{name} has no tokenizer.json, which the tokenizer rule needs: save its tokenizer as a fast one"
            )]);
        };
        // A model without a tokenizer speaks as the base does, if its embeddings are as many.
        let tokenizers: Vec<&Tokenizer> = models
            .iter()
            .zip(&rows)
            .map(|(model, own)| {
                model.tokenizer.as_ref().unwrap_or_else(|| {
                    if *own == rows[first] {
                        notes.push(format!(
                            "{} has no tokenizer.json: it is taken to have that of {}",
                            model.reference, models[first].reference
                        ));
                    } else {
                        problems.push(format!(
                            "{} has no tokenizer.json, and other embeddings than {}: save its tokenizer as a fast one",
                            model.reference, models[first].reference
                        ));
                    }
                    first_tokenizer
                })
            })
            .collect();
        let origin = match &rule.source {
            TokenizerSource::Model(reference) => at(reference).unwrap_or(first),
            TokenizerSource::Base | TokenizerSource::Union => first,
        };
        let mut tokenizer = tokenizers[origin].clone();
        if let (false, Some(rows)) = (matches!(rule.source, TokenizerSource::Model(_)), rows[origin]) {
            match tokenizer.strip(rows) {
                Ok(0) => {}
                Ok(count) => {
                    notes.push(format!("{count} tokens of {} have no embeddings and are left out", models[origin].reference))
                }
                Err(sentence) => problems.push(format!("{}: {sentence}", models[origin].reference)),
            }
        }
        if rule.source == TokenizerSource::Union {
            unite(&mut tokenizer, &tokenizers, &rows);
        }
        for (token, _) in &rule.tokens {
            tokenizer.add(token, None);
        }
        let size = tokenizer.size();
        let count = rule.pad_to_multiple_of.map_or(size, |multiple| size.next_multiple_of(multiple));
        for (model, own) in models.iter().zip(&rows) {
            if let Some(own) = own.filter(|own| *own > tokenizers[at(model.reference).unwrap_or(first)].size()) {
                let named = tokenizers[at(model.reference).unwrap_or(first)].size();
                notes.push(format!("{} embeddings of {} belong to no token and are left out", own - named, model.reference));
            }
        }
        let chooser = Chooser { models, tokenizers: &tokenizers, rows: &rows, base };
        let chosen = chooser.choose(&tokenizer, &rule.tokens, count, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let changed = tokenizer != *tokenizers[origin];
        Ok(Self { tokenizer, origin, changed, rows: count, models: chosen, notes })
    }
}

/// Adds the tokens that the first lacks: words in the order of models and ids, then those that were added to models.
fn unite(tokenizer: &mut Tokenizer, all: &[&Tokenizer], rows: &[Option<usize>]) {
    let known = |id: usize, rows: Option<usize>| rows.is_none_or(|rows| id < rows);
    for added in [false, true] {
        for (other, rows) in all.iter().zip(rows) {
            for (id, token) in other.by_id() {
                if known(id, *rows) && other.added(token).is_some() == added {
                    tokenizer.add(token, other.added(token));
                }
            }
        }
    }
}

/// Chooses an embedding for each token in each model.
struct Chooser<'a> {
    models: &'a [Speaker<'a>],
    tokenizers: &'a [&'a Tokenizer],
    rows: &'a [Option<usize>],
    base: Option<usize>,
}

impl Chooser<'_> {
    /// A model's row of a token, if it has one.
    fn row(&self, model: usize, token: &str) -> Option<usize> {
        let id = *self.tokenizers[model].ids().get(token)?;
        self.rows[model].filter(|rows| id < *rows).map(|_| id)
    }

    fn choose(
        &self,
        tokenizer: &Tokenizer,
        rules: &[(String, TokenRule)],
        count: usize,
        problems: &mut Vec<String>,
    ) -> Vec<Option<Arc<Rows>>> {
        let rules: HashMap<&str, &TokenRule> = rules.iter().map(|(token, rule)| (token.as_str(), rule)).collect();
        let mut ruled: BTreeMap<&str, Row> = BTreeMap::new();
        for (token, rule) in &rules {
            match self.by_rule(token, rule) {
                Ok(row) => drop(ruled.insert(token, row)),
                Err(sentence) => problems.push(format!("tokenizer.tokens.{token}: {sentence}")),
            }
        }
        let tokens = tokenizer.by_id();
        let size = tokenizer.size();
        let of_model = |model: usize| {
            self.rows[model]?;
            let mut chosen = vec![Row::Zero; count];
            for (id, token) in &tokens {
                let own = self.row(model, token).filter(|_| !rules.get(token).is_some_and(|rule| rule.force));
                chosen[*id] = match own {
                    Some(row) => Row::Of(model, row),
                    None => ruled.get(token).cloned().unwrap_or_else(|| self.by_default(token)),
                };
            }
            chosen[size..].fill(Row::Mean);
            Some(Arc::new(Rows { model, named: size, rows: chosen }))
        };
        (0..self.models.len()).map(of_model).collect()
    }

    /// What holds for a token without a rule, in models that lack it.
    fn by_default(&self, token: &str) -> Row {
        let having: Vec<_> = (0..self.models.len()).filter_map(|model| Some((model, self.row(model, token)?))).collect();
        let of_base = having.iter().find(|(model, _)| Some(*model) == self.base);
        match (having.as_slice(), of_base) {
            ([], _) => Row::Zero,
            ([(model, row)], _) | (_, Some((model, row))) => Row::Of(*model, *row),
            (several, None) => Row::MeanOf(several.into()),
        }
    }

    fn by_rule(&self, token: &str, rule: &TokenRule) -> Result<Row, String> {
        let model = |reference: &ModelReference| {
            let found = self.models.iter().position(|model| model.reference == reference);
            found.ok_or_else(|| format!("model {reference} is not part of the merge"))
        };
        let of_token = |reference: &ModelReference, token: &str| {
            let model = model(reference)?;
            let row = self.row(model, token).ok_or_else(|| format!("model {reference} has no embedding of token {token:?}"))?;
            Ok(Row::Of(model, row))
        };
        match &rule.source {
            TokenSource::Default => Ok(self.by_default(token)),
            TokenSource::Zero => Ok(Row::Zero),
            TokenSource::Model(reference) => of_token(reference, token),
            TokenSource::Token(reference, other) => of_token(reference, other),
            TokenSource::Row(reference, row) => {
                let model = model(reference)?;
                let rows = self.rows[model].unwrap_or(0);
                if *row < rows {
                    Ok(Row::Of(model, *row))
                } else {
                    Err(format!("token_id is {row}, and model {reference} has {rows} embeddings"))
                }
            }
        }
    }
}
