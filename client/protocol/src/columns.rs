//! Long lists as they travel and as they are kept: column by column, since CBOR would say the names of all fields again for
//! every row. A list of a stage's partitions takes some 12 bytes for each of them that way, instead of some 190.
//!
//! ```text
//!   held by 5, 10 rows   ┐                 holders    lists [[5], [7]]   of [0, 1, 0]
//!   held by 7, 12 rows   ├── as columns ──> summaries  rows [10, 12, 9]   bytes [..]   marks [(mark, 3 times)]
//!   held by 5,  9 rows   ┘
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::graph::{BucketMeta, Placed, Summary, TaskSpec};
use crate::ids::{JobId, NodeId, StageId, TaskId};

/// How many tasks a list of them may have: many more than one stage is accepted with. A few bytes may say this number.
const MAX_TASKS: usize = 1 << 18;

/// Columns that do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the columns of a list are not of one length")]
pub struct Uneven;

/// Which nodes hold each of many partitions: most of them lie on few different lists of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawHolders")]
pub struct Holders {
    lists: Vec<Vec<NodeId>>,
    of: Vec<u32>,
}

#[derive(Deserialize)]
struct RawHolders {
    lists: Vec<Vec<NodeId>>,
    of: Vec<u32>,
}

impl TryFrom<RawHolders> for Holders {
    type Error = Uneven;

    fn try_from(RawHolders { lists, of }: RawHolders) -> Result<Self, Uneven> {
        let fits = of.iter().all(|list| (*list as usize) < lists.len());
        fits.then_some(Self { lists, of }).ok_or(Uneven)
    }
}

impl Holders {
    /// Of how many partitions.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether it is of none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// For each partition, who holds it, the preferred first.
    pub fn iter(&self) -> impl Iterator<Item = &[NodeId]> {
        self.of.iter().map(|list| self.lists.get(*list as usize).map_or(&[][..], Vec::as_slice))
    }
}

impl<'a> FromIterator<&'a [NodeId]> for Holders {
    fn from_iter<I: IntoIterator<Item = &'a [NodeId]>>(rows: I) -> Self {
        let mut known: BTreeMap<&[NodeId], u32> = BTreeMap::new();
        let mut holders = Self::default();
        for nodes in rows {
            let next = holders.lists.len() as u32;
            let list = *known.entry(nodes).or_insert(next);
            if list == next {
                holders.lists.push(nodes.to_vec());
            }
            holders.of.push(list);
        }
        holders
    }
}

/// The summaries of many partitions, whose marks are mostly the same.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Summaries {
    rows: Vec<u64>,
    bytes: Vec<u64>,
    /// Each mark, and how many times in a row.
    marks: Vec<(u64, u32)>,
}

impl Summaries {
    fn push(&mut self, summary: &Summary) {
        self.rows.push(summary.rows);
        self.bytes.push(summary.bytes);
        match self.marks.last_mut() {
            Some((mark, times)) if *mark == summary.mark && *times < u32::MAX => *times += 1,
            _ => self.marks.push((summary.mark, 1)),
        }
    }

    fn rows(self) -> Result<impl Iterator<Item = Summary>, Uneven> {
        let marked = self.marks.iter().map(|(_, times)| u64::from(*times)).sum::<u64>();
        if self.rows.len() != self.bytes.len() || marked != self.rows.len() as u64 {
            return Err(Uneven);
        }
        let marks = self.marks.into_iter().flat_map(|(mark, times)| (0..times).map(move |_| mark));
        let sizes = self.rows.into_iter().zip(self.bytes);
        Ok(sizes.zip(marks).map(|((rows, bytes), mark)| Summary { rows, bytes, mark }))
    }
}

impl<'a> FromIterator<&'a Summary> for Summaries {
    fn from_iter<I: IntoIterator<Item = &'a Summary>>(rows: I) -> Self {
        let mut summaries = Self::default();
        rows.into_iter().for_each(|summary| summaries.push(summary));
        summaries
    }
}

/// Where a stage's partitions lie.
pub mod placed {
    use serde::{Deserializer, Serializer, de::Error};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Columns {
        holders: Holders,
        summaries: Summaries,
    }

    /// As columns.
    pub fn serialize<S: Serializer>(placed: &[Placed], serializer: S) -> Result<S::Ok, S::Error> {
        let holders = placed.iter().map(|placed| placed.nodes.as_slice()).collect();
        let summaries = placed.iter().map(|placed| &placed.summary).collect();
        Columns { holders, summaries }.serialize(serializer)
    }

    /// From columns.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Placed>, D::Error> {
        let Columns { holders, summaries } = Columns::deserialize(deserializer)?;
        let summaries = summaries.rows().map_err(D::Error::custom)?;
        let placed: Vec<_> = holders
            .iter()
            .zip(summaries)
            .map(|(nodes, summary)| Placed { nodes: nodes.to_vec(), summary })
            .collect();
        if placed.len() == holders.len() { Ok(placed) } else { Err(D::Error::custom(Uneven)) }
    }
}

/// The tasks of a stage.
pub mod tasks {
    use serde::{Deserializer, Serializer, de, ser};

    use super::*;

    fn too_many(count: usize) -> String {
        format!("a list of {count} tasks is longer than the {MAX_TASKS} that can be read")
    }

    /// A column that is empty everywhere is left out.
    #[derive(Serialize, Deserialize)]
    struct Columns {
        count: u32,
        splits: Vec<Bytes>,
        scan_bytes: Vec<u64>,
    }

    /// As columns.
    pub fn serialize<S: Serializer>(tasks: &[TaskSpec], serializer: S) -> Result<S::Ok, S::Error> {
        if tasks.len() > MAX_TASKS {
            return Err(ser::Error::custom(too_many(tasks.len())));
        }
        let (mut splits, mut scan_bytes): (Vec<Bytes>, Vec<u64>) =
            tasks.iter().map(|task| (task.split.clone(), task.scan_bytes)).unzip();
        if splits.iter().all(Bytes::is_empty) {
            splits.clear();
        }
        if scan_bytes.iter().all(|bytes| *bytes == 0) {
            scan_bytes.clear();
        }
        Columns { count: tasks.len() as u32, splits, scan_bytes }.serialize(serializer)
    }

    /// From columns.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TaskSpec>, D::Error> {
        let Columns { count, mut splits, mut scan_bytes } = Columns::deserialize(deserializer)?;
        let count = count as usize;
        if count > MAX_TASKS {
            return Err(de::Error::custom(too_many(count)));
        }
        if splits.is_empty() {
            splits.resize(count, Bytes::new());
        }
        if scan_bytes.is_empty() {
            scan_bytes.resize(count, 0);
        }
        if splits.len() != count || scan_bytes.len() != count {
            return Err(de::Error::custom(Uneven));
        }
        let tasks = splits.into_iter().zip(scan_bytes);
        Ok(tasks.map(|(split, scan_bytes)| TaskSpec { split, scan_bytes }).collect())
    }
}

/// The sizes of buckets.
pub mod buckets {
    use serde::{Deserializer, Serializer, de::Error};

    use super::*;

    /// As columns.
    pub fn serialize<S: Serializer>(buckets: &[BucketMeta], serializer: S) -> Result<S::Ok, S::Error> {
        let (rows, bytes): (Vec<u64>, Vec<u64>) =
            buckets.iter().map(|bucket| (bucket.rows, bucket.bytes)).unzip();
        (rows, bytes).serialize(serializer)
    }

    /// From columns.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BucketMeta>, D::Error> {
        let (rows, bytes): (Vec<u64>, Vec<u64>) = Deserialize::deserialize(deserializer)?;
        if rows.len() != bytes.len() {
            return Err(D::Error::custom(Uneven));
        }
        Ok(rows.into_iter().zip(bytes).map(|(rows, bytes)| BucketMeta { rows, bytes }).collect())
    }
}

/// The partitions that a node holds.
pub mod held {
    use serde::{Deserializer, Serializer, de::Error};

    use super::*;

    /// Those of one stage.
    #[derive(Serialize, Deserialize)]
    struct Columns {
        job: JobId,
        stage: StageId,
        partitions: Vec<u32>,
        summaries: Summaries,
    }

    /// As columns, stage by stage where they are in order.
    pub fn serialize<S: Serializer>(held: &[(TaskId, Summary)], serializer: S) -> Result<S::Ok, S::Error> {
        let stages = held.chunk_by(|(a, _), (b, _)| (a.job, a.stage) == (b.job, b.stage));
        let columns: Vec<_> = stages
            .filter_map(|stage| {
                let (first, _) = stage.first()?;
                Some(Columns {
                    job: first.job,
                    stage: first.stage,
                    partitions: stage.iter().map(|(task, _)| task.partition).collect(),
                    summaries: stage.iter().map(|(_, summary)| summary).collect(),
                })
            })
            .collect();
        columns.serialize(serializer)
    }

    /// From columns.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(TaskId, Summary)>, D::Error> {
        let mut held = Vec::new();
        for Columns { job, stage, partitions, summaries } in Vec::<Columns>::deserialize(deserializer)? {
            if partitions.len() != summaries.rows.len() {
                return Err(D::Error::custom(Uneven));
            }
            let summaries = summaries.rows().map_err(D::Error::custom)?;
            let tasks = partitions.into_iter().map(|partition| TaskId { job, stage, partition });
            held.extend(tasks.zip(summaries));
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct All {
        #[serde(with = "tasks")]
        tasks: Vec<TaskSpec>,
        #[serde(with = "placed")]
        placed: Vec<Placed>,
        #[serde(with = "buckets")]
        buckets: Vec<BucketMeta>,
        #[serde(with = "held")]
        held: Vec<(TaskId, Summary)>,
    }

    fn summary() -> impl Strategy<Value = Summary> {
        (any::<u64>(), any::<u64>(), 0..3_u64).prop_map(|(rows, bytes, mark)| Summary { rows, bytes, mark })
    }

    fn task() -> impl Strategy<Value = TaskId> {
        (0..3_u64, 0..3_u32, any::<u32>()).prop_map(|(job, stage, partition)| TaskId {
            job: JobId(job),
            stage: StageId(stage),
            partition,
        })
    }

    proptest! {
        #[test]
        fn lists_come_back_as_they_were(
            tasks in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..2), 0..2_u64), 0..4),
            placed in prop::collection::vec((prop::collection::vec(0..4_u64, 0..3), summary()), 0..20),
            buckets in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20),
            held in prop::collection::vec((task(), summary()), 0..20),
        ) {
            let placed = placed.into_iter().map(|(nodes, summary)| Placed {
                nodes: nodes.into_iter().map(NodeId).collect(),
                summary,
            });
            let buckets = buckets.into_iter().map(|(rows, bytes)| BucketMeta { rows, bytes });
            let tasks = tasks.into_iter().map(|(split, scan_bytes)| TaskSpec { split: split.into(), scan_bytes });
            let (placed, buckets) = (placed.collect(), buckets.collect());
            let all = All { tasks: tasks.collect(), placed, buckets, held };
            prop_assert_eq!(frame::decode::<All>(&frame::encode(&all).unwrap()).unwrap(), all);
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0..200_usize) {
            // A list that is sound, but for some bytes.
            let nodes = vec![NodeId(5)];
            let placed = vec![Placed { nodes, summary: Summary::default() }; 3];
            let held = vec![(TaskId { job: JobId(1), stage: StageId(0), partition: 1 }, Summary::default()); 3];
            let tasks = vec![TaskSpec { split: Bytes::from_static(b"split"), scan_bytes: 7 }; 3];
            let all = All { tasks, placed, buckets: vec![BucketMeta::default(); 3], held };
            let mut frame = frame::encode(&all).unwrap();
            let at = at % frame.len();
            bytes.truncate(frame.len() - at);
            frame[at..at + bytes.len()].copy_from_slice(&bytes);
            let _ = frame::decode::<All>(&frame);
        }
    }

    #[test]
    fn a_hundred_thousand_partitions_take_a_few_bytes_each() {
        let placed = |task: u64| Placed {
            nodes: vec![NodeId(u64::MAX - task % 3)],
            summary: Summary { rows: 100_000 + task, bytes: 10 << 20, mark: u64::MAX },
        };
        let tasks = vec![TaskSpec { split: Bytes::new(), scan_bytes: 100_000 }; 100_000];
        let all = All { tasks, placed: (0..100_000).map(placed).collect(), buckets: vec![], held: vec![] };
        assert!(frame::encode(&all).unwrap().len() < 1_700_000);
    }

    #[test]
    fn a_few_bytes_do_not_become_many_tasks() {
        #[derive(Serialize)]
        struct Columns {
            count: u32,
            splits: Vec<Bytes>,
            scan_bytes: Vec<u64>,
        }
        #[derive(Deserialize)]
        struct Tasks(#[serde(with = "tasks")] Vec<TaskSpec>);
        let read = |count| {
            let columns = Columns { count, splits: vec![], scan_bytes: vec![] };
            frame::decode::<Tasks>(&frame::encode(&columns).unwrap()).map(|Tasks(tasks)| tasks.len())
        };
        assert_eq!(read(MAX_TASKS as u32).unwrap(), MAX_TASKS);
        assert!(read(u32::MAX).is_err());
    }
}
