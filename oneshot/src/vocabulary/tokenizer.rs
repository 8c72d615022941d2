//! A fast tokenizer's file, `tokenizer.json`: its tokens, and the few changes that merging makes to it.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value as Json, json};

pub(crate) const FILE: &str = "tokenizer.json";
/// Longest file, in bytes.
const BYTES_MAX: u64 = 256 << 20;
/// Ids are bounded, so that a hostile file cannot ask for any number of embeddings.
const IDS_MAX: u64 = 1 << 24;

/// Tokens and their ids, with the file that they stand in.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    json: Json,
    ids: BTreeMap<String, usize>,
    /// Tokens that were added to the model's own, by content.
    added: BTreeMap<String, Json>,
}

impl Tokenizer {
    /// Reads a folder's tokenizer; `None` if there is none.
    ///
    /// # Errors
    /// If the file is not a tokenizer.
    pub fn open(folder: &Path) -> Result<Option<Self>, String> {
        let path = folder.join(FILE);
        let Ok(metadata) = fs::metadata(&path) else {
            return Ok(None);
        };
        let bad = |what: String| format!("{}: {what}", path.display());
        if metadata.len() > BYTES_MAX {
            return Err(bad(format!("has {} bytes, and at most {BYTES_MAX} are allowed", metadata.len())));
        }
        let bytes = fs::read(&path).map_err(|error| bad(error.to_string()))?;
        Self::parse(&bytes).map(Some).map_err(bad)
    }

    /// Reads a tokenizer from the bytes of its file.
    ///
    /// # Errors
    /// If they are not a tokenizer.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let json: Json = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
        let mut ids = BTreeMap::new();
        let id = |token: &str, id: Option<u64>| {
            let id = id.filter(|id| *id < IDS_MAX).and_then(|id| usize::try_from(id).ok());
            id.ok_or_else(|| format!("token {token:?} has no id below {IDS_MAX}"))
        };
        match json.get("model").and_then(|model| model.get("vocab")) {
            Some(Json::Object(vocab)) => {
                for (token, tree) in vocab {
                    ids.insert(token.clone(), id(token, tree.as_u64())?);
                }
            }
            // Unigram: tokens with their scores, by place.
            Some(Json::Array(vocab)) => {
                for (place, tree) in (0..).zip(vocab) {
                    let token = tree.get(0).and_then(Json::as_str).ok_or("model.vocab holds something that is no token")?;
                    ids.insert(token.to_owned(), id(token, Some(place))?);
                }
            }
            _ => return Err("has no model.vocab: it is not a tokenizer.json".into()),
        }
        let mut added = BTreeMap::new();
        for tree in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
            let content = tree.get("content").and_then(Json::as_str).ok_or("added_tokens holds something that is no token")?;
            ids.insert(content.to_owned(), id(content, tree.get("id").and_then(Json::as_u64))?);
            added.insert(content.to_owned(), tree.clone());
        }
        Ok(Self { json, ids, added })
    }

    /// Every token with its id.
    #[must_use]
    pub fn ids(&self) -> &BTreeMap<String, usize> {
        &self.ids
    }

    /// One more than the largest id.
    #[must_use]
    pub fn size(&self) -> usize {
        self.ids.values().max().map_or(0, |last| last + 1)
    }

    /// The tokens by their ids.
    #[must_use]
    pub fn by_id(&self) -> BTreeMap<usize, &str> {
        self.ids.iter().map(|(token, id)| (*id, token.as_str())).collect()
    }

    /// How a token was added to the model's own, if it was.
    pub(super) fn added(&self, token: &str) -> Option<&Json> {
        self.added.get(token)
    }

    /// Adds a token behind the last, with the settings of `like` or those of a plain word.
    pub(super) fn add(&mut self, token: &str, like: Option<&Json>) {
        if self.ids.contains_key(token) {
            return;
        }
        let id = self.size();
        let plain = json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false });
        let mut entry = like.cloned().unwrap_or(plain);
        entry["id"] = id.into();
        entry["content"] = token.into();
        self.ids.insert(token.to_owned(), id);
        self.added.insert(token.to_owned(), entry.clone());
        match self.json.get_mut("added_tokens").and_then(Json::as_array_mut) {
            Some(list) => list.push(entry),
            None => self.json["added_tokens"] = json!([entry]),
        }
    }

    /// Removes the tokens from id `rows` on, for which there are no embeddings.
    ///
    /// # Errors
    /// For kinds of tokenizers in which a token cannot be left out.
    pub(super) fn strip(&mut self, rows: usize) -> Result<usize, String> {
        let unused: Vec<String> = self.ids.iter().filter(|(_, id)| **id >= rows).map(|(token, _)| token.clone()).collect();
        if unused.is_empty() {
            return Ok(0);
        }
        if let Some(list) = self.json.get_mut("added_tokens").and_then(Json::as_array_mut) {
            list.retain(|entry| entry.get("id").and_then(Json::as_u64).is_some_and(|id| id < rows as u64));
        }
        let kind = self.json["model"]["type"].as_str().unwrap_or("").to_owned();
        let in_model = |token: &String| self.json["model"]["vocab"].get(token.as_str()).is_some();
        if unused.iter().any(in_model)
            || self.json["model"]["vocab"].is_array() && !unused.iter().all(|token| self.added.contains_key(token))
        {
            if kind != "BPE" {
                return Err(format!(
                    "{} of its tokens have no embeddings, and they cannot be left out of a tokenizer of kind {kind}",
                    unused.len()
                ));
            }
            let model = &mut self.json["model"];
            if let Some(vocab) = model["vocab"].as_object_mut() {
                vocab.retain(|_, id| id.as_u64().is_some_and(|id| id < rows as u64));
            }
            if let Some(merges) = model["merges"].as_array_mut() {
                let gone = |part: &str| unused.iter().any(|token| token == part);
                merges.retain(|merge| match merge {
                    Json::String(pair) => {
                        let whole = pair.replacen(' ', "", 1);
                        !pair.split(' ').any(gone) && !gone(&whole)
                    }
                    Json::Array(pair) => {
                        let parts: Vec<_> = pair.iter().filter_map(Json::as_str).collect();
                        !parts.iter().any(|part| gone(part)) && !gone(&parts.concat())
                    }
                    _ => true,
                });
            }
        }
        for token in &unused {
            self.ids.remove(token);
            self.added.remove(token);
        }
        Ok(unused.len())
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(&self.json).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BPE: &str = r#"{"added_tokens": [{"id": 4, "content": "<s>", "special": true, "normalized": false}],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aab": 3}, "merges": ["a b", ["a", "ab"]]}}"#;

    #[test]
    fn tokens_are_read_added_and_left_out() {
        let mut tokenizer = Tokenizer::parse(BPE.as_bytes()).unwrap();
        assert_eq!((tokenizer.size(), tokenizer.ids()["<s>"]), (5, 4));
        let like = tokenizer.added("<s>").cloned();
        tokenizer.add("<e>", like.as_ref());
        tokenizer.add("new", None);
        tokenizer.add("a", None);
        let again = Tokenizer::parse(tokenizer.text().as_bytes()).unwrap();
        assert_eq!(again, tokenizer);
        assert_eq!((again.ids()["<e>"], again.ids()["new"], again.size()), (5, 6, 7));
        assert_eq!(again.added("<e>").unwrap()["special"], true);
        assert_eq!(tokenizer.strip(3).unwrap(), 4);
        let stripped = Tokenizer::parse(tokenizer.text().as_bytes()).unwrap();
        assert_eq!((stripped.size(), stripped.json["model"]["merges"].clone()), (3, json!(["a b"])));
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        for (text, expected) in [
            ("{", "not JSON"),
            ("{}", "no model.vocab"),
            (r#"{"model": {"vocab": {"a": -1}}}"#, "\"a\" has no id"),
            (r#"{"model": {"vocab": {"a": 99999999999}}}"#, "\"a\" has no id"),
            (r#"{"model": {"vocab": [[1, 2]]}}"#, "no token"),
            (r#"{"model": {"vocab": {}}, "added_tokens": [7]}"#, "no token"),
        ] {
            let error = Tokenizer::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let unigram = r#"{"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]}}"#;
        let mut unigram = Tokenizer::parse(unigram.as_bytes()).unwrap();
        assert!(unigram.strip(1).unwrap_err().contains("Unigram"));
    }
}
