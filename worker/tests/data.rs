//! Parquet, Arrow and `datasets` folders as their own libraries write them; `golden/make_data.py` made the files.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::path::{Path, PathBuf};

use evolver_common::data::{self, Row};
use serde_json::{Value, json};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data").join(name)
}

fn column(rows: &[Row], name: &str) -> Vec<Value> {
    rows.iter().map(|row| row.get(name).unwrap().clone()).collect()
}

#[test]
fn columns_of_every_kind_become_json() {
    for name in ["snappy.parquet", "zstd.parquet", "file.arrow"] {
        let rows = data::read(&path(name)).unwrap();
        assert_eq!(column(&rows, "text"), ["good", "bäd", ""], "{name}");
        assert_eq!(column(&rows, "label"), [1, 0, 1]);
        assert_eq!(column(&rows, "score"), [json!(0.5), json!(-1.25), Value::Null]);
        assert_eq!(column(&rows, "tokens"), [json!(["go", "od"]), json!([]), json!(["x"])]);
        assert_eq!(column(&rows, "tags"), [json!([0, 1]), json!([]), json!([2])]);
        assert_eq!(column(&rows, "kind"), ["p", "q", "p"], "a dictionary's values");
        assert_eq!(column(&rows, "yes"), [json!(true), json!(false), Value::Null]);
        assert_eq!(rows[0].text("answers.text.1").unwrap(), "b");
        // Base64 of the bytes.
        assert_eq!(column(&rows, "image.bytes"), [json!("iVBORw=="), Value::Null, json!("")]);
        assert_eq!(rows[1].text("image.path").unwrap(), "x.png");
        let error = rows[2].need("when").unwrap_err().to_string();
        assert!(error.contains(", row 3: field \"when\""), "a type without a JSON counterpart is left out: {error}");
    }
}

#[test]
fn folders_of_datasets_are_read_by_split() {
    let rows = data::read(&path("saved/train")).unwrap();
    assert_eq!(column(&rows, "text"), ["good", "bäd", ""], "both shards, in their order");
    assert_eq!(column(&data::read(&path("saved/validation")).unwrap(), "label"), [0]);
    let error = data::read(&path("saved")).unwrap_err().to_string();
    assert!(error.contains("the splits train, validation: name one"), "{error}");
    let labels = ["bad".to_owned(), "good".to_owned()];
    assert_eq!(rows[0].label("label", &labels).unwrap(), 1);
}

#[test]
fn a_digest_is_of_all_files_and_a_damaged_one_is_told_of() {
    assert_ne!(data::digest(&path("saved/train")).unwrap(), data::digest(&path("saved/validation")).unwrap());
    assert_eq!(data::digest(&path("saved/train")).unwrap(), data::digest(&path("saved/train/data-*.arrow")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    for (name, expected) in [("zstd.parquet", "not a Parquet file"), ("file.arrow", "not an Arrow file")] {
        let mut bytes = std::fs::read(path(name)).unwrap();
        bytes.truncate(bytes.len() / 2);
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let error = data::read(&folder.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
}
