//! Frames as they travel: Arrow IPC files, as Polars writes and reads them.

use std::io::Cursor;

use polars::prelude::{DataFrame, IpcReader, IpcWriter, PolarsResult, SerReader, SerWriter};

/// Writes a frame.
pub(super) fn write(mut frame: DataFrame) -> PolarsResult<Vec<u8>> {
    let mut file = Vec::new();
    IpcWriter::new(&mut file).finish(&mut frame)?;
    Ok(file)
}

/// Reads a frame.
pub(super) fn read(file: Vec<u8>) -> PolarsResult<DataFrame> {
    IpcReader::new(Cursor::new(file)).set_rechunk(false).finish()
}

/// Cuts a frame into parts of as equal a height as can be, in order: no more than it has rows, and at least
/// one.
pub(super) fn cut(frame: &DataFrame, parts: usize) -> Vec<DataFrame> {
    let rows = frame.height();
    let parts = parts.min(rows).max(1);
    // The first `longer` parts have a row more.
    let (height, longer) = (rows / parts, rows % parts);
    let mut begin = 0;
    let mut cut = Vec::with_capacity(parts);
    for part in 0..parts {
        let height = height + usize::from(part < longer);
        cut.push(frame.slice(begin as i64, height));
        begin += height;
    }
    cut
}

#[cfg(test)]
mod tests {
    use polars::prelude::df;

    use super::*;

    #[test]
    fn a_cut_frame_is_whole_again_in_order() {
        let frame = df!("n" => 0..10i64, "s" => ["a"; 10]).unwrap();
        for (parts, heights) in [(1, &[10][..]), (3, &[4, 3, 3]), (10, &[1; 10]), (99, &[1; 10])] {
            let cut = cut(&frame, parts);
            assert_eq!(cut.iter().map(DataFrame::height).collect::<Vec<_>>(), heights);
            let mut whole = frame.clear();
            for part in cut {
                whole.vstack_mut(&read(write(part).unwrap()).unwrap()).unwrap();
            }
            assert!(whole.equals(&frame), "{parts} parts");
        }
        assert_eq!(cut(&frame.clear(), 4).len(), 1);
    }
}
