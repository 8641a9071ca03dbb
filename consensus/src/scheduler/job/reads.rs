//! Who reads what, and how much that is.
//!
//! Of partitions that are read by bucket only the size of each bucket over all of them is kept: 4,096 numbers rather than
//! 4,096 for each of 2,000 partitions. So a task's input is known exactly as a whole, and how it divides among the
//! nodes follows from how large their partitions are.

use std::collections::BTreeMap;

use floe_protocol::graph::BucketMeta;
use floe_protocol::message::StageRead;
use floe_protocol::{NodeId, OutputMeta, Read, StageId, Summary};

use super::{Job, Place, State};

/// What is known of a partition that was made.
pub(in super::super) enum Made {
    /// All, by whoever made it just now.
    Reported(OutputMeta),
    /// What a node says of what it holds.
    Held(Summary),
}

/// What a task reads.
#[derive(Default)]
pub(in super::super) struct Reads {
    /// Of each of its stage's inputs.
    pub(in super::super) inputs: Vec<StageRead>,
    /// How much that is.
    pub(in super::super) bytes: u64,
    /// How much of it each node holds, as far as that can be told.
    pub(in super::super) bytes_at: BTreeMap<NodeId, u64>,
}

impl Made {
    pub(super) fn summary(&self) -> Summary {
        match self {
            Self::Reported(meta) => meta.summary(),
            Self::Held(summary) => *summary,
        }
    }

    /// Counts it in. Returns whether that is true of every bucket.
    pub(super) fn add_to(&self, buckets: &mut [BucketMeta]) -> bool {
        let add = |bucket: &mut BucketMeta, rows: u64, bytes: u64| {
            bucket.rows = bucket.rows.saturating_add(rows);
            bucket.bytes = bucket.bytes.saturating_add(bytes);
        };
        match (self, buckets) {
            (Self::Reported(meta), buckets) => {
                buckets.iter_mut().zip(&meta.buckets).for_each(|(all, one)| add(all, one.rows, one.bytes));
                true
            }
            (Self::Held(summary), [only]) => {
                add(only, summary.rows, summary.bytes);
                true
            }
            // Evenly, for want of better knowledge.
            (Self::Held(summary), buckets) => {
                let count = buckets.len().max(1) as u64;
                let (rows, bytes) = (summary.rows.div_ceil(count), summary.bytes.div_ceil(count));
                buckets.iter_mut().for_each(|bucket| add(bucket, rows, bytes));
                false
            }
        }
    }
}

impl Job {
    /// What a task reads. A bucket that is empty everywhere is left out. `None` if an input does not exist.
    pub(in super::super) fn reads(&self, place: Place) -> Option<Reads> {
        let mut reads = Reads::default();
        for input in &self.graph.stages[place.stage].inputs {
            let number = input.stage.0 as usize;
            let producer = &self.stages[number];
            let bucket = (input.read == Read::Bucket).then_some(place.partition);
            let mut found = Vec::new();
            let (mut whole_bytes, mut whole_at) = (0_u64, BTreeMap::<NodeId, u64>::new());
            for partition in partitions(input.read, place.partition, producer.tasks.len()) {
                let State::Done(placed) = &producer.tasks[partition as usize].state else { return None };
                let bytes = placed.summary.bytes;
                whole_bytes = whole_bytes.saturating_add(bytes);
                for node in &placed.nodes {
                    let at = whole_at.entry(*node).or_default();
                    *at = at.saturating_add(bytes);
                }
                // A partition without rows is read whole, for its columns, but not by bucket.
                if bucket.is_none() || placed.summary.rows > 0 {
                    found.push((partition, placed.nodes.as_slice()));
                }
            }
            let read_bytes = match bucket {
                Some(bucket) => {
                    let all = producer.buckets.get(bucket as usize).copied().unwrap_or_default();
                    if producer.exact && all.rows == 0 {
                        found.clear();
                        0
                    } else {
                        all.bytes
                    }
                }
                None => whole_bytes,
            };
            reads.bytes = reads.bytes.saturating_add(read_bytes);
            for (node, bytes) in whole_at {
                let at = reads.bytes_at.entry(node).or_default();
                *at = at.saturating_add(part(read_bytes, bytes, whole_bytes));
            }
            reads.inputs.push(StageRead::new(StageId(number as u32), bucket, found.into_iter()));
        }
        Some(reads)
    }
}

/// The part of `all` that goes to `of` in `whole`.
fn part(all: u64, of: u64, whole: u64) -> u64 {
    let part = u128::from(all) * u128::from(of) / u128::from(whole.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// Which of a producer's partitions a task reads.
pub(super) fn partitions(read: Read, task: u32, count: usize) -> std::ops::Range<u32> {
    let count = count as u32;
    match read {
        Read::All | Read::Bucket => 0..count,
        Read::Partition { first } => match task.checked_sub(first) {
            Some(partition) if partition < count => partition..partition + 1,
            _ => 0..0,
        },
        Read::Group { size } => {
            let first = task.saturating_mul(size).min(count);
            first..first.saturating_add(size).min(count)
        }
    }
}

/// Which of a consumer's tasks read a partition: the other way round.
pub(super) fn consumers(read: Read, partition: u32, count: usize) -> std::ops::Range<u32> {
    let count = count as u32;
    let task = match read {
        Read::All | Read::Bucket => return 0..count,
        Read::Partition { first } => first.checked_add(partition),
        Read::Group { size } => partition.checked_div(size),
    };
    task.filter(|task| *task < count).map_or(0..0, |task| task..task + 1)
}

#[cfg(test)]
mod tests;
