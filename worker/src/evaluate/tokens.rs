//! Tokenizers: of texts and pairs for encoders, of prompts for language models, and the chat template.

use std::path::{Path, PathBuf};

use minijinja::{context, value::Serde};
use serde_json::Value;
use tokenizers::{
    AddedToken, PostProcessor as _, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use super::{EvaluateError, columns::environment};
use crate::models::Token;

/// A folder's tokenizer.
#[derive(Debug)]
pub struct TextTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    /// `tokenizer_config.json`, if there is one.
    config: Value,
    chat: Option<String>,
    ends: Vec<u32>,
    begin: Option<u32>,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and what stands beside it.
    ///
    /// # Errors
    /// If it is missing or cannot be used.
    pub fn open(folder: &Path) -> Result<Self, EvaluateError> {
        let path = folder.join("tokenizer.json");
        let bad = |what: String| EvaluateError::Tokenizer { path: path.clone(), what };
        if !path.is_file() {
            return Err(bad(
                "there is no such file, and texts cannot be read without it: `AutoTokenizer.from_pretrained(…).save_pretrained(…)` of transformers writes it".into(),
            ));
        }
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| bad(error.to_string()))?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|error| bad(error.to_string()))?;
        let json = |name: &str| -> Value {
            std::fs::read(folder.join(name)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
        };
        let (config, generation, model) = (json("tokenizer_config.json"), json("generation_config.json"), json("config.json"));
        let chat = std::fs::read_to_string(folder.join("chat_template.jinja")).ok();
        let chat = chat.or_else(|| config["chat_template"].as_str().map(str::to_owned));
        let numbers = |value: &Value| -> Vec<u32> {
            let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            one(value).into_iter().chain(value.as_array().into_iter().flatten().filter_map(one)).collect()
        };
        let named = |key: &str| tokenizer.token_to_id(&special(&config[key])?);
        let mut ends = numbers(&generation["eos_token_id"]);
        if ends.is_empty() {
            ends = numbers(&model["eos_token_id"]);
        }
        ends.extend(named("eos_token").filter(|id| !ends.contains(id)));
        let begin = named("bos_token").or_else(|| numbers(&model["bos_token_id"]).first().copied());
        Ok(Self { tokenizer, config, chat, ends, begin, path })
    }

    pub(super) fn bad(&self, what: impl Into<String>) -> EvaluateError {
        EvaluateError::Tokenizer { path: self.path.clone(), what: what.into() }
    }

    /// Tokens that end an answer.
    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The token before the first of a text that stands alone: the beginning's, or where there is none the end's.
    pub(super) fn before(&self) -> Option<u32> {
        self.begin.or_else(|| self.ends.first().copied())
    }

    /// Tokens of a text or a pair, the special ones included, at most `max_length` of them.
    ///
    /// Encodings are cut here and not by the tokenizer: the tokenizers crate (0.23.2) cuts each text of a pair before it looks which is the longer, and
    /// so keeps other tokens than `transformers` does.
    ///
    /// # Errors
    /// If the tokenizer fails, or nothing is left of the text.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Vec<Token>, EvaluateError> {
        let bad = |error: tokenizers::Error| self.bad(error.to_string());
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(bad);
        let first = encode(text)?;
        let mut second = pair.map(encode).transpose()?;
        if let Some(second) = &mut second {
            second.set_type_ids(vec![1; second.len()]);
        }
        let special = self.tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(second.is_some()));
        let room = max_length.checked_sub(special).filter(|&room| room > 0).ok_or_else(|| {
            self.bad(format!("max_length is {max_length}, of which {special} are special tokens: nothing is left for the text"))
        })?;
        let (strategy, direction) = (TruncationStrategy::LongestFirst, TruncationDirection::Right);
        let cut = TruncationParams { max_length: room, strategy, stride: 0, direction };
        let (first, second) = truncate_encodings(first, second, &cut).map_err(|error| self.bad(error.to_string()))?;
        let whole = self.tokenizer.post_process(first, second, true).map_err(bad)?;
        Ok(whole.get_ids().iter().copied().zip(whole.get_type_ids().iter().copied()).collect())
    }

    /// Tokens of words that were split already, cut to `max_length`, with the place of each word's first token; none for a word that was cut off or has
    /// no tokens.
    pub(super) fn encode_words(
        &self,
        words: &[String],
        max_length: usize,
    ) -> Result<(Vec<Token>, Vec<Option<usize>>), EvaluateError> {
        let encoded = self.tokenizer.encode(words, true).map_err(|error| self.bad(error.to_string()))?;
        let special = encoded.get_special_tokens_mask();
        let mut kept: Vec<usize> = (0..encoded.len()).collect();
        // Special tokens stay; words go from the end.
        let mut excess = kept.len().saturating_sub(max_length);
        for place in (0..encoded.len()).rev() {
            if excess > 0 && special[place] == 0 {
                kept.retain(|&other| other != place);
                excess -= 1;
            }
        }
        let mut firsts = vec![None; words.len()];
        for (index, &place) in kept.iter().enumerate() {
            if let (0, Some(word)) = (special[place], encoded.get_word_ids()[place]) {
                firsts[word as usize].get_or_insert(index);
            }
        }
        let tokens = kept.iter().map(|&place| (encoded.get_ids()[place], encoded.get_type_ids()[place]));
        Ok((tokens.collect(), firsts))
    }

    /// Tokens of a prompt: with the special ones that the tokenizer adds by itself, or without.
    pub(super) fn prompt(&self, text: &str, special: bool) -> Result<Vec<u32>, EvaluateError> {
        let encoded = self.tokenizer.encode(text, special).map_err(|error| self.bad(error.to_string()))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// Tokens of an encoder-decoder's text, cut to `max_length`, with the end.
    pub(super) fn text_of(&self, tokens: &[u32]) -> Result<String, EvaluateError> {
        self.tokenizer.decode(tokens, true).map_err(|error| self.bad(error.to_string()))
    }

    /// A question in the form that the model was trained to be asked in, by its chat template.
    pub(super) fn chat(&self, system: Option<&str>, user: &str) -> Result<String, EvaluateError> {
        let Some(template) = &self.chat else {
            return Err(self
                .bad("there is no chat template beside it, in chat_template.jinja or tokenizer_config.json: set chat = false"));
        };
        let mut messages = Vec::new();
        messages.extend(system.map(|content| serde_json::json!({ "role": "system", "content": content })));
        messages.push(serde_json::json!({ "role": "user", "content": user }));
        let name = |key: &str| special(&self.config[key]).unwrap_or_default();
        let values = context! {
            messages => minijinja::Value::from(Serde(&messages)), add_generation_prompt => true, bos_token => name("bos_token"), eos_token => name("eos_token"),
        };
        environment()
            .render_str(template, values)
            .map_err(|error| self.bad(format!("the chat template cannot be filled in: {error:#}")))
    }
}

/// A special token's text, which stands there by itself or in an object.
fn special(value: &Value) -> Option<String> {
    let token = |text: &str| AddedToken::from(text, true).content;
    value.as_str().or_else(|| value["content"].as_str()).map(token)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn tokenizer(chat: Option<&str>) -> Result<TextTokenizer, EvaluateError> {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "Whitespace" },
            "post_processor": null, "decoder": null, "truncation": null, "padding": null,
            "model": { "type": "WordLevel", "vocab": { "[UNK]": 0, "a": 1, "b": 2, "</s>": 3 }, "unk_token": "[UNK]" },
        });
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = json!({ "eos_token": { "content": "</s>" }, "bos_token": "<s>", "chat_template": chat });
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [2, 3]}"#).unwrap();
        TextTokenizer::open(folder.path())
    }

    #[test]
    fn a_question_is_put_in_the_chat_templates_form() {
        // As transformers' apply_chat_template fills it in.
        let template = "{{ bos_token }}{% for message in messages %}\n    {%- if loop.first and messages[0]['role'] != 'system' -%}\n        \
            {{ '<|im_start|>system\\nHelp.<|im_end|>\\n' }}\n    {%- endif -%}\n{{ '<|im_start|>' + message['role'] + '\\n' + \
            message['content'].strip() + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
        let tokenizer = tokenizer(Some(template)).unwrap();
        let plain = "<s><|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(tokenizer.chat(None, " a b ").unwrap(), plain);
        let with = "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(tokenizer.chat(Some("S"), "a").unwrap(), with);
    }

    #[test]
    fn special_tokens_are_found_and_what_is_missing_is_told() {
        let tokenizer = tokenizer(None).unwrap();
        assert_eq!((tokenizer.ends(), tokenizer.before()), ([2, 3].as_slice(), Some(2)));
        assert!(tokenizer.chat(None, "a").unwrap_err().to_string().contains("set chat = false"));
        let nowhere = TextTokenizer::open(Path::new("/no/such/folder")).unwrap_err().to_string();
        assert!(nowhere.contains("tokenizer.json: there is no such file"), "{nowhere}");
        let (tokens, firsts) = tokenizer.encode_words(&["a".into(), "b".into(), "c".into()], 2).unwrap();
        assert_eq!((tokens, firsts), (vec![(1, 0), (2, 0)], vec![Some(0), Some(1), None]));
    }
}
