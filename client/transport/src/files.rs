//! Bodies that hold files whose lengths are known, one after the other: partitions between nodes, and to drivers.

use bytes::Bytes;
use futures::{AsyncRead, AsyncWrite};
use xxhash_rust::xxh3::xxh3_64;

use crate::stream::{Body, BodyError};

/// Reads files of these lengths, and the body's end.
pub async fn read_files<S>(
    body: &mut Body<S>,
    lengths: impl Iterator<Item = u64>,
) -> Result<Vec<Bytes>, BodyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut files = Vec::new();
    for length in lengths {
        files.push(body.read_exact(length).await?.ok_or(BodyError::Short)?);
    }
    body.end().await?;
    Ok(files)
}

/// Reads what [`floe_protocol::Response::Fetching`] announces, of each file its XXH3-64 and its length, and makes
/// sure that it is what was stored.
pub async fn read_checked<S>(body: &mut Body<S>, segments: &[(u64, u64)]) -> Result<Vec<Bytes>, BodyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let files = read_files(body, segments.iter().map(|(_, length)| *length)).await?;
    let intact = files.iter().zip(segments).all(|(file, (checksum, _))| xxh3_64(file) == *checksum);
    if intact { Ok(files) } else { Err(BodyError::Malformed("its checksum does not fit".to_owned())) }
}
