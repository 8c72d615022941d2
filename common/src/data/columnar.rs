//! Rows of Parquet and Arrow files, the latter as `datasets` writes them (the stream format) or as files.
//!
//! Values become JSON; bytes become their Base64 text, and a column of a type without a JSON counterpart is left out.

use std::{fs::File, io::BufReader, path::Path, sync::Arc};

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{
        Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::{DataError, Place, Row};

pub(super) fn read(path: &Path, rows: &mut Vec<Row>) -> Result<(), DataError> {
    let bad = |what: String| DataError::File { path: path.to_owned(), what };
    let open = || File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source });
    let arrow = |error: ArrowError| bad(format!("not an Arrow file that can be read: {error}"));
    let place: Arc<Path> = path.into();
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("parquet")) {
        let wrong = |error: parquet::errors::ParquetError| bad(format!("not a Parquet file that can be read: {error}"));
        let reader = ParquetRecordBatchReaderBuilder::try_new(open()?).and_then(|builder| builder.build()).map_err(wrong)?;
        return append(reader, &place, rows, |error| bad(format!("not a Parquet file that can be read: {error}")));
    }
    match StreamReader::try_new(BufReader::new(open()?), None) {
        Ok(reader) => append(reader, &place, rows, arrow),
        Err(_) => append(FileReader::try_new(BufReader::new(open()?), None).map_err(arrow)?, &place, rows, arrow),
    }
}

fn append(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    file: &Arc<Path>,
    rows: &mut Vec<Row>,
    wrong: impl Fn(ArrowError) -> DataError,
) -> Result<(), DataError> {
    let mut number = 0;
    for batch in batches {
        let batch = batch.map_err(&wrong)?;
        let schema = batch.schema();
        let columns: Vec<_> = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| known(field.data_type())).collect();
        for row in 0..batch.num_rows() {
            number += 1;
            let fields: Map<_, _> = columns.iter().map(|(field, column)| (field.name().clone(), value(column, row))).collect();
            rows.push(Row { place: Place { file: Arc::clone(file), unit: "row", number }, fields });
        }
    }
    Ok(())
}

/// Whether values of this type have a JSON counterpart.
fn known(kind: &DataType) -> bool {
    match kind {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => known(field.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| known(field.data_type())),
        DataType::Dictionary(_, values) => known(values),
        other => {
            other.is_null()
                || other.is_integer()
                || other.is_floating()
                || matches!(
                    other,
                    DataType::Boolean
                        | DataType::Utf8
                        | DataType::LargeUtf8
                        | DataType::Utf8View
                        | DataType::Binary
                        | DataType::LargeBinary
                        | DataType::BinaryView
                )
        }
    }
}

fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let bytes = |bytes: &[u8]| Value::from(BASE64_STANDARD.encode(bytes));
    let list = |values: &dyn Array| (0..values.len()).map(|index| value(values, index)).collect();
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float16 => f64::from(array.as_primitive::<Float16Type>().value(row)).into(),
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Binary => bytes(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytes(array.as_binary_view().value(row)),
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            Value::Object(columns.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
        }
        DataType::Dictionary(..) => {
            let one = array.slice(row, 1);
            let dictionary = one.as_any_dictionary();
            value(dictionary.values(), dictionary.normalized_keys()[0])
        }
        // `known` has left these out.
        _ => Value::Null,
    }
}
