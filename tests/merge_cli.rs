//! `evolver merge`, as a whole process: what it writes, by mergekit's rules.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod models;

use std::{fs, path::Path};

use evolver_common::checkpoint::Checkpoint;
use models::{Bench, HIDDEN, Model, json, read};
use safetensors::Dtype;
use serde_json::json;

const WORDS: [&str; 5] = ["<s>", "a", "b", "c", "d"];
const EMBED: &str = "model.embed_tokens.weight";

fn mean(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| f32::midpoint(*a, *b)).collect()
}

#[test]
fn a_folder_is_written_with_all_that_belongs_to_it() {
    let (a, b) = (Model::new(1, 2, &WORDS), Model::new(2, 2, &WORDS));
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    let yaml = "merge_method: linear\nmodels:\n  - model: a\n  - model: b\ndtype: bfloat16\nchat_template: chatml\n";
    let out = bench.merge(yaml, "out", &[]);
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.tensors().len(), a.tensors.len());
    assert!(checkpoint.tensors().values().all(|info| info.dtype.name() == "BF16"));
    let config = json(&out.join("config.json"));
    assert_eq!((&config["torch_dtype"], &config["num_hidden_layers"]), (&json!("bfloat16"), &json!(2)));
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), fs::read(bench.path("a/tokenizer.json")).unwrap());
    assert_eq!(json(&out.join("generation_config.json")), json!({ "eos_token_id": 0 }));
    assert!(fs::read_to_string(out.join("chat_template.jinja")).unwrap().contains("<|im_start|>"));
    assert!(json(&out.join("tokenizer_config.json"))["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    assert_eq!(fs::read_to_string(out.join("mergekit_config.yml")).unwrap(), yaml);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.starts_with("---\nbase_model:\n- \"a\"\n- \"b\"\n"), "{card}");
    let digest = card.split("- digest: `").nth(1).unwrap().split('`').next().unwrap();
    // The same merge has the same digest, and in other shards and types too.
    let again = bench.merge(yaml, "again", &["--dtype", "float32", "--max-shard-size", "200B"]);
    assert!(fs::read_to_string(again.join("README.md")).unwrap().contains(digest));
    assert!(!again.join("model.safetensors").exists() && again.join("model.safetensors.index.json").exists());
    for (name, (_, values)) in &a.tensors {
        assert_eq!(read(&again, name), mean(values, b.values(name)), "{name}");
    }
    assert_eq!(json(&again.join("config.json"))["torch_dtype"], "float32");
    assert_eq!(
        Checkpoint::open(&again).unwrap().file_count(),
        fs::read_dir(&again)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "safetensors"))
            .count()
    );
}

#[test]
fn the_same_bytes_come_from_one_file_and_from_shards() {
    let (a, b) = (Model::new(1, 2, &WORDS), Model::new(2, 2, &WORDS));
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    a.write_sharded(&bench.path("sharded"));
    let yaml = |name: &str| format!("merge_method: slerp\nbase_model: {name}\nmodels: [{{model: b}}]\nparameters: {{t: 0.3}}\n");
    let (one, two) = (bench.merge(&yaml("a"), "one", &[]), bench.merge(&yaml("sharded"), "two", &[]));
    assert_eq!(fs::read(one.join("model.safetensors")).unwrap(), fs::read(two.join("model.safetensors")).unwrap());
}

#[test]
fn layers_are_stacked() {
    let (a, b) = (Model::new(1, 3, &WORDS), Model::new(2, 3, &WORDS));
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    let yaml = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 2]}]\n  - sources:\n      - model: b\n        layer_range: [1, 3]\n        parameters: {scale: [{filter: mlp, value: 0.5}, {value: 1}]}\n";
    let out = bench.merge(yaml, "out", &[]);
    assert_eq!(json(&out.join("config.json"))["num_hidden_layers"], 4);
    for (layer, (source, from)) in [(&a, 0), (&a, 1), (&b, 1), (&b, 2)].into_iter().enumerate() {
        let attention = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj.weight");
        assert_eq!(read(&out, &attention(layer)), source.values(&attention(from)), "layer {layer}");
        let mlp = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
        let scale = if layer < 2 { 1.0 } else { 0.5 };
        let expected: Vec<_> = source.values(&mlp(from)).iter().map(|value| value * scale).collect();
        assert_eq!(read(&out, &mlp(layer)), expected, "layer {layer}");
    }
    // What comes before the layers is the first slice's, what comes after them the last's.
    assert_eq!(read(&out, EMBED), a.values(EMBED));
    for name in ["model.norm.weight", "lm_head.weight"] {
        assert_eq!(read(&out, name), b.values(name), "{name}");
    }
}

#[test]
fn gradients_run_over_the_layers_of_a_slice() {
    let (a, b) = (Model::new(1, 4, &WORDS), Model::new(2, 4, &WORDS));
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    let slice = |range: &str| format!("  - sources: [{{model: a, layer_range: {range}}}, {{model: b, layer_range: {range}}}]\n");
    let yaml = format!(
        "merge_method: slerp\nbase_model: a\nslices:\n{}{}{}parameters: {{t: [0, 1]}}\n",
        slice("[0, 2]"),
        slice("[2, 3]"),
        slice("[3, 4]")
    );
    let out = bench.merge(&yaml, "out", &[]);
    let name = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    let near =
        |found: Vec<f32>, expected: &[f32]| found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6);
    // In a slice of two layers t is 0 and 1; the only layer of a slice has t = 1; outside the layers t is 0.
    for (layer, source) in [&a, &b, &b, &b].into_iter().enumerate() {
        assert!(near(read(&out, &name(layer)), source.values(&name(layer))), "layer {layer}");
    }
    assert!(near(read(&out, EMBED), a.values(EMBED)));
}

#[test]
fn parameters_hold_by_source_then_slice_then_module_then_merge() {
    let (a, b) = (Model::new(1, 1, &WORDS), Model::new(2, 1, &WORDS));
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    let yaml = "merge_method: linear
modules:
  default:
    slices:
      - sources:
          - {model: a, layer_range: [0, 1], parameters: {weight: [{filter: q_proj, value: 8}]}}
          - {model: b, layer_range: [0, 1]}
        parameters: {weight: [{filter: up_proj, value: 4}]}
    parameters: {weight: [{filter: norm, value: 2}]}
parameters: {weight: 1, normalize: false}
";
    let out = bench.merge(yaml, "out", &[]);
    let (q, up) = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight");
    for (name, of_a, of_b) in [(q, 8.0, 1.0), (up, 4.0, 4.0), ("model.norm.weight", 2.0, 2.0), (EMBED, 1.0, 1.0)] {
        let expected: Vec<_> = a.values(name).iter().zip(b.values(name)).map(|(a, b)| of_a * a + of_b * b).collect();
        assert_eq!(read(&out, name), expected, "{name}");
    }
}

#[test]
fn modules_are_merged_apart() {
    let mut models = [Model::new(1, 0, &WORDS), Model::new(2, 0, &WORDS)];
    for (seed, model) in (10..).zip(&mut models) {
        let layers = Model::new(seed, 2, &WORDS).tensors;
        model.tensors.clear();
        for (name, tensor) in layers {
            for part in ["encoder", "decoder"] {
                if let Some(rest) = name.strip_prefix("model.layers.") {
                    model.tensors.insert(format!("{part}.block.{rest}"), tensor.clone());
                }
            }
        }
        model.tensors.insert("shared.weight".into(), (vec![WORDS.len(), HIDDEN], vec![seed as f32; WORDS.len() * HIDDEN]));
    }
    models[0].config["num_layers"] = json!(2);
    models[0].config["num_decoder_layers"] = json!(2);
    let bench = Bench::new(&[("a", &models[0]), ("b", &models[1])]);
    let yaml = "merge_method: passthrough\nmodules:\n  encoder: {models: [{model: a}]}\n  decoder:\n    slices:\n      - sources: [{model: b, layer_range: [0, 2]}]\n      - sources: [{model: b, layer_range: [1, 2]}]\n";
    let out = bench.merge(yaml, "out", &[]);
    let name = |part: &str, layer: usize| format!("{part}.block.{layer}.mlp.up_proj.weight");
    assert_eq!(read(&out, &name("encoder", 1)), models[0].values(&name("encoder", 1)));
    assert_eq!(read(&out, &name("decoder", 2)), models[1].values(&name("decoder", 1)));
    assert_eq!(read(&out, "shared.weight"), models[0].values("shared.weight"));
    let config = json(&out.join("config.json"));
    assert_eq!((&config["num_layers"], &config["num_decoder_layers"]), (&json!(2), &json!(3)));
}

/// Three models whose vocabularies overlap: the base, one with two tokens more, one in another order.
fn speakers() -> (Bench, Model, Model, Model) {
    let base = Model::new(1, 1, &["<s>", "a", "b", "c"]);
    let more = Model::new(2, 1, &["<s>", "a", "b", "c", "x", "y"]);
    let other = Model::new(3, 1, &["<s>", "y", "b", "z"]);
    let bench = Bench::new(&[("base", &base), ("more", &more), ("other", &other)]);
    (bench, base, more, other)
}

const SUM: &str =
    "merge_method: linear\nparameters: {normalize: false, weight: 1}\nmodels: [{model: base}, {model: more}, {model: other}]\n";

fn sum(rows: &[&[f32]]) -> Vec<f32> {
    (0..HIDDEN).map(|column| rows.iter().map(|row| f64::from(row[column])).sum::<f64>() as f32).collect()
}

#[test]
fn a_union_of_vocabularies_has_every_token() {
    let (bench, base, more, other) = speakers();
    let out = bench.merge(&format!("{SUM}tokenizer_source: union\n"), "out", &[]);
    assert_eq!(json(&out.join("config.json"))["vocab_size"], 7);
    let tokenizer = json(&out.join("tokenizer.json"));
    let added: Vec<_> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| (token["id"].as_u64().unwrap(), token["content"].as_str().unwrap()))
        .collect();
    assert_eq!(added, [(4, "x"), (5, "y"), (6, "z")]);
    for tensor in [EMBED, "lm_head.weight"] {
        let rows = read(&out, tensor);
        let row = |id: usize| &rows[id * HIDDEN..][..HIDDEN];
        let (base, more, other) = (|row| base.row(tensor, row), |row| more.row(tensor, row), |row| other.row(tensor, row));
        // "b" is in all of them, at the third place.
        assert_eq!(row(2), sum(&[base(2), more(2), other(2)]), "b");
        // "a" is missing in the last, which takes that of the mean of those that have it: there is no base.
        assert_eq!(row(1), sum(&[base(1), more(1), &mean(base(1), more(1))]), "a");
        // "x" is in one only, which all others take it from.
        assert_eq!(row(4), sum(&[more(4), more(4), more(4)]), "x");
        // "y" is in two, at different places.
        assert_eq!(row(5), sum(&[&mean(more(5), other(1)), more(5), other(1)]), "y");
        assert_eq!(row(6), sum(&[other(3), other(3), other(3)]), "z");
    }
}

#[test]
fn the_bases_embedding_stands_in_where_a_model_lacks_a_token() {
    let (bench, base, more, other) = speakers();
    let yaml =
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: more}, {model: other}]\ntokenizer_source: base\n";
    let out = bench.merge(yaml, "out", &[]);
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), fs::read(bench.path("base/tokenizer.json")).unwrap());
    let rows = read(&out, EMBED);
    assert_eq!(rows.len(), 4 * HIDDEN);
    let (of_base, of_more) = (base.row(EMBED, 1), more.row(EMBED, 1));
    // "a" is missing in the last: no difference to the base from there.
    assert_eq!(rows[HIDDEN..2 * HIDDEN], *of_more);
    let expected: Vec<_> = (0..HIDDEN).map(|c| more.row(EMBED, 2)[c] + other.row(EMBED, 2)[c] - base.row(EMBED, 2)[c]).collect();
    assert_eq!(rows[2 * HIDDEN..3 * HIDDEN], expected);
    assert_ne!(of_base, of_more);
}

#[test]
fn a_models_vocabulary_and_rules_for_tokens_are_followed() {
    let (bench, base, more, other) = speakers();
    let yaml = format!(
        "{SUM}tokenizer:\n  source: other\n  pad_to_multiple_of: 4\n  tokens:\n    y: {{source: {{kind: model_token, model: base, token: c}}, force: true}}\n    z: {{source: base}}\n"
    );
    fs::write(bench.path("merge.yaml"), &yaml).unwrap();
    let refused = bench.run(&["merge", "merge.yaml", "--out", "out"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("tokenizer.tokens.z: model base has no embedding of token \"z\""));
    let yaml = yaml.replace(
        "z: {source: base}",
        "z: {source: {kind: zero}}\n    new: {source: {kind: model_token, model: more, token_id: 5}}",
    );
    let out = bench.merge(&yaml, "out", &[]);
    let rows = read(&out, EMBED);
    let row = |id: usize| &rows[id * HIDDEN..][..HIDDEN];
    assert_eq!((rows.len() / HIDDEN, &json(&out.join("config.json"))["vocab_size"]), (8, &json!(8)));
    let c = base.row(EMBED, 3);
    assert_eq!(row(1), sum(&[c, c, c]), "y is forced");
    assert_eq!(row(3), other.row(EMBED, 3), "z is zero in the models that lack it");
    let y = more.row(EMBED, 5);
    assert_eq!(row(4), sum(&[y, y, y]), "new");
    // Padding is the mean of each model's rows.
    let of_all: Vec<f32> = (0..HIDDEN).map(|column| (0..5).map(|id| row(id)[column]).sum::<f32>() / 5.0).collect();
    assert!(row(7).iter().zip(&of_all).all(|(found, expected)| (found - expected).abs() < 1e-6), "{:?} {of_all:?}", row(7));
    assert_eq!(json(&out.join("tokenizer.json"))["added_tokens"][0]["content"], "new");
}

#[test]
fn the_most_common_chat_template_is_chosen() {
    let (bench, ..) = speakers();
    let other = Model::new(9, 1, &["<t>", "a", "b", "c"]);
    other.write(&bench.path("other"));
    let out = bench.merge(&format!("{SUM}tokenizer_source: base\nchat_template: auto\n"), "out", &[]);
    assert_eq!(fs::read_to_string(out.join("chat_template.jinja")).unwrap(), "{{ '<s>' }}");
}

#[test]
fn an_adapter_is_named_after_a_plus() {
    let base = Model::new(1, 1, &WORDS);
    let bench = Bench::new(&[("base", &base)]);
    let mut adapter = Model::new(1, 0, &WORDS);
    let q = "model.layers.0.self_attn.q_proj";
    adapter.tensors = [
        (format!("base_model.model.{q}.lora_A.weight"), (vec![1, HIDDEN], vec![1.0; HIDDEN])),
        (format!("base_model.model.{q}.lora_B.weight"), (vec![HIDDEN, 1], vec![0.25; HIDDEN])),
    ]
    .into();
    fs::create_dir(bench.path("lora")).unwrap();
    let names: Vec<_> = adapter.tensors.keys().cloned().collect();
    adapter.write_file(&bench.path("lora/adapter_model.safetensors"), &names);
    let config = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": bench.path("base") });
    fs::write(bench.path("lora/adapter_config.json"), config.to_string()).unwrap();
    // Named with its base, over the definition's base, or over the base that its own config names.
    for (index, yaml) in [
        "merge_method: linear\nmodels: [{model: base}, {model: base+lora}]\n",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: lora, parameters: {weight: 0.5}}]\n",
        "merge_method: linear\nmodels: [{model: base}, {model: lora}]\n",
    ]
    .into_iter()
    .enumerate()
    {
        let out = bench.merge(yaml, &format!("out{index}"), &[]);
        let expected: Vec<_> = base.values(&format!("{q}.weight")).iter().map(|value| value + 0.25).collect();
        assert_eq!(read(&out, &format!("{q}.weight")), expected, "{yaml}");
        assert_eq!(read(&out, EMBED), base.values(EMBED));
    }
}

/// (IA)³ adapters with these names, and as many plain models that hold the same vectors beside one that holds ones.
fn vectors(bench: &Bench, adapters: &[&str]) {
    let names: Vec<_> =
        ["0.self_attn.k_proj", "0.mlp.down_proj"].map(|name| format!("base_model.model.layers.{name}.ia3_l")).into();
    let shapes = [vec![40, 1], vec![1, 90]];
    let model = |value: &dyn Fn(&str, usize) -> f32| {
        let mut model = Model::new(1, 0, &WORDS);
        let tensor = |(name, shape): (&String, &Vec<usize>)| {
            let values = (0..shape.iter().product()).map(|element| value(name, element)).collect();
            (name.clone(), (shape.clone(), values))
        };
        model.tensors = names.iter().zip(&shapes).map(tensor).collect();
        model
    };
    model(&|_, _| 1.0).write(&bench.path("plain-ones"));
    for (seed, adapter) in adapters.iter().enumerate() {
        let values = model(&|name, element| 1.0 + 0.1 * models::draw(seed as u32, name, element));
        values.write(&bench.path(&format!("plain-{adapter}")));
        fs::create_dir(bench.path(adapter)).unwrap();
        values.write_file(&bench.path(&format!("{adapter}/adapter_model.safetensors")), &names);
        let config =
            json!({ "peft_type": "IA3", "feedforward_modules": ["down_proj"], "target_modules": ["k_proj", "down_proj"] });
        fs::write(bench.path(&format!("{adapter}/adapter_config.json")), config.to_string()).unwrap();
    }
}

#[test]
fn the_vectors_of_adapters_are_merged_over_ones() {
    let bench = Bench::new(&[]);
    vectors(&bench, &["x", "y", "z"]);
    for (index, head) in [
        "merge_method: pcb\nparameters: {variant: nlp}\n",
        "merge_method: ties\nparameters: {density: 0.4}\n",
        "merge_method: linear\n",
    ]
    .iter()
    .enumerate()
    {
        let out = bench.merge(
            &format!("{head}ia3: true\nmodels: [{{model: x}}, {{model: y}}, {{model: z}}]\n"),
            &format!("out{index}"),
            &[],
        );
        let plain =
            format!("{head}base_model: plain-ones\nmodels: [{{model: plain-x}}, {{model: plain-y}}, {{model: plain-z}}]\n");
        let plain = bench.merge(&plain, &format!("plain{index}"), &[]);
        let merged = Checkpoint::open(&out.join("adapter_model.safetensors")).unwrap();
        assert_eq!(merged.tensors().len(), 2);
        for name in merged.tensors().keys() {
            let values = read(&out.join("adapter_model.safetensors"), name);
            assert_eq!(values, read(&plain, name), "{head} {name}");
            assert!(values.iter().any(|value| *value != 1.0) && values != read(&bench.path("plain-x"), name));
        }
        assert_eq!(fs::read(out.join("adapter_config.json")).unwrap(), fs::read(bench.path("x/adapter_config.json")).unwrap());
        assert!(!out.join("config.json").exists());
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(card.starts_with("---\nbase_model:\n- \"x\"\n- \"y\"\n- \"z\"\nlibrary_name: peft\n"), "{card}");
    }
}

#[test]
fn what_is_no_vector_of_an_adapter_is_refused() {
    let bench = Bench::new(&[]);
    vectors(&bench, &["x", "y"]);
    let merge = |more: &str, second: &str| {
        bench.refuses(&format!("merge_method: ties\nia3: true\n{more}models: [{{model: x}}, {{model: {second}}}]\n"), &[])
    };
    let refused = [
        (merge("base_model: plain-x\n", "y"), "base_model does not fit ia3: true"),
        (merge("", "plain-y"), "is no PEFT adapter"),
        (merge("", "plain-y+y"), "the adapter alone is expected"),
        (bench.refuses("merge_method: ties\nia3: 3\nmodels: [{model: x}]\n", &[]), "true or false"),
    ];
    refused.iter().for_each(|(sentence, expected)| assert!(sentence.contains(expected), "{sentence}"));
    let config = json!({ "peft_type": "IA3", "feedforward_modules": [], "target_modules": ["k_proj", "down_proj"] });
    fs::write(bench.path("y/adapter_config.json"), config.to_string()).unwrap();
    let sentence = merge("", "y");
    assert!(sentence.contains("mlp.down_proj.ia3_l\" scales a module's inputs in one of x and y"), "{sentence}");
    let config = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 1 });
    fs::write(bench.path("y/adapter_config.json"), config.to_string()).unwrap();
    let sentence = merge("", "y");
    assert!(sentence.contains("is a LoRA adapter, whose factors have no meaning one by one"), "{sentence}");
}

#[test]
fn types_may_differ_where_the_results_is_given() {
    let (a, mut b) = (Model::new(1, 1, &WORDS), Model::new(2, 1, &WORDS));
    b.dtype = Dtype::BF16;
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    let yaml = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n";
    let out = bench.merge(&format!("{yaml}out_dtype: float32\n"), "out", &[]);
    let truncated = |value: &f32| f32::from_bits(value.to_bits() & 0xFFFF_0000);
    let expected: Vec<_> = b.values(EMBED).iter().map(truncated).collect();
    assert_eq!(read(&out, EMBED), mean(a.values(EMBED), &expected));
}

#[test]
fn other_tensors_are_copied_as_they_are() {
    let (a, b) = (Model::new(1, 1, &WORDS), Model::new(2, 1, &WORDS));
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    // An integer buffer that only the first has, written behind the others.
    let path = bench.path("a/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids: Vec<u8> = (0..4i64).flat_map(i64::to_le_bytes).collect();
    let mut views: Vec<(String, safetensors::tensor::TensorView<'_>)> = file.tensors();
    views.push(("model.position_ids".into(), safetensors::tensor::TensorView::new(Dtype::I64, vec![4], &ids).unwrap()));
    let whole = safetensors::serialize(views, None).unwrap();
    fs::write(&path, whole).unwrap();
    let out = bench.merge("merge_method: linear\nmodels: [{model: a}, {model: b}]\n", "out", &["--dtype", "float16"]);
    let written = fs::read(out.join("model.safetensors")).unwrap();
    let written = safetensors::SafeTensors::deserialize(&written).unwrap();
    assert_eq!(written.tensor("model.position_ids").unwrap().data(), ids);
    assert_eq!(written.tensor(EMBED).unwrap().dtype(), Dtype::F16);
    assert!(Path::new(&out).join("README.md").exists());
}
