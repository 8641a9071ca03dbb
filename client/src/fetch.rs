//! Fetches a result, piece by piece, and goes on where it was when the node that sends it is lost.

use bytes::Bytes;
use floe_protocol::Summary;
use floe_protocol::message::{Request, Response};
use floe_transport::BodyError;

use crate::error::{Error, Result};
use crate::ipc::{Piece, Splitter};
use crate::job::Job;
use crate::link::{Exchange, Lost, is_excuse};
use crate::patience::Patience;

/// A result under way.
///
/// ```text
///   open ──> sending ── every partition ended ──> done
///              │  ▲
///         lost │  │ asked again, from the partition it was in
///              ▼  │
///            waiting ── no patience left ──> error
/// ```
pub(crate) struct Fetch {
    job: Job,
    schema: Bytes,
    partitions: Vec<Summary>,
    address: String,
    place: Place,
    source: Option<Source>,
    patience: Patience,
}

/// How far the reader has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// The partition that is being read.
    partition: u32,
    /// Batches of it that were given out.
    batches: u64,
    /// Rows of these.
    rows: u64,
}

/// One body being read.
struct Source {
    exchange: Exchange,
    splitter: Splitter,
    /// What of the first partition was given out before, and is passed over.
    skip: Place,
}

impl Fetch {
    /// Asks for the whole result. Each batch is given out once.
    pub(crate) async fn open(job: Job) -> Result<Self> {
        let patience = job.patience();
        let mut fetch = Self {
            job,
            schema: Bytes::new(),
            partitions: Vec::new(),
            address: String::new(),
            place: Place::default(),
            source: None,
            patience,
        };
        let (schema, partitions, source) = fetch.ask().await?;
        (fetch.schema, fetch.partitions, fetch.source) = (schema, partitions, Some(source));
        Ok(fetch)
    }

    /// The schema, as an Arrow IPC stream without batches; empty if only the partitions tell theirs.
    pub(crate) fn schema(&self) -> &Bytes {
        &self.schema
    }

    /// The size of each partition.
    pub(crate) fn partitions(&self) -> &[Summary] {
        &self.partitions
    }

    /// The partition that the next piece belongs to.
    pub(crate) fn partition(&self) -> u32 {
        self.place.partition
    }

    /// The error of a piece that cannot be decoded.
    pub(crate) fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::Malformed { address: self.address.clone(), reason: reason.to_string() }
    }

    /// The next piece; nothing after the last partition's end.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if self.place.partition as usize == self.partitions.len() {
                return Ok(None);
            }
            let Some(source) = &mut self.source else {
                self.resume().await?;
                continue;
            };
            match source.splitter.next() {
                Ok(Some(piece)) => {
                    if let Some(piece) = self.admit(piece)? {
                        return Ok(Some(piece));
                    }
                }
                Ok(None) => match source.exchange.next_chunk().await {
                    Ok(Some(chunk)) => source.splitter.push(&chunk),
                    Ok(None) => self.broke_off("it ended the result before its time").await?,
                    Err(Lost::Body(BodyError::Failed(failure))) if !is_excuse(&failure) => {
                        return Err(Error::Failure(failure));
                    }
                    Err(lost) => self.broke_off(&lost.to_string()).await?,
                },
                Err(malformed) => return Err(self.malformed(malformed)),
            }
        }
    }

    /// Gives the source up, to ask another after a pause.
    async fn broke_off(&mut self, reason: &str) -> Result<()> {
        tracing::debug!(address = self.address, reason, "a result broke off");
        self.source = None;
        if self.patience.pause().await {
            return Ok(());
        }
        let tried = vec![(self.address.clone(), reason.to_owned())];
        Err(Error::Unreachable { tried, waited: self.patience.waited() })
    }

    /// Counts a piece, and drops it if it was given out before.
    fn admit(&mut self, piece: Piece) -> Result<Option<Piece>> {
        let Some(source) = &mut self.source else {
            return Ok(None);
        };
        match &piece {
            Piece::Batch { rows, .. } if source.skip.batches > 0 => {
                source.skip.batches -= 1;
                let left = source.skip.rows.checked_sub(*rows);
                source.skip.rows = left.ok_or(Error::ResultChanged { job: self.job.id() })?;
                if source.skip.batches == 0 && source.skip.rows > 0 {
                    return Err(Error::ResultChanged { job: self.job.id() });
                }
                return Ok(None);
            }
            Piece::Batch { rows, .. } => {
                // Only what was not given out before is progress, and buys time.
                self.patience.renew();
                self.place.batches += 1;
                self.place.rows += rows;
            }
            Piece::End if source.skip.batches > 0 => {
                return Err(Error::ResultChanged { job: self.job.id() });
            }
            Piece::End => {
                self.patience.renew();
                self.place = Place { partition: self.place.partition + 1, ..Place::default() };
            }
            Piece::Schema(_) | Piece::Dictionary { .. } => {}
        }
        Ok(Some(piece))
    }

    /// Asks again, from the partition that was being read, and makes sure that it is still the same one: a
    /// partition that was made anew may hold its rows in another order.
    async fn resume(&mut self) -> Result<()> {
        let (schema, partitions, source) = self.ask().await?;
        let place = self.place.partition as usize;
        let same = partitions.len() == self.partitions.len()
            && schema == self.schema
            && (self.place.batches == 0 || partitions.get(place) == self.partitions.get(place));
        if !same {
            return Err(Error::ResultChanged { job: self.job.id() });
        }
        self.partitions = partitions;
        self.source = Some(source);
        Ok(())
    }

    async fn ask(&mut self) -> Result<(Bytes, Vec<Summary>, Source)> {
        let request = Request::Result { id: self.job.id(), from_partition: self.place.partition };
        let (response, exchange) = self.job.ask_within(&request, &mut self.patience).await?;
        match response {
            Response::Result { schema, partitions } => {
                self.address = exchange.address();
                let source = Source { exchange, splitter: Splitter::default(), skip: self.place };
                Ok((schema, partitions, source))
            }
            other => Err(exchange.unexpected(&other)),
        }
    }
}
