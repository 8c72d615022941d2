//! Labelled items as rows of named fields, whatever file they come from.
//!
//! - [`files`](self): what a path means: a file, several by a pattern, a `datasets` folder, a split of one, a folder of images.
//! - rows are read from JSON lines, JSON, CSV and TSV, and with the feature `columnar` from Parquet and Arrow.
//!
//! What a row means for a task, its evaluator says.

#[cfg(feature = "columnar")]
mod columnar;
mod files;
mod plain;

use std::{
    collections::HashSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};
use thiserror::Error;

use crate::{digest::Digest, suggest};

/// An item's fields with the place that they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    place: Place,
    fields: Map<String, Value>,
}

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: Arc<Path>,
    /// `line` or `row`.
    unit: &'static str,
    /// From 1.
    number: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.file.display(), self.unit, self.number)
    }
}

/// A data file that cannot be used.
#[derive(Debug, Error)]
pub enum DataError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no items.
    #[error("{path} is empty: at least one labelled item is needed", path = .0.display())]
    Empty(PathBuf),
    /// One of its rows is wrong.
    #[error("{place}: {what}")]
    Row {
        /// The row.
        place: Place,
        /// What is wrong there.
        what: String,
    },
    /// The whole of it is wrong, or it is not clear which files are meant.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what would be right.
        what: String,
    },
}

impl Row {
    /// A row that comes from no file, for tests and tools.
    #[must_use]
    pub fn new(number: usize, fields: Map<String, Value>) -> Self {
        Self { place: Place { file: Path::new("memory").into(), unit: "row", number }, fields }
    }

    /// All fields.
    #[must_use]
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The folder of the row's file, from which relative paths in it start.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.place.file.parent().unwrap_or(Path::new(""))
    }

    /// A field by its name, or by a path with dots into nested fields.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.fields.get(column).or_else(|| {
            let mut parts = column.split('.');
            let first = self.fields.get(parts.next()?)?;
            parts.try_fold(first, |value, part| match value {
                Value::Array(items) => items.get(part.parse::<usize>().ok()?),
                value => value.get(part),
            })
        })
    }

    /// A field that has to be there.
    ///
    /// # Errors
    /// Names the row, the field and the nearest one that is there.
    pub fn need(&self, column: &str) -> Result<&Value, DataError> {
        self.get(column).ok_or_else(|| {
            let hint = match suggest::nearest(column, self.fields.keys().map(String::as_str)) {
                Some(near) => format!(" (did you mean {near:?}?)"),
                None => String::new(),
            };
            self.error(format!("field {column:?} is missing{hint}"))
        })
    }

    /// A text field.
    ///
    /// # Errors
    /// If it is missing or not a text.
    pub fn text(&self, column: &str) -> Result<&str, DataError> {
        self.need(column)?.as_str().ok_or_else(|| self.error(format!("field {column:?} is not a text")))
    }

    /// The index of the label in a field, which holds its name or its number.
    ///
    /// # Errors
    /// If it is neither, or there is no such label.
    pub fn label(&self, column: &str, labels: &[String]) -> Result<usize, DataError> {
        self.label_of(self.need(column)?, column, labels)
    }

    /// As [`Row::label`], of a value that was taken out of the field.
    ///
    /// # Errors
    /// As [`Row::label`].
    pub fn label_of(&self, value: &Value, column: &str, labels: &[String]) -> Result<usize, DataError> {
        let index =
            |number: Option<u64>| number.and_then(|number| usize::try_from(number).ok()).filter(|&number| number < labels.len());
        match value {
            Value::String(name) => labels
                .iter()
                .position(|label| label == name)
                // Formats without types have numbers as texts.
                .or_else(|| index(name.parse().ok()))
                .ok_or_else(|| {
                    self.error(format!("unknown label {}", suggest::unknown(name, labels.iter().map(String::as_str))))
                }),
            Value::Number(number) => index(number.as_u64().or_else(|| whole(number.as_f64()?)))
                .ok_or_else(|| self.error(format!("label {number} is not one of the {} labels, counted from 0", labels.len()))),
            _ => Err(self.error(format!("field {column:?} is neither a label's name nor its index"))),
        }
    }

    /// An error that names this row.
    pub fn error(&self, what: impl Into<String>) -> DataError {
        DataError::Row { place: self.place.clone(), what: what.into() }
    }

    /// What the row is known by: its text fields where they are texts, else all that it holds. Labels do not matter, places neither.
    fn key(&self, columns: &[&str]) -> Digest {
        let texts: Option<Vec<_>> = columns.iter().map(|column| self.get(column).and_then(Value::as_str)).collect();
        match texts.as_deref() {
            Some([text]) => Digest::of_parts("evolver item v1", [text.as_bytes(), b""]),
            Some([text, pair]) => Digest::of_parts("evolver item v1", [text.as_bytes(), pair.as_bytes()]),
            _ => Digest::of_parts("evolver row v1", [Value::Object(self.fields.clone()).to_string().as_bytes()]),
        }
    }
}

/// A float that is a whole number from 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and within range")]
fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..1e15).contains(&number)).then_some(number as u64)
}

/// The rows of a data path, file after file in the order of their names, each in its own order.
///
/// # Errors
/// Names the file and the first row that cannot be read.
pub fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let mut rows = Vec::new();
    for source in files::sources(path)? {
        match source {
            files::Source::Plain(file) => plain::read(&file, &mut rows)?,
            #[cfg(feature = "columnar")]
            files::Source::Columnar(file) => columnar::read(&file, &mut rows)?,
            #[cfg(not(feature = "columnar"))]
            files::Source::Columnar(file) => {
                return Err(DataError::File { path: file, what: "this program was built without Parquet and Arrow".into() });
            }
            files::Source::Image { file, label } => {
                let fields = [("image", file.to_string_lossy().into_owned()), ("label", label)];
                let place = Place { file: file.as_path().into(), unit: "row", number: 1 };
                rows.push(Row { place, fields: fields.map(|(key, value)| (key.to_owned(), value.into())).into_iter().collect() });
            }
        }
    }
    if rows.is_empty() {
        return Err(DataError::Empty(path.to_owned()));
    }
    Ok(rows)
}

/// A fixed choice of `count` rows, by the content of `columns` and not by their place, in the data's order; 0 means all.
#[must_use]
pub fn limit(rows: Vec<Row>, count: usize, columns: &[&str]) -> Vec<Row> {
    if count == 0 || count >= rows.len() {
        return rows;
    }
    let mut order: Vec<_> = rows.iter().enumerate().map(|(index, row)| (row.key(columns), index)).collect();
    order.sort_unstable();
    let mut chosen: Vec<_> = order[..count].iter().map(|(_, index)| *index).collect();
    chosen.sort_unstable();
    let mut rows: Vec<_> = rows.into_iter().map(Some).collect();
    chosen.into_iter().filter_map(|index| rows[index].take()).collect()
}

/// Rows of `second` that are in `first` too, by the content of `columns`: their number and the place of the first.
#[must_use]
pub fn shared(first: &[Row], second: &[Row], columns: &[&str]) -> Option<(usize, Place)> {
    let known: HashSet<_> = first.iter().map(|row| row.key(columns)).collect();
    let mut twice = second.iter().filter(|row| known.contains(&row.key(columns)));
    let place = twice.next()?.place.clone();
    Some((1 + twice.count(), place))
}

/// Digest of a data path's content: that of the file, or of all of its files in their order.
///
/// # Errors
/// If it cannot be read.
pub fn digest(path: &Path) -> Result<Digest, DataError> {
    let mut digests = Vec::new();
    for source in files::sources(path)? {
        let (file, label) = match source {
            files::Source::Plain(file) | files::Source::Columnar(file) => (file, String::new()),
            files::Source::Image { file, label } => (file, label),
        };
        let bytes = std::fs::read(&file).map_err(|source| DataError::Read { path: file, source })?;
        digests.push((label, Digest::of(&bytes)));
    }
    match digests.as_slice() {
        [(label, digest)] if label.is_empty() => Ok(*digest),
        several => {
            let parts = several.iter().flat_map(|(label, digest)| [label.as_bytes(), digest.as_bytes().as_slice()]);
            Ok(Digest::of_parts("evolver data v1", parts))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn labels() -> Vec<String> {
        vec!["bad".into(), "good".into()]
    }

    fn read_as(name: &str, content: &str) -> Result<Vec<(String, usize)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let item = |row: &Row| Ok((row.text("text")?.to_owned(), row.label("label", &labels())?));
        let rows = read(&path).map_err(|error| error.to_string())?;
        rows.iter().map(item).collect::<Result<_, DataError>>().map_err(|error| error.to_string())
    }

    #[test]
    fn items_are_read_and_wrong_lines_named() {
        let good = "{\"text\":\"a\",\"label\":\"good\"}\n\n{\"text\":\"b\",\"label\":0}\n";
        assert_eq!(read_as("d.jsonl", good).unwrap(), [("a".into(), 1), ("b".into(), 0)]);
        for (line, expected) in [
            ("{", "line 3: not JSON"),
            ("[1]", "line 3: not a JSON object"),
            ("{\"text\":\"a\",\"label\":\"goood\"}", "did you mean \"good\""),
            ("{\"text\":\"a\",\"label\":2}", "label 2 is not one of the 2"),
            ("{\"texts\":\"a\", \"label\":0}", "field \"text\" is missing (did you mean \"texts\"?)"),
            ("{\"text\":\"a\"}", "\"label\""),
            ("{\"text\":1,\"label\":0}", "\"text\" is not a text"),
        ] {
            let error = read_as("d.jsonl", &format!("{{\"text\":\"a\",\"label\":\"good\"}}\n\n{line}\n")).unwrap_err();
            assert!(error.contains(expected) && error.contains("line 3"), "{error}");
        }
        assert!(read_as("d.jsonl", "\n").unwrap_err().contains("is empty"));
    }

    #[test]
    fn every_plain_format_gives_the_same_rows() {
        let expected = [("a, \"b\"\nc".to_owned(), 1), ("é".to_owned(), 0)];
        let json = r#"[{"text":"a, \"b\"\nc","label":1},{"text":"é","label":"bad"}]"#;
        assert_eq!(read_as("d.json", json).unwrap(), expected);
        assert_eq!(read_as("d.csv", "text,label\n\"a, \"\"b\"\"\nc\",good\né,0\n").unwrap(), expected);
        assert_eq!(read_as("d.tsv", "label\ttext\n1\t\"a, \"\"b\"\"\nc\"\nbad\té\n").unwrap(), expected);
        assert!(read_as("d.csv", "text,label\na,good\nb\n").unwrap_err().contains("line 3"));
        assert!(read_as("d.json", "[{]").unwrap_err().contains("not JSON"));
    }

    #[test]
    fn a_limited_choice_is_fixed_and_in_order() {
        let row = |n: usize| Row::new(n, Map::from_iter([("text".to_owned(), n.to_string().into())]));
        let texts = |rows: &[Row]| rows.iter().map(|row| row.text("text").unwrap().to_owned()).collect::<Vec<_>>();
        for columns in [&["text"][..], &["missing"]] {
            let chosen = texts(&limit((0..50).map(row).collect(), 7, columns));
            assert_eq!(chosen.len(), 7);
            let mut backwards = texts(&limit((0..50).rev().map(row).collect(), 7, columns));
            backwards.reverse();
            assert_eq!(chosen, backwards);
        }
    }

    #[test]
    fn repetitions_are_counted() {
        let rows = |texts: &[&str]| {
            let row = |(n, text): (usize, &&str)| Row::new(n, Map::from_iter([("text".to_owned(), (*text).into())]));
            texts.iter().enumerate().map(row).collect::<Vec<_>>()
        };
        let (first, second) = (rows(&["a", "b", "b", "c"]), rows(&["x", "c", "b", "b"]));
        assert_eq!(shared(&first, &second, &["text"]).unwrap().0, 3);
        assert_eq!(shared(&first, &rows(&["y"]), &["text"]), None);
    }

    #[test]
    fn nested_fields_are_reached() {
        let row = Row::new(1, serde_json::from_str(r#"{"a":{"b":["x","y"]},"a.c":"dot"}"#).unwrap());
        assert_eq!(row.text("a.b.1").unwrap(), "y");
        assert_eq!(row.text("a.c").unwrap(), "dot");
        assert!(row.text("a.d").is_err());
    }
}
