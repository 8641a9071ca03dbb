//! Frames as Arrow IPC files: how a partition's bytes are written.

use std::io::Write;

use bytes::Bytes;
use floe_protocol::arrow_file::stream_of;
use polars::prelude::{DataFrame, IpcCompression, IpcWriter, PolarsResult, SchemaExt, SerWriter};
use polars_arrow::io::ipc::write::default_ipc_fields;

/// Rows of a record batch at most: what Polars takes for one morsel, so that readers can share the work.
const MAX_BATCH_ROWS: usize = 128 << 10;

/// Rows of a record batch at least, however wide: a batch has its costs, and a frame's size is estimated
/// far too high where its strings share buffers with other frames.
const MIN_BATCH_ROWS: usize = 8 << 10;

/// Bytes of a record batch within those limits: writers and readers hold a few batches at a time, and a
/// driver that follows a result should hold little.
const BATCH_BYTES: usize = 8 << 20;

/// Writes a frame as one Arrow IPC file, in record batches of bounded size.
///
/// A frame with categorical columns becomes one batch, since an IPC file has one dictionary a column and
/// Polars makes one of the categories a batch uses.
pub fn write(frame: &DataFrame, compression: Option<IpcCompression>, sink: impl Write) -> PolarsResult<()> {
    let fields: Vec<_> =
        frame.schema().to_arrow(polars::prelude::CompatLevel::newest()).iter_values().cloned().collect();
    let mut writer = IpcWriter::new(sink)
        .with_compression(compression)
        .batched(frame.schema(), default_ipc_fields(fields.iter()))?;
    let rows = batch_rows(frame);
    for offset in (0..frame.height().max(1)).step_by(rows) {
        let mut batch = frame.slice(offset as i64, rows);
        batch.rechunk_mut();
        writer.write_batch(&batch)?;
    }
    writer.finish()
}

/// A frame's schema as an IPC stream without rows, so that an empty result has columns.
pub fn schema_stream(frame: &DataFrame) -> PolarsResult<Bytes> {
    let mut file = Vec::new();
    write(&frame.clear(), None, &mut file)?;
    let file = Bytes::from(file);
    stream_of(&file).map_err(|error| polars::prelude::polars_err!(ComputeError: "{error}"))
}

/// How many rows a frame's record batches have.
fn batch_rows(frame: &DataFrame) -> usize {
    let height = frame.height().max(1);
    if frame.dtypes().iter().any(|dtype| dtype.contains_categoricals()) {
        return height;
    }
    let row_bytes = (frame.estimated_size() / height).max(1);
    (BATCH_BYTES / row_bytes).clamp(MIN_BATCH_ROWS, MAX_BATCH_ROWS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use arrow_array::RecordBatch;
    use arrow_ipc::reader::StreamReader;
    use polars::prelude::*;

    use super::*;

    const COMPRESSIONS: [Option<IpcCompression>; 2] = [None, Some(IpcCompression::LZ4)];

    fn file_of(frame: &DataFrame, compression: Option<IpcCompression>) -> Bytes {
        let mut file = Vec::new();
        write(frame, compression, &mut file).unwrap();
        file.into()
    }

    fn read_file(file: &Bytes) -> DataFrame {
        IpcReader::new(Cursor::new(file.clone())).finish().unwrap()
    }

    fn batches(stream: Bytes) -> Vec<RecordBatch> {
        StreamReader::try_new(Cursor::new(stream), None).unwrap().map(Result::unwrap).collect()
    }

    /// A frame with the types whose encodings differ most: views, dictionaries, lists, structs, nulls.
    fn mixed(rows: usize) -> DataFrame {
        let number: Vec<_> = (0..rows as i64).map(|i| (i % 5 != 0).then_some(i)).collect();
        let text: Vec<_> =
            (0..rows).map(|i| (i % 3 != 0).then(|| format!("a text longer than a view holds {i}"))).collect();
        let category: Vec<_> = (0..rows).map(|i| format!("category {}", i / 1000)).collect();
        df!("number" => number, "text" => text, "category" => category)
            .unwrap()
            .lazy()
            .with_columns([
                col("category").cast(DataType::from_categories(Categories::global())).alias("categorical"),
                (col("number") % lit(2)).eq(lit(0)).alias("even"),
                as_struct(vec![col("number"), col("text")]).alias("record"),
                concat_list([col("number"), col("number")]).unwrap().alias("list"),
                col("text").cast(DataType::Binary).alias("binary"),
            ])
            .collect()
            .unwrap()
    }

    #[test]
    fn the_stream_within_a_file_is_read_by_arrow() {
        for rows in [0, 1, 10_000] {
            let frame = mixed(rows);
            for compression in COMPRESSIONS {
                let file = file_of(&frame, compression);
                assert_eq!(read_file(&file), frame);
                let stream = stream_of(&file).unwrap();
                assert_eq!(stream.as_ptr(), file[8..].as_ptr(), "no copy");
                let read = batches(stream.clone());
                assert_eq!(read.iter().map(RecordBatch::num_rows).sum::<usize>(), rows);
                let names: Vec<_> = read[0].schema().fields().iter().map(|f| f.name().clone()).collect();
                let expected: Vec<_> = frame.get_column_names().iter().map(|name| name.to_string()).collect();
                assert_eq!(names, expected);
                assert_eq!(IpcStreamReader::new(Cursor::new(stream)).finish().unwrap(), frame);
            }
        }
    }

    #[test]
    fn large_frames_are_cut_into_batches_however_their_chunks_lie() {
        let frame = df!("n" => (0..300_000i64).collect::<Vec<_>>(), "one" => vec![1i8; 300_000]).unwrap();
        let mut chunked = frame.slice(0, 250_000);
        chunked.vstack_mut(&frame.slice(250_000, 50_000)).unwrap();
        for frame in [&frame, &chunked] {
            for compression in COMPRESSIONS {
                let file = file_of(frame, compression);
                let read = batches(stream_of(&file).unwrap());
                assert!(read.iter().all(|batch| batch.num_rows() <= MAX_BATCH_ROWS));
                assert_eq!(read.len(), 3);
                assert_eq!(&read_file(&file), frame);
            }
        }
    }

    #[test]
    fn categories_that_differ_from_chunk_to_chunk_are_written() {
        let mut frame = mixed(2_000);
        frame.vstack_mut(&mixed(5_000).slice(3_000, 2_000)).unwrap();
        let file = file_of(&frame, None);
        assert_eq!(batches(stream_of(&file).unwrap())[0].num_rows(), 4_000);
        assert_eq!(read_file(&file), frame);
    }

    #[test]
    fn scalar_columns_and_frames_without_columns_are_written() {
        let frame = df!("n" => (0..200_000i64).collect::<Vec<_>>()).unwrap();
        let frame = frame.lazy().with_column(lit(7).alias("seven")).collect().unwrap();
        assert_eq!(read_file(&file_of(&frame, None)), frame);
        let nothing = file_of(&DataFrame::empty(), None);
        assert_eq!(read_file(&nothing).shape(), (0, 0));
        assert!(batches(stream_of(&nothing).unwrap()).iter().all(|batch| batch.num_rows() == 0));
    }

    #[test]
    fn a_schema_has_columns_and_no_rows() {
        let stream = schema_stream(&mixed(10)).unwrap();
        let reader = StreamReader::try_new(Cursor::new(stream.clone()), None).unwrap();
        assert_eq!(reader.schema().fields().len(), 8);
        assert_eq!(batches(stream).iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let file = file_of(&mixed(3), None);
        for cut in 0..file.len() {
            assert!(stream_of(&file.slice(..cut)).is_err(), "{cut}");
        }
        let mut wrong = file.to_vec();
        let footer = wrong.len() - b"....ARROW1".len();
        wrong[footer..footer + 4].copy_from_slice(&i32::MAX.to_le_bytes());
        assert!(stream_of(&wrong.clone().into()).is_err());
        wrong[footer..footer + 4].copy_from_slice(&(-1i32).to_le_bytes());
        assert!(stream_of(&wrong.into()).is_err());
    }
}
