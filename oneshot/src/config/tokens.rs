//! How vocabularies become one: `tokenizer_source`, or the section `tokenizer`.

use serde_json::Value as Json;

use super::{ModelReference, read::Reader};

/// The vocabulary of the output, and where its embeddings come from.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerRule {
    /// Whose tokens.
    pub source: TokenizerSource,
    /// Rules for single tokens, which join the vocabulary if they are not in it.
    pub tokens: Vec<(String, TokenRule)>,
    /// The number of embeddings is rounded up to a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
}

/// Whose tokens the output has.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// The base's, or the first model's where there is no base.
    Base,
    /// The base's, then those of the other models that it lacks.
    Union,
    /// This model's.
    Model(ModelReference),
}

/// Where a token's embedding comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRule {
    /// Its source in models that lack the token.
    pub source: TokenSource,
    /// Take it in models that have the token, too.
    pub force: bool,
}

/// An embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenSource {
    /// As for any token: the base's, else the mean of those that have it.
    Default,
    /// Zeros.
    Zero,
    /// What this model has for the token.
    Model(ModelReference),
    /// What this model has for another token.
    Token(ModelReference, String),
    /// What this model has at a place.
    Row(ModelReference, usize),
}

impl TokenizerRule {
    /// A source without rules for single tokens.
    #[must_use]
    pub fn of(source: TokenizerSource) -> Self {
        Self { source, tokens: Vec::new(), pad_to_multiple_of: None }
    }

    pub(super) fn models(&self) -> impl Iterator<Item = &ModelReference> {
        let source = match &self.source {
            TokenizerSource::Model(model) => Some(model),
            TokenizerSource::Base | TokenizerSource::Union => None,
        };
        let of_tokens = self.tokens.iter().filter_map(|(_, rule)| match &rule.source {
            TokenSource::Model(model) | TokenSource::Token(model, _) | TokenSource::Row(model, _) => Some(model),
            TokenSource::Default | TokenSource::Zero => None,
        });
        source.into_iter().chain(of_tokens)
    }

    /// Reads the section `tokenizer`.
    pub(super) fn read(tree: &Json, reader: &mut Reader) -> Option<Self> {
        let table = reader.table(tree, "tokenizer", &["source", "tokens", "pad_to_multiple_of"])?;
        let source = table.get("source").map_or(Some(TokenizerSource::Union), |tree| source(tree, "tokenizer.source", reader))?;
        let mut tokens = Vec::new();
        if let Some(tree) = table.get("tokens").filter(|tree| !tree.is_null()) {
            let Some(table) = tree.as_object() else {
                reader.say(format!("tokenizer.tokens is {tree}: a table of tokens is expected"));
                return None;
            };
            for (token, tree) in table {
                tokens.push((token.clone(), token_rule(tree, &format!("tokenizer.tokens.{token}"), reader)?));
            }
        }
        let pad_to_multiple_of = match table.get("pad_to_multiple_of") {
            None | Some(Json::Null) => None,
            Some(tree) => match tree.as_u64().filter(|multiple| (1..=1 << 20).contains(multiple)) {
                Some(multiple) => usize::try_from(multiple).ok(),
                None => {
                    reader
                        .say(format!("tokenizer.pad_to_multiple_of is {tree}: a whole number from 1 to {} is expected", 1 << 20));
                    return None;
                }
            },
        };
        Some(Self { source, tokens, pad_to_multiple_of })
    }
}

/// Reads `base`, `union` or a model.
pub(super) fn source(tree: &Json, place: &str, reader: &mut Reader) -> Option<TokenizerSource> {
    match tree.as_str() {
        Some("base") => Some(TokenizerSource::Base),
        Some("union") => Some(TokenizerSource::Union),
        _ => reader.model(tree, place).map(TokenizerSource::Model),
    }
}

fn token_rule(tree: &Json, place: &str, reader: &mut Reader) -> Option<TokenRule> {
    let table = reader.table(tree, place, &["source", "force"])?;
    let force = match table.get("force") {
        None | Some(Json::Null) => false,
        Some(Json::Bool(force)) => *force,
        Some(other) => {
            reader.say(format!("{place}.force is {other}: true or false is expected"));
            return None;
        }
    };
    let place = format!("{place}.source");
    let source = match table.get("source") {
        None | Some(Json::Null) => TokenSource::Default,
        Some(tree) => match tree.get("kind").and_then(Json::as_str) {
            Some("zero") => {
                reader.table(tree, &place, &["kind"])?;
                TokenSource::Zero
            }
            Some("model_token") => {
                let table = reader.table(tree, &place, &["kind", "model", "token", "token_id"])?;
                let model = reader.model(table.get("model").unwrap_or(&Json::Null), &format!("{place}.model"))?;
                let row = table.get("token_id").and_then(Json::as_u64).and_then(|row| usize::try_from(row).ok());
                match (table.get("token").and_then(Json::as_str), row) {
                    (Some(token), None) => TokenSource::Token(model, token.to_owned()),
                    (None, Some(row)) => TokenSource::Row(model, row),
                    _ => {
                        reader.say(format!("{place}: either token (a text) or token_id (a whole number) is expected"));
                        return None;
                    }
                }
            }
            Some(kind) => {
                reader.say(format!("{place}.kind: {}", evolver_common::suggest::unknown(kind, ["zero", "model_token"])));
                return None;
            }
            None => TokenSource::Model(reader.model(tree, &place)?),
        },
    };
    if force && source == TokenSource::Default {
        reader.say(format!("{place} is missing: what is forced has to come from somewhere"));
        return None;
    }
    Some(TokenRule { source, force })
}
