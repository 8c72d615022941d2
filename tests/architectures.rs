//! Every architecture against `transformers`, on tiny models with made-up weights.
//!
//! `golden/make_architectures.py` wrote the golden values, and makes the weights as [`golden::values`] does here.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helper fails as its test does, and says what it found")]

mod golden;

use std::collections::BTreeMap;

use candle_core::Device;
use evolver_worker::models::{self, Body, Head, LanguageModel, ModelWeights, Prompt, Use, Values};
use half::bf16;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Largest difference of a logit or log-probability that is allowed, in F32.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    config: Value,
    tensors: BTreeMap<String, Vec<usize>>,
    #[serde(default)]
    texts: Vec<Value>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    types: Vec<u32>,
    logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Prose {
    ids: Vec<u32>,
    #[serde(default)]
    given: Vec<u32>,
    next: Vec<f32>,
    along: Vec<f32>,
    answer: Vec<u32>,
}

#[derive(Deserialize)]
struct Image {
    name: String,
    logits: Vec<f32>,
}

fn golden(kind: &str) -> BTreeMap<String, Golden> {
    let all: Value = serde_json::from_str(include_str!("golden/architectures.json")).unwrap();
    serde_json::from_value(all[kind].clone()).unwrap()
}

fn texts<T: DeserializeOwned>(golden: &Golden) -> Vec<T> {
    golden.texts.iter().map(|text| serde_json::from_value(text.clone()).unwrap()).collect()
}

fn load(golden: &Golden, weights: &mut ModelWeights) -> Body {
    models::find(&golden.config).unwrap().load(&golden.config, weights, &Device::Cpu).unwrap()
}

fn compare(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    println!("{what}: largest difference {largest:e}");
    assert!(largest <= tolerance, "{what}: {largest:e}, {found:?} and {expected:?}");
}

fn check_encoders(kind: &str, of: Use) {
    for (name, golden) in golden(kind) {
        let mut weights = golden::weights(&golden.tensors);
        let plan = models::find(&golden.config).unwrap().head(&golden.config, of).unwrap();
        assert!(plan.tensors().iter().all(|tensor| golden.tensors.contains_key(tensor)), "{name}: {:?}", plan.tensors());
        let head = Head::load(&plan, &mut weights.clone(), 3, &Device::Cpu).unwrap();
        let Body::Encoder(encoder) = load(&golden, &mut weights) else {
            panic!("{name} is an encoder");
        };
        let texts: Vec<Text> = texts(&golden);
        let tokens: Vec<Vec<(u32, u32)>> =
            texts.iter().map(|text| text.ids.iter().copied().zip(text.types.iter().copied()).collect()).collect();
        let states = encoder.states(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let lengths: Vec<_> = tokens.iter().map(Vec::len).collect();
        let rows = match of {
            Use::Whole => head.of_texts(&states, &lengths).unwrap(),
            Use::Tokens => head.outputs(&states).unwrap(),
        };
        let mut start = 0;
        for (text, length) in texts.iter().zip(lengths) {
            let rows = match of {
                Use::Whole => std::slice::from_ref(&rows[start]),
                Use::Tokens => &rows[start..start + length],
            };
            start += rows.len();
            compare(&format!("{kind} {name}, {length} tokens"), &rows.concat(), &text.logits, TOLERANCE);
        }
    }
}

#[test]
fn encoders_give_the_logits_of_transformers_for_texts() {
    check_encoders("encoders", Use::Whole);
}

#[test]
fn encoders_give_the_logits_of_transformers_for_tokens() {
    check_encoders("taggers", Use::Tokens);
}

fn language(golden: &Golden, weights: &mut ModelWeights) -> Box<dyn LanguageModel> {
    match load(golden, weights) {
        Body::Language(model) => model,
        _ => panic!("a language model is expected"),
    }
}

/// Every token's log-probability as the next one, by asking for each.
fn next(model: &dyn LanguageModel, contexts: &[&[u32]], vocabulary: u32) -> Vec<Vec<f32>> {
    let all: Vec<[u32; 1]> = (0..vocabulary).map(|token| [token]).collect();
    let continuations = || all.iter().map(<[u32; 1]>::as_slice).collect();
    let prompts: Vec<_> = contexts.iter().map(|context| Prompt { context, continuations: continuations() }).collect();
    let found = model.likelihoods(&prompts).unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "compared as F32")]
    let logs = |choices: &Vec<models::Likelihood>| choices.iter().map(|choice| choice.log as f32).collect();
    found.iter().map(logs).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "compared as F32")]
fn check_language(kind: &str, both: bool) {
    for (name, golden) in golden(kind) {
        let model = language(&golden, &mut golden::weights(&golden.tensors));
        let texts: Vec<Prose> = texts(&golden);
        let contexts: Vec<_> = texts.iter().map(|text| text.ids.as_slice()).collect();
        let next = next(model.as_ref(), &contexts, 60);
        let answers = model.generate(&contexts, 12, &[], &|_| false).unwrap();
        for ((text, next), answer) in texts.iter().zip(next).zip(answers) {
            let what = format!("{name}, {} tokens", text.ids.len());
            compare(&what, &next, &text.next, TOLERANCE);
            assert_eq!(answer, text.answer, "{what}: greedy tokens through the cache");
            // Beginnings of the text as contexts of what follows: the sum of the steps' log-probabilities, and whether all are the likeliest.
            let (whole, given): (&[u32], &[u32]) = if both { (&text.given, &text.ids) } else { (&text.ids, &[]) };
            let splits: Vec<usize> = if both { vec![0] } else { (1..whole.len()).collect() };
            for at in splits {
                let context = if both { given } else { &whole[..at] };
                let prompt = Prompt { context, continuations: vec![&whole[at..], &whole[at..=at]] };
                let found = &model.likelihoods(&[prompt]).unwrap()[0];
                let expected: f32 = text.along[if both { 0 } else { at - 1 }..].iter().sum();
                assert!((found[0].log as f32 - expected).abs() < 1e-3, "{what} from {at}: {} and {expected}", found[0].log);
                assert!((found[1].log as f32 - text.along[if both { 0 } else { at - 1 }]).abs() < TOLERANCE);
            }
            let generated = Prompt { context: &text.ids, continuations: vec![&answer] };
            assert!(model.likelihoods(&[generated]).unwrap()[0][0].greedy, "{what}: what is generated is greedy");
        }
    }
}

#[test]
fn decoders_give_the_probabilities_and_answers_of_transformers() {
    check_language("decoders", false);
}

#[test]
fn encoder_decoders_give_the_probabilities_and_answers_of_transformers() {
    check_language("encoder_decoders", true);
}

#[test]
fn texts_that_begin_alike_score_as_if_alone() {
    for (name, golden) in golden("decoders") {
        let model = language(&golden, &mut golden::weights(&golden.tensors));
        let text = &texts::<Prose>(&golden)[2].ids;
        let mut others = [text.clone(), text.clone(), text[..20].to_vec()];
        others[1][25] = 7;
        let contexts: Vec<_> = others.iter().map(Vec::as_slice).collect();
        let together = next(model.as_ref(), &contexts, 60);
        for (context, together) in contexts.iter().zip(together) {
            assert_eq!(next(model.as_ref(), &[context], 60)[0], together, "{name}: the same bits");
        }
        let together = model.generate(&contexts, 12, &[], &|_| false).unwrap();
        for (context, together) in contexts.iter().zip(together) {
            assert_eq!(model.generate(&[context], 12, &[], &|_| false).unwrap()[0], together, "{name}");
        }
    }
}

#[test]
fn vision_models_give_the_logits_of_transformers() {
    for (name, golden) in golden("vision") {
        let mut weights = golden::weights(&golden.tensors);
        let plan = models::find(&golden.config).unwrap().head(&golden.config, Use::Whole).unwrap();
        let head = Head::load(&plan, &mut weights.clone(), 3, &Device::Cpu).unwrap();
        let Body::Vision(model) = load(&golden, &mut weights) else {
            panic!("{name} is a vision model");
        };
        let pixels =
            |image: &Image| golden::values(&image.name, &[1, 3, 16, 16]).iter().map(|value| 4.0 * value).collect::<Vec<_>>();
        let images: Vec<_> = golden.images.iter().map(pixels).collect();
        let states = model.states(&images.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let rows = head.of_texts(&states, &[model.rows(), model.rows()]).unwrap();
        for (image, row) in golden.images.iter().zip(rows) {
            compare(&format!("{name}, image {}", image.name), &row, &image.logits, TOLERANCE);
        }
    }
}

/// Weights of 16 bits are read where they lie: the same bits as if they had been widened first.
#[test]
fn short_weights_score_as_their_wide_values() {
    for kind in ["decoders", "encoder_decoders"] {
        for (name, golden) in golden(kind) {
            let (mut short, mut wide) = (ModelWeights::default(), ModelWeights::default());
            for (tensor, shape) in &golden.tensors {
                let rounded: Vec<_> = golden::values(tensor, shape).into_iter().map(bf16::from_f32).collect();
                wide.insert(tensor, shape, Values::Owned(rounded.iter().map(|value| value.to_f32()).collect::<Vec<_>>().into()));
                short.insert(tensor, shape, Values::Brain(rounded.into()));
            }
            let (short, wide) = (language(&golden, &mut short), language(&golden, &mut wide));
            let text = &texts::<Prose>(&golden)[2].ids;
            assert_eq!(next(short.as_ref(), &[text], 60), next(wide.as_ref(), &[text], 60), "{name}");
            let answer = |model: &dyn LanguageModel| model.generate(&[text], 12, &[], &|_| false).unwrap();
            assert_eq!(answer(short.as_ref()), answer(wide.as_ref()), "{name}");
        }
    }
}

#[test]
fn an_unknown_architecture_is_refused_with_those_that_are_known() {
    let refusal = models::find(&serde_json::json!({ "model_type": "mamba" })).err().unwrap().to_string();
    assert!(refusal.contains("\"mamba\"") && refusal.contains("modernbert") && refusal.contains("command"), "{refusal}");
    let missing = models::find(&serde_json::json!({})).err().unwrap().to_string();
    assert!(missing.contains("model_type is missing"), "{missing}");
}
