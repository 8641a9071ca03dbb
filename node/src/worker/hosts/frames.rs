//! Frames that hosts return: whether they are what they say.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use floe_protocol::arrow_file::stream_of;
use polars_arrow::io::ipc::read::{get_row_count, read_file_metadata};

/// Whether bytes are an Arrow IPC file of so many rows whose stream can be cut out; if not, what they are. Only its
/// structure is read: values are for whoever reads them.
pub(super) async fn check(file: Bytes, rows: u64) -> Result<(), String> {
    let check = tokio::task::spawn_blocking(move || {
        catch_unwind(AssertUnwindSafe(|| check_now(&file, rows)))
            .unwrap_or_else(|_| Err("its frame is a damaged Arrow IPC file".to_owned()))
    });
    check.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn check_now(file: &Bytes, rows: u64) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("its frame cannot be read: {error}");
    stream_of(file).map_err(|error| wrong(&error))?;
    let mut file = Cursor::new(file);
    read_file_metadata(&mut file).map_err(|error| wrong(&error))?;
    let found = get_row_count(&mut file).map_err(|error| wrong(&error))?;
    if u64::try_from(found) != Ok(rows) {
        return Err(format!("its frame has {found} rows, and it says {rows}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use polars::prelude::df;

    use super::*;
    use crate::store::ipc;

    #[tokio::test]
    async fn a_frame_has_the_rows_it_says_and_damage_is_no_panic() {
        let frame = df!("n" => (0..300_000i64).collect::<Vec<_>>()).unwrap();
        let mut file = Vec::new();
        ipc::write(&frame, None, &mut file).unwrap();
        let file = Bytes::from(file);
        assert_eq!(check(file.clone(), 300_000).await, Ok(()));
        let text = check(file.clone(), 5).await.unwrap_err();
        assert_eq!(text, "its frame has 300000 rows, and it says 5");
        assert!(check(Bytes::from_static(b"rubbish"), 0).await.is_err());
        let footer = file.len() - 400;
        for at in footer..file.len() - 10 {
            let mut damaged = file.to_vec();
            damaged[at] ^= 0xff;
            // Some bytes are padding.
            drop(check(damaged.into(), 300_000).await);
        }
    }
}
