//! Bytes that the mesh keeps by what they are: large code and arguments, and objects that many tasks share.

use bytes::Bytes;
use floe_protocol::function::{Blob, MAX_BLOB_BYTES};
use floe_protocol::message::{Request, Response};
use floe_transport::blob_id;

use crate::error::{Error, Result};
use crate::mesh::Mesh;

/// Bytes up to this many are digested where they are; more would keep other work waiting, and go to a thread.
const MAX_DIGESTED_IN_PLACE: usize = 1 << 20;

impl Mesh {
    /// Puts bytes into the mesh, unless it has them already. They travel once to each node that needs them, and are
    /// kept for as long as the nodes have room for what was used lately.
    ///
    /// ```no_run
    /// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
    /// let words = std::fs::read("words.txt").expect("a readable file");
    /// let blob = mesh.put(words).await?;
    /// println!("{} bytes are {} now", blob.bytes, blob.id);
    /// assert_eq!(mesh.get(blob).await?.len() as u64, blob.bytes);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put(&self, bytes: impl Into<Bytes>) -> Result<Blob> {
        let bytes = bytes.into();
        if bytes.len() as u64 > MAX_BLOB_BYTES {
            return Err(Error::Local(format!(
                "{} bytes are too many for one object: at most {} GiB travel as one",
                bytes.len(),
                MAX_BLOB_BYTES >> 30
            )));
        }
        let blob = digest(bytes.clone()).await?;
        let (answer, exchange) = self.ask(&Request::HasBlob { id: blob.id }, &[]).await?;
        match answer {
            Response::Has(true) => return Ok(blob),
            Response::Has(false) => {}
            other => return Err(exchange.unexpected(&other)),
        }
        let (answer, exchange) = self.ask(&Request::PutBlob { blob }, &[vec![bytes]]).await?;
        match answer {
            Response::Done => Ok(blob),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Gets bytes that were put into the mesh, or that a function returned, from whichever node has them.
    pub async fn get(&self, blob: Blob) -> Result<Bytes> {
        let mut patience = self.link().patience();
        loop {
            let request = Request::GetBlob { id: blob.id };
            let (answer, mut exchange) = self.link().ask(&request, &[], &mut patience).await?;
            match answer {
                Response::Blob { bytes } if bytes == blob.bytes => {}
                Response::Blob { bytes } => {
                    let reason = format!("it has {bytes} bytes of an object of {}", blob.bytes);
                    return Err(Error::Malformed { address: exchange.address(), reason });
                }
                other => return Err(exchange.unexpected(&other)),
            }
            let reason = match exchange.read_body(blob.bytes).await {
                Ok(bytes) if digest(bytes.clone()).await? == blob => return Ok(bytes),
                Ok(_) => "what it sent as an object is something else".to_owned(),
                Err(lost) => lost.to_string(),
            };
            let address = exchange.address();
            tracing::debug!(address, blob = %blob.id, reason, "an object broke off");
            self.link().give_up(exchange).await;
            if !patience.pause().await {
                let tried = vec![(address, reason)];
                return Err(Error::Unreachable { tried, waited: patience.waited() });
            }
        }
    }
}

async fn digest(bytes: Bytes) -> Result<Blob> {
    let length = bytes.len() as u64;
    let id = if bytes.len() <= MAX_DIGESTED_IN_PLACE {
        blob_id(&bytes)
    } else {
        tokio::task::spawn_blocking(move || blob_id(&bytes))
            .await
            .map_err(|error| Error::Local(format!("the digest of an object was not made: {error}")))?
    };
    Ok(Blob { id, bytes: length })
}
