//! What a function returned that is no frame, as a partition: one row, one column of bytes that host and driver
//! understand. So everything in the store is an Arrow IPC file.

use bytes::Bytes;
use floe_protocol::Failure;
use polars::prelude::{Column, DataFrame, NamedFrom, Series};

use crate::store::ipc;

/// The column's name, which no frame of a user's has.
pub(super) const COLUMN: &str = "__floe_object__";

/// One Arrow IPC file that holds the bytes.
pub(super) fn wrap(bytes: &[u8]) -> Result<Bytes, Failure> {
    let column = Column::from(Series::new(COLUMN.into(), [bytes]));
    let frame = DataFrame::new(1, vec![column]).map_err(Failure::internal)?;
    let mut file = Vec::new();
    ipc::write(&frame, None, &mut file).map_err(Failure::internal)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use polars::prelude::{IpcReader, SerReader};

    use super::*;

    #[test]
    fn an_object_is_one_row_of_bytes() {
        for bytes in [&b""[..], &b"an object"[..], &[0xff; 100_000][..]] {
            let frame = IpcReader::new(Cursor::new(wrap(bytes).unwrap())).finish().unwrap();
            assert_eq!(frame.shape(), (1, 1));
            assert_eq!(frame.column(COLUMN).unwrap().binary().unwrap().get(0), Some(bytes));
        }
    }
}
