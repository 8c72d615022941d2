//! Bad input to `evolver merge`: each with a sentence, exit code 2, and nothing written.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod models;

use std::{
    fs,
    process::{Command, Stdio},
};

use models::{Bench, HIDDEN, Model, json, read};
use safetensors::Dtype;
use serde_json::json;

const WORDS: [&str; 5] = ["<s>", "a", "b", "c", "d"];
const LINEAR: &str = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n";
const TIES: &str = "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\n";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";

fn bench() -> Bench {
    Bench::new(&[("a", &Model::new(1, 1, &WORDS)), ("b", &Model::new(2, 1, &WORDS))])
}

/// Whether a sentence holds all these words.
fn says(sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "{word:?} is missing in {sentence}");
    }
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let bench = bench();
    let path = bench.path("b/model.safetensors");
    let sound = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    let (header, data) = (std::str::from_utf8(&sound[8..8 + length]).unwrap(), &sound[8 + length..]);
    let file = |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let swap = |from: &str, to: &str| {
        assert!(header.contains(from), "{header}");
        file(&header.replacen(from, to, 1), data)
    };
    let bomb = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (sound[..sound.len() - 3].to_vec(), "truncated or damaged"),
        (sound[..length / 2].to_vec(), "truncated"),
        (Vec::new(), "truncated"),
        (bomb, "the header claims 18446744073709551615 bytes"),
        (file("{]", &[]), "not a safetensors header"),
        (file(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), &[]), "not a safetensors header"),
        (swap("\"data_offsets\":[0,", "\"data_offsets\":[1,"), "do not hold"),
        (swap("\"dtype\":\"F32\"", "\"dtype\":\"F8_E5M2\""), "F8_E5M2 (FP8) cannot be read"),
        (swap("\"shape\":[5,4]", "\"shape\":[4611686018427387904,4]"), "overflows"),
        (swap("lm_head.weight", "model.embed_tokens.weight"), "twice"),
        (swap("lm_head.weight", "../lm_head.weight"), "such a name is not allowed"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        says(&bench.refuses(LINEAR, &[]), &["b/model.safetensors", expected]);
    }
    // Overlap: two tensors of one size at the same place, and the file's end where the last should end.
    let overlapping =
        r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    fs::write(&path, file(overlapping, &[0; 8])).unwrap();
    says(&bench.refuses(LINEAR, &[]), &["must not overlap"]);
}

#[test]
fn data_at_odd_addresses_is_read_as_it_is() {
    let bench = bench();
    let path = bench.path("b/model.safetensors");
    let sound = fs::read(&path).unwrap();
    let expected = bench.merge(LINEAR, "expected", &[]);
    let length = u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    for shift in 1..4u64 {
        let moved =
            [&(length as u64 + shift).to_le_bytes(), &sound[8..8 + length], &b"   "[..shift as usize], &sound[8 + length..]]
                .concat();
        fs::write(&path, moved).unwrap();
        let out = bench.merge(LINEAR, &format!("out{shift}"), &[]);
        let weights = |folder: &std::path::Path| fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(weights(&out), weights(&expected));
    }
}

#[test]
fn shards_that_are_missing_and_indices_that_lie_are_refused() {
    let bench = bench();
    let model = Model::new(2, 1, &WORDS);
    let folder = bench.path("b");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    model.write_sharded(&folder);
    let index = folder.join("model.safetensors.index.json");
    let sound = json(&index);
    let shard = sound["weight_map"]["lm_head.weight"].as_str().unwrap().to_owned();
    fs::rename(folder.join(&shard), folder.join("away")).unwrap();
    says(&bench.refuses(LINEAR, &[]), &["\"lm_head.weight\"", &shard, "there is no such file", "incomplete"]);
    fs::rename(folder.join("away"), folder.join(&shard)).unwrap();
    let mut lies = Vec::new();
    let mut lie = |change: &dyn Fn(&mut serde_json::Value), expected: &'static str| {
        let mut index = sound.clone();
        change(&mut index);
        lies.push((index.to_string(), expected));
    };
    lie(&|index| index["weight_map"]["ghost"] = shard.clone().into(), "which does not hold it");
    lie(&|index| drop(index["weight_map"].as_object_mut().unwrap().remove(Q)), "is missing");
    lie(&|index| index["weight_map"][Q] = shard.clone().into(), "which does not hold it");
    lie(&|index| index["weight_map"][Q] = "../a/model.safetensors".into(), "of the same folder is expected");
    lie(&|index| index["weight_map"][Q] = "/etc/passwd".into(), "of the same folder is expected");
    lie(&|index| index["weight_map"] = json!(7), "not an index");
    lies.push(("{".into(), "not JSON"));
    for (text, expected) in lies {
        fs::write(&index, &text).unwrap();
        says(&bench.refuses(LINEAR, &[]), &[expected]);
    }
}

#[test]
fn quantized_models_are_refused_by_the_name_of_their_format() {
    let bench = bench();
    for (section, expected) in [
        (json!({ "quant_method": "gptq", "bits": 4 }), "GPTQ, 4 bits"),
        (json!({ "quant_method": "awq", "bits": 4 }), "AWQ, 4 bits"),
        (json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), "bitsandbytes, 4 bits"),
        (json!({ "quant_method": "compressed-tensors" }), "compressed-tensors"),
        (json!({ "quant_method": "fp8" }), "FP8"),
    ] {
        let mut model = Model::new(2, 1, &WORDS);
        model.config["quantization_config"] = section;
        model.write(&bench.path("b"));
        says(&bench.refuses(LINEAR, &[]), &["b/config.json", "quantized", expected, "dequantize"]);
    }
    // Without a word in the config, the tensors' names tell.
    let mut model = Model::new(2, 1, &WORDS);
    let tensor = model.tensors[Q].clone();
    model.tensors.insert("model.layers.0.self_attn.q_proj.qweight".into(), tensor);
    model.write(&bench.path("b"));
    says(&bench.refuses(LINEAR, &[]), &["qweight", "GPTQ or AWQ"]);
}

#[test]
fn nan_and_infinity_are_named_and_counted_or_copied_through() {
    let (a, mut b) = (Model::new(1, 1, &WORDS), Model::new(2, 1, &WORDS));
    let values = &mut b.tensors.get_mut(Q).unwrap().1;
    (values[3], values[5], values[11]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    let sentence = bench.refuses(LINEAR, &[]);
    says(&sentence, &[Q, "3 values that are NaN or infinite", "the first at element 3", "--allow-non-finite"]);
    let out = bench.merge(LINEAR, "out", &["--allow-non-finite"]);
    let found = read(&out, Q);
    assert!(found[3].is_nan() && found[5] == f32::INFINITY && found[11] == f32::NEG_INFINITY);
    assert!(found.iter().enumerate().all(|(at, value)| [3, 5, 11].contains(&at) || value.is_finite()));
    // Every method ends on such input, whatever comes out.
    for method in evolver_common::merge::METHODS {
        let yaml = format!("merge_method: {}\nbase_model: a\nmodels: [{{model: b}}]\n", method.name());
        fs::write(bench.path("merge.yaml"), yaml).unwrap();
        let output = bench.run(&["merge", "merge.yaml", "--out", method.name(), "--allow-non-finite"]);
        assert!(output.status.success() || output.status.code() == Some(2), "{}: {output:?}", method.name());
    }
}

#[test]
fn models_that_do_not_fit_are_refused_with_every_difference() {
    let bench = bench();
    let mut model = Model::new(2, 1, &WORDS);
    model.tensors.insert(Q.into(), (vec![2, 8], vec![0.5; 16]));
    model.tensors.remove("model.norm.weight");
    model.tensors.insert("model.extra.weight".into(), (vec![1], vec![0.5]));
    model.tensors.remove("lm_head.weight");
    model.write(&bench.path("b"));
    let sentence = bench.refuses(LINEAR, &[]);
    says(
        &sentence,
        &[
            Q,
            "has shape [2, 8], and [4, 4] is expected",
            "\"model.norm.weight\" is missing",
            "\"model.extra.weight\" is not in the base",
            "tied",
        ],
    );
    assert_eq!(sentence.lines().count(), 4, "{sentence}");
    // Tied the other way round.
    let mut tied = Model::new(1, 1, &WORDS);
    tied.tensors.remove("lm_head.weight");
    tied.write(&bench.path("a"));
    Model::new(2, 1, &WORDS).write(&bench.path("b"));
    says(&bench.refuses(LINEAR, &[]), &["b: tensor \"lm_head.weight\" is not in the base", "tie_word_embeddings"]);
}

#[test]
fn types_that_differ_need_a_word() {
    let bench = bench();
    let mut model = Model::new(2, 1, &WORDS);
    model.dtype = Dtype::BF16;
    model.write(&bench.path("b"));
    says(&bench.refuses(LINEAR, &[]), &["is BF16, and the base's is F32", "dtype or out_dtype"]);
}

#[test]
fn vocabularies_that_differ_need_a_rule() {
    let bench = bench();
    Model::new(2, 1, &["<s>", "a", "b", "d", "c"]).write(&bench.path("b"));
    says(&bench.refuses(LINEAR, &[]), &["another vocabulary", "\"c\" (4), \"d\" (3)", "tokenizer_source"]);
    Model::new(2, 1, &["<s>", "a", "b", "c", "d", "e"]).write(&bench.path("b"));
    says(&bench.refuses(LINEAR, &[]), &["has shape [6, 4], and [5, 4] is expected; the vocabulary differs", "\"e\" (5)"]);
    fs::remove_file(bench.path("b/tokenizer.json")).unwrap();
    says(&bench.refuses(&format!("{LINEAR}tokenizer_source: union\n"), &[]), &["b has no tokenizer.json"]);
    fs::write(bench.path("b/tokenizer.json"), "{}").unwrap();
    says(&bench.refuses(&format!("{LINEAR}tokenizer_source: union\n"), &[]), &["b/tokenizer.json", "no model.vocab"]);
}

#[test]
fn definitions_that_make_no_sense_are_refused() {
    let bench = bench();
    for (yaml, words) in [
        ("merge_method: tees\nmodels: [{model: a}]\n", vec!["unknown merge method \"tees\" (did you mean \"ties\"?)"]),
        ("merge_method: ties\nmodels: [{model: a}, {model: b}]\n", vec!["ties", "a base model is needed"]),
        (&format!("{TIES}parameters: {{densty: 0.5}}\n"), vec!["unknown parameter \"densty\" (did you mean \"density\"?)"]),
        (&format!("{TIES}parameters: {{density: 1.5}}\n"), vec!["density is 1.5: it must lie between 0 and 1"]),
        (&format!("{TIES}parameters: {{density: 0}}\n"), vec!["density of b is 0 at every tensor"]),
        (
            "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]\n",
            vec!["the weights at tensor", "sum to 0", "normalize: false"],
        ),
        (&format!("{TIES}parameters: {{weight: 0}}\n"), vec!["sum to 0"]),
        ("merge_method: linear\nmodels: [{model: a}, {model: nowhere}]\n", vec!["model nowhere", "no such file or folder"]),
        (&format!("{LINEAR}slices: []\nmergemethod: x\n"), vec!["unknown key \"mergemethod\" (did you mean \"merge_method\"?)"]),
        (&format!("{LINEAR}chat_template: chatnl\n"), vec!["did you mean \"chatml\""]),
        ("merge_method: linear\nmodels: [", vec!["merge.yaml"]),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n",
            vec!["slices[0]: layer_range of a is [0, 2], and model.layers.* has 1 layers"],
        ),
        (
            "merge_method: ties\nbase_model: a\nslices: [{sources: [{model: b, layer_range: [0, 1]}]}]\n",
            vec!["base_model a is not among its sources"],
        ),
        (
            "merge_method: linear\nmodules: {vision_tower: {models: [{model: a}]}, text_decoder: {models: [{model: a}]}}\n",
            vec!["modules.vision_tower", "no tensor"],
        ),
    ] {
        says(&bench.refuses(yaml, &[]), &words);
    }
    says(&bench.refusal(&["merge", "nowhere.yaml", "--out", "out"]), &["nowhere.yaml", "cannot be read"]);
    fs::write(bench.path("merge.txt"), LINEAR).unwrap();
    says(&bench.refusal(&["merge", "merge.txt", "--out", "out"]), &["is a .yaml, .yml or .toml file"]);
}

#[test]
fn what_is_there_is_never_overwritten() {
    let bench = bench();
    fs::create_dir(bench.path("out")).unwrap();
    fs::write(bench.path("out/precious"), "x").unwrap();
    says(&bench.refuses(LINEAR, &[]), &["out exists and is not an empty folder"]);
    assert_eq!(fs::read_to_string(bench.path("out/precious")).unwrap(), "x");
    fs::remove_file(bench.path("out/precious")).unwrap();
    bench.merge(LINEAR, "out", &[]);
}

#[test]
fn adapters_that_cannot_be_read_are_refused() {
    let bench = bench();
    fs::create_dir(bench.path("lora")).unwrap();
    let config = |tree: serde_json::Value| fs::write(bench.path("lora/adapter_config.json"), tree.to_string()).unwrap();
    let yaml = "merge_method: linear\nmodels: [{model: a}, {model: a+lora}]\n";
    config(json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 2 }));
    fs::write(bench.path("lora/adapter_model.bin"), "").unwrap();
    says(&bench.refuses(yaml, &[]), &["adapter_model.safetensors", "is missing", "is a pickle"]);
    let mut adapter = Model::new(1, 0, &WORDS);
    let tensor =
        |name: &str, shape: &[usize]| (format!("base_model.model.{name}"), (shape.to_vec(), vec![0.5; shape.iter().product()]));
    let q = "model.layers.0.self_attn.q_proj";
    type Tensor = (String, (Vec<usize>, Vec<f32>));
    let mut write = |tensors: Vec<Tensor>| {
        adapter.tensors = tensors.into_iter().collect();
        let names: Vec<_> = adapter.tensors.keys().cloned().collect();
        adapter.write_file(&bench.path("lora/adapter_model.safetensors"), &names);
    };
    let pair = |module: &str, a: &[usize], b: &[usize]| {
        vec![tensor(&format!("{module}.lora_A.weight"), a), tensor(&format!("{module}.lora_B.weight"), b)]
    };
    for (tensors, expected) in [
        (pair(q, &[2, HIDDEN], &[HIDDEN, 2]), "do not fit rank 1"),
        (pair(q, &[1, 3], &[HIDDEN, 1]), "as if its shape were [4, 3]"),
        (pair("model.layers.9.q", &[1, HIDDEN], &[HIDDEN, 1]), "which the base lacks"),
        (vec![tensor(&format!("{q}.lora_A.weight"), &[1, HIDDEN])], "lora_B.weight\" is missing"),
        (vec![tensor(&format!("{q}.lora_B.weight"), &[HIDDEN, 1])], "stands without"),
        (vec![tensor(&format!("{q}.lora_magnitude_vector"), &[HIDDEN])], "a kind of adapter that cannot be read"),
        (vec![tensor("ghost.weight", &[1])], "it replaces tensor \"ghost.weight\", which the base lacks"),
    ] {
        write(tensors);
        says(&bench.refuses(yaml, &[]), &["lora/adapter_model.safetensors", expected]);
    }
    config(json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 2, "use_dora": true }));
    says(&bench.refuses(yaml, &[]), &["lora/adapter_config.json", "DoRA"]);
    says(&bench.refuses("merge_method: linear\nmodels: [{model: b}, {model: a+b}]\n", &[]), &["no PEFT adapter"]);
    config(json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 2 }));
    says(&bench.refuses("merge_method: linear\nmodels: [{model: lora}]\n", &[]), &["no base_model is given"]);
    // An adapter of the output embeddings of a base that has none of its own.
    let mut tied = Model::new(1, 1, &WORDS);
    tied.tensors.remove("lm_head.weight");
    tied.write(&bench.path("a"));
    write(pair("lm_head", &[1, HIDDEN], &[WORDS.len(), 1]));
    says(&bench.refuses(yaml, &[]), &["lm_head.weight", "tied"]);
}

/// Runs a merge under a limit on the size of files, which every system has: a write beyond it fails as on a full disk.
#[test]
#[cfg(unix)]
fn a_file_that_cannot_be_finished_leaves_nothing() {
    let (mut a, b) = (Model::new(1, 1, &WORDS), Model::new(2, 1, &WORDS));
    a.tensors.insert("model.layers.0.mlp.big.weight".into(), (vec![600, 1000], vec![0.25; 600_000]));
    let mut b = Model { tensors: b.tensors, ..b };
    b.tensors.insert("model.layers.0.mlp.big.weight".into(), (vec![600, 1000], vec![0.5; 600_000]));
    let bench = Bench::new(&[("a", &a), ("b", &b)]);
    fs::write(bench.path("merge.yaml"), LINEAR).unwrap();
    let limited = |blocks: u32, arguments: &str| {
        // The signal that comes with the limit is ignored, as programs do that want the error instead.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" merge merge.yaml --out out {arguments}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_evolver")]).current_dir(bench.path("")).stdout(Stdio::null());
        command.output().unwrap()
    };
    // The whole file is too large; a shard in the middle is; and with room for all it works, which shows that the limit was what failed.
    for arguments in ["", "--max-shard-size 100KB"] {
        let output = limited(1024, arguments);
        let sentence = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{sentence}");
        says(&sentence, &["cannot write", ".safetensors", "nothing was left behind"]);
        let left: Vec<_> = fs::read_dir(bench.path(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().contains("out"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(limited(40_000, "").status.success());
    assert_eq!(read(&bench.path("out"), "model.layers.0.mlp.big.weight")[7], 0.375);
}

/// The same on a disk that really is full: a small file system in memory, which only the superuser may mount.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_nothing() {
    let bench = bench();
    let disk = bench.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk).stderr(Stdio::null()).status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    }
    let mut big = Model::new(1, 1, &WORDS);
    big.tensors.insert("model.layers.0.mlp.big.weight".into(), (vec![8, 1000], vec![0.25; 8000]));
    big.write(&bench.path("a"));
    fs::write(bench.path("merge.yaml"), "merge_method: passthrough\nmodels: [{model: a}]\n").unwrap();
    // Seen beforehand: 32 kB do not fit where 16 kB are left.
    fs::write(disk.join("ballast"), vec![1; 48 << 10]).unwrap();
    let early = bench.run(&["merge", "merge.yaml", "--out", "disk/out"]);
    // Enough room for the weights, but not for what is written after them.
    fs::write(disk.join("ballast"), vec![1; 24 << 10]).unwrap();
    let late = bench.run(&["merge", "merge.yaml", "--out", "disk/out"]);
    let left: Vec<_> = fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    Command::new("umount").arg(&disk).status().unwrap();
    for (output, words) in [(early, ["free", "nothing was written"]), (late, ["cannot write", "nothing was left behind"])] {
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        says(&String::from_utf8_lossy(&output.stderr), &words);
    }
    assert_eq!(left, ["ballast"]);
}

/// A merge that is interrupted while its folder is under construction.
#[test]
#[cfg(unix)]
fn an_interrupt_leaves_nothing() {
    let bench = bench();
    // Two sparse files of zeros under the method that computes the longest for its bytes, so that a small disk is enough.
    for name in ["a", "b"] {
        let header = r#"{"w":{"dtype":"F32","shape":[5000,5000],"data_offsets":[0,100000000]}}"#;
        let path = bench.path(name).join("model.safetensors");
        fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + 100_000_000).unwrap();
    }
    fs::write(bench.path("merge.yaml"), TIES.replace("ties", "della")).unwrap();
    for signal in ["-INT", "-TERM"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evolver"));
        command.args(["merge", "merge.yaml", "--out", "out"]).current_dir(bench.path("")).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let under_way = || {
            let mut names = fs::read_dir(bench.path("")).unwrap().map(|entry| entry.unwrap().file_name());
            names.any(|name| name.to_string_lossy().starts_with(".out"))
        };
        while !under_way() {
            if child.try_wait().unwrap().is_some() {
                panic!("it ended before a folder was seen: {:?}", child.wait_with_output());
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        assert!(!under_way() && !bench.path("out").exists());
    }
}
