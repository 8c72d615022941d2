//! Rows of text formats: JSON lines, one JSON list, CSV and TSV with a header line.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Map, Value};

use super::{DataError, Place, Row};

pub(super) fn read(path: &Path, rows: &mut Vec<Row>) -> Result<(), DataError> {
    let bytes = fs::read(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    match ending.as_deref() {
        Some("csv") => separated(path, &bytes, b',', rows),
        Some("tsv") => separated(path, &bytes, b'\t', rows),
        Some("json") if bytes.trim_ascii_start().starts_with(b"[") => list(path, &bytes, rows),
        _ => lines(path, &bytes, rows),
    }
}

fn place(file: &Arc<Path>, unit: &'static str, number: usize) -> Place {
    Place { file: Arc::clone(file), unit, number }
}

fn lines(path: &Path, bytes: &[u8], rows: &mut Vec<Row>) -> Result<(), DataError> {
    let file: Arc<Path> = path.into();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let place = place(&file, "line", index + 1);
        let parse = || -> Result<Map<String, Value>, String> {
            let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
            match serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))? {
                Value::Object(fields) => Ok(fields),
                _ => Err("not a JSON object".into()),
            }
        };
        match parse() {
            Ok(fields) => rows.push(Row { place, fields }),
            Err(what) => return Err(DataError::Row { place, what }),
        }
    }
    Ok(())
}

fn list(path: &Path, bytes: &[u8], rows: &mut Vec<Row>) -> Result<(), DataError> {
    let file: Arc<Path> = path.into();
    let bad = |what: String| DataError::File { path: path.to_owned(), what };
    let values: Vec<Value> = serde_json::from_slice(bytes).map_err(|error| bad(format!("not JSON: {error}")))?;
    for (index, value) in values.into_iter().enumerate() {
        let place = place(&file, "row", index + 1);
        let Value::Object(fields) = value else {
            return Err(DataError::Row { place, what: "not a JSON object".into() });
        };
        rows.push(Row { place, fields });
    }
    Ok(())
}

fn separated(path: &Path, bytes: &[u8], delimiter: u8, rows: &mut Vec<Row>) -> Result<(), DataError> {
    let file: Arc<Path> = path.into();
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(bytes);
    let line = |error: &csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        place(&file, "line", usize::try_from(line).unwrap_or(usize::MAX))
    };
    let wrong = |error: csv::Error| DataError::Row { place: line(&error), what: error.to_string() };
    let columns = reader.headers().map_err(wrong)?.clone();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let number = record.position().map_or(0, csv::Position::line);
        let fields = columns.iter().zip(&record).map(|(column, field)| (column.to_owned(), Value::from(field)));
        let place = place(&file, "line", usize::try_from(number).unwrap_or(usize::MAX));
        rows.push(Row { place, fields: fields.collect() });
    }
    Ok(())
}
