//! PEFT adapters against what the real peft merges (`golden/make_adapters.py`).
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use evolver_common::checkpoint::{Checkpoint, Patterns, fit};
use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

const CASES: [&str; 12] = [
    "plain",
    "rslora",
    "patterns",
    "embedding",
    "saved",
    "tied",
    "biases",
    "conv1d",
    "convolutions",
    "ia3",
    "ia3_conv1d",
    "ia3_convolutions",
];

fn whole(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let view = checkpoint.view(name).unwrap();
    let mut values = vec![0.0; view.elements()];
    view.read(0..values.len(), &mut values).unwrap();
    values
}

#[test]
fn adapters_read_as_peft_merges_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters");
    for case in CASES {
        let folder = root.join(case);
        let base = Arc::new(Checkpoint::open(&folder.join("base.safetensors")).unwrap());
        let merged = Checkpoint::open(&folder.join("merged.safetensors")).unwrap();
        let adapted = Checkpoint::open_over(&folder, &base).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(adapted.tensors(), merged.tensors(), "{case}");
        let mut changed = 0;
        for name in merged.tensors().keys() {
            let (found, expected) = (whole(&adapted, name), whole(&merged, name));
            for (element, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (found - expected).abs() / expected.abs().max(1.0);
                assert!(error <= 2e-6, "{case}: {name}[{element}] is {found}, and {expected} is expected");
            }
            changed += usize::from(found != whole(&base, name));
            // Any block alone is a slice of the whole.
            let view = adapted.view(name).unwrap();
            for start in 0..found.len().min(40) {
                let end = found.len().min(start + 13);
                let mut block = vec![0.0; end - start];
                view.read(start..end, &mut block).unwrap();
                assert_eq!(block, found[start..end], "{case}: {name} from {start}");
            }
        }
        assert!(changed > 0, "{case} changes nothing");
    }
}

#[test]
fn what_an_adapter_saves_along_may_be_of_another_type_than_its_base() {
    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters/saved");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(saved.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let bytes = fs::read(saved.join("adapter_model.safetensors")).unwrap();
    let narrow = |bytes: &[u8]| -> Vec<u8> {
        let (values, _) = bytes.as_chunks::<4>();
        values.iter().flat_map(|value| f16::from_f32(f32::from_le_bytes(*value)).to_le_bytes()).collect()
    };
    let parts = SafeTensors::deserialize(&bytes).unwrap();
    let parts: BTreeMap<_, _> =
        parts.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), narrow(view.data())))).collect();
    let views = parts.iter().map(|(name, (shape, data))| (name, TensorView::new(Dtype::F16, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("adapter_model.safetensors")).unwrap();

    let base = Arc::new(Checkpoint::open(&saved.join("base.safetensors")).unwrap());
    let adapted = Checkpoint::open_over(folder.path(), &base).unwrap();
    let along = adapted.tensors().iter().filter(|(name, info)| info.dtype != base.tensors()[*name].dtype).count();
    assert!(along > 0, "something is saved along in F16");
    fit(&base, &[("adapted", &adapted)], &Patterns::default()).unwrap();
}
