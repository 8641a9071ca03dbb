//! Values that are not frames, as they travel: CBOR, and between stages wrapped in a frame of one row.

use std::io::Cursor;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::FileReader;
use arrow_schema::DataType;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::partitions::OBJECT_COLUMN;

/// Writes a value.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes)
        .map_err(|error| format!("it cannot be written as CBOR: {error}"))?;
    Ok(bytes)
}

/// Reads a value that must fill the whole of `bytes`.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut rest = bytes;
    let value =
        ciborium::from_reader(&mut rest).map_err(|error| format!("{} cannot be read: {error}", of::<T>()))?;
    if rest.is_empty() { Ok(value) } else { Err(format!("{} bytes follow {}", rest.len(), of::<T>())) }
}

fn of<T>() -> String {
    format!("a value of type {}", std::any::type_name::<T>())
}

/// Makes one list of values that are each written already.
pub(super) fn list(values: &[impl AsRef<[u8]>]) -> Vec<u8> {
    // The head of an array with its length in four bytes (RFC 8949, 3): the items follow as they are.
    let mut bytes = vec![0x9a];
    bytes.extend_from_slice(&(values.len() as u32).to_be_bytes());
    for value in values {
        bytes.extend_from_slice(value.as_ref());
    }
    bytes
}

/// The object in an Arrow IPC file.
pub(super) fn unwrap_file(file: &[u8]) -> Result<Vec<u8>, String> {
    let unreadable = |error| format!("a partition cannot be read: {error}");
    let batches = FileReader::try_new(Cursor::new(file), None).map_err(unreadable)?;
    let mut objects = Vec::new();
    for batch in batches {
        objects.extend(unwrap_batch(&batch.map_err(unreadable)?)?);
    }
    match objects.len() {
        1 => Ok(objects.swap_remove(0)),
        count => Err(format!("a partition holds {count} objects instead of one")),
    }
}

/// The objects in a batch of rows.
fn unwrap_batch(batch: &RecordBatch) -> Result<Vec<Vec<u8>>, String> {
    let Some(column) = batch.column_by_name(OBJECT_COLUMN) else {
        return Err("a partition holds a frame instead of an object".to_owned());
    };
    let rows = 0..column.len();
    let objects = match column.data_type() {
        DataType::Binary => rows.map(|row| column.as_binary::<i32>().value(row).to_vec()).collect(),
        DataType::LargeBinary => rows.map(|row| column.as_binary::<i64>().value(row).to_vec()).collect(),
        DataType::BinaryView => rows.map(|row| column.as_binary_view().value(row).to_vec()).collect(),
        other => return Err(format!("an object's column is of type {other}")),
    };
    Ok(objects)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use arrow_array::{BinaryViewArray, LargeBinaryArray};
    use arrow_ipc::writer::FileWriter;
    use arrow_schema::{Field, Schema};

    use super::*;

    /// Objects as nodes hand them to a merge.
    pub(crate) fn wrap(object: &[u8], view: bool) -> Vec<u8> {
        let column: Arc<dyn Array> = if view {
            Arc::new(BinaryViewArray::from_iter_values([object]))
        } else {
            Arc::new(LargeBinaryArray::from_iter_values([object]))
        };
        let field = Field::new(OBJECT_COLUMN, column.data_type().clone(), false);
        let schema = Arc::new(Schema::new(vec![field]));
        let batch = RecordBatch::try_new(schema.clone(), vec![column]).unwrap();
        let mut writer = FileWriter::try_new(Vec::new(), &schema).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn objects_are_read_from_any_binary_column() {
        for view in [false, true] {
            assert_eq!(unwrap_file(&wrap(b"an object", view)).unwrap(), b"an object");
        }
        assert!(unwrap_file(b"rubbish").is_err());
    }

    #[test]
    fn written_values_become_one_list() {
        let values: Vec<_> = (0..300).map(|value| encode(&(value, "text")).unwrap()).collect();
        let list: Vec<(i32, String)> = decode(&list(&values)).unwrap();
        assert_eq!((list.len(), list[299].clone()), (300, (299, "text".to_owned())));
        assert!(decode::<i32>(&encode("text").unwrap()).unwrap_err().contains("i32"));
    }
}
