//! Files as a query sees them: whether a file is the one that another node saw, and how a scan of files is split
//! among tasks.

use std::fs::File;
use std::io::{Read as _, Seek, SeekFrom};
use std::path::Path;

use floe_protocol::Failure;
use floe_protocol::message::{FileMark, FilePath, Inspected};
use polars::prelude::*;
use polars_plan::dsl::FileScanIR;
use polars_plan::plans::IR;
use polars_utils::slice_enum::Slice;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::paths::{MAX_FILES, expand, reason};
use crate::plan::Shape;
use crate::query_failure;

/// How much of a file's start and of its end goes into its mark.
const MARK_BYTES: u64 = 64 << 10;

/// A split of fewer bytes than this costs more to hand out than it saves.
const MIN_SPLIT_BYTES: u64 = 512 << 10;

/// A split of at least so many rows is worth a task whatever its bytes.
const MIN_SPLIT_ROWS: u64 = 25_000;

/// How many splits a slot gets when there is enough to split: more than one evens out slow nodes.
const SPLITS_PER_SLOT: u64 = 2;

/// How much larger a compressed text file is taken to be once read.
const TEXT_COMPRESSION: u64 = 4;

/// One task's part of one scan: consecutive files, and which of their rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScanSplit {
    /// The files, as the planner saw them.
    pub(crate) files: Vec<FileMark>,
    /// The place of the first of them among all files of the scan.
    pub(crate) first: usize,
    /// Which of their rows.
    pub(crate) rows: Rows,
    /// Rows in the files before these, where the scan numbers its rows.
    pub(crate) rows_before: u64,
    /// Estimated bytes of the wanted columns, uncompressed.
    pub(crate) bytes: u64,
}

/// Which rows of a split's files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rows {
    /// All of them.
    All,
    /// What the scan's own slice says: the split is the whole scan.
    AsPlanned,
    /// These, counted from the first row of the first file.
    Slice { offset: u64, len: u64 },
}

/// Expands each path on this machine and marks what is found.
pub fn inspect(paths: &[FilePath]) -> Vec<Inspected> {
    paths.iter().map(|path| inspect_one(path).unwrap_or_else(Inspected::Missing)).collect()
}

fn inspect_one(path: &FilePath) -> Result<Inspected, String> {
    let mark = |file: &String| {
        mark(Path::new(file)).map_err(|error| match *file == path.path {
            true => reason(&error),
            false => format!("{file}: {}", reason(&error)),
        })
    };
    Ok(Inspected::Files(expand(path)?.files.iter().map(mark).collect::<Result<_, _>>()?))
}

/// Marks a file: its size, and a hash of its size, start and end.
pub(crate) fn mark(path: &Path) -> std::io::Result<FileMark> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut hash = Xxh3::new();
    hash.update(&bytes.to_le_bytes());
    let mut buffer = Vec::with_capacity(MARK_BYTES as usize);
    (&mut file).take(MARK_BYTES).read_to_end(&mut buffer)?;
    hash.update(&buffer);
    if bytes > MARK_BYTES {
        buffer.clear();
        file.seek(SeekFrom::Start(bytes - MARK_BYTES.min(bytes)))?;
        file.take(MARK_BYTES).read_to_end(&mut buffer)?;
        hash.update(&buffer);
    }
    Ok(FileMark { path: path.to_string_lossy().into_owned(), bytes, mark: hash.digest() })
}

/// Whether this machine sees the file that the planner saw.
pub fn verify(planned: &FileMark) -> Result<(), Failure> {
    let blind = |why: String| Failure::Blind { path: planned.path.clone(), why };
    let found = mark(Path::new(&planned.path)).map_err(|error| blind(reason(&error)))?;
    if found == *planned {
        Ok(())
    } else if found.bytes != planned.bytes {
        Err(blind(format!("it has {} bytes instead of {}", found.bytes, planned.bytes)))
    } else {
        Err(blind("its content differs".to_owned()))
    }
}

/// Splits a scan of files. Also says why there is one split, where that is not for want of rows.
pub(crate) fn split(
    scan: &IR,
    predicate_is_elementwise: bool,
    shape: &Shape,
) -> Result<(Vec<ScanSplit>, Option<String>), Failure> {
    let IR::Scan { sources, file_info, predicate, output_schema, scan_type, unified_scan_args: args, .. } =
        scan
    else {
        return Err(Failure::internal("only a scan can be split"));
    };
    let marks = marks(sources.as_paths().unwrap_or_default())?;
    // A predicate may need columns that the scan does not put out, so sizes are a lower bound then.
    let wanted = output_schema.as_ref().unwrap_or(&file_info.schema);
    let all_columns = predicate.is_some() && wanted.is_empty();
    let (units, rows_known) = match &**scan_type {
        FileScanIR::Parquet { .. } => {
            (parquet_units(&marks, |name| all_columns || wanted.contains(name))?, true)
        }
        FileScanIR::Ipc { .. } => ipc_units(&marks),
        _ => (text_units(&marks), false),
    };

    let single = if args.deletion_files.is_some() {
        Some("the scan has deletion files")
    } else if !predicate_is_elementwise {
        Some("the scan's predicate does not look at one row at a time")
    } else if !rows_known && args.row_index.is_some() {
        Some("rows of a text file are numbered from the first one")
    } else if !rows_known && args.pre_slice.is_some() {
        // Only as many rows are read as are wanted: nothing is lost by one task.
        Some("a limit on files without row counts")
    } else if !matches!(
        &**scan_type,
        FileScanIR::Parquet { .. }
            | FileScanIR::Ipc { .. }
            | FileScanIR::Csv { .. }
            | FileScanIR::NDJson { .. }
    ) {
        Some("this kind of scan is not split")
    } else {
        None
    };
    if let Some(reason) = single {
        let bytes = units.iter().map(|unit| unit.bytes).sum();
        let whole = ScanSplit { files: marks, first: 0, rows: Rows::AsPlanned, rows_before: 0, bytes };
        return Ok((vec![whole], (units.len() > 1).then(|| reason.to_owned())));
    }
    let mut rows_in_file = vec![0; marks.len()];
    for unit in &units {
        rows_in_file[unit.file] += unit.rows;
    }
    let files = Files { marks: &marks, rows: rows_known.then_some(rows_in_file) };
    Ok((assign(&files, slice_units(units, args.pre_slice.as_ref()), shape), None))
}

/// One split of everything, for work that is not a scan but reads files (`count(*)` from their footers).
pub(crate) fn whole(paths: &[PlRefPath]) -> Result<ScanSplit, Failure> {
    let files = marks(paths)?;
    Ok(ScanSplit { files, first: 0, rows: Rows::AsPlanned, rows_before: 0, bytes: 0 })
}

fn marks(paths: &[PlRefPath]) -> Result<Vec<FileMark>, Failure> {
    if paths.len() > MAX_FILES {
        return Err(Failure::Refused { message: format!("the query scans more than {MAX_FILES} files") });
    }
    let mark = |path: &PlRefPath| {
        mark(path.as_std_path()).map_err(|error| Failure::Unseen {
            path: path.as_str().to_owned(),
            looked: format!("this node: {}", reason(&error)),
        })
    };
    paths.iter().map(mark).collect()
}

/// The files of a scan.
struct Files<'a> {
    marks: &'a [FileMark],
    /// Rows of each, where that is known without reading them.
    rows: Option<Vec<u64>>,
}

/// Consecutive rows of one file that are cheap to read apart from others.
#[derive(Clone, Debug)]
struct Unit {
    file: usize,
    offset: u64,
    /// Unknown for text.
    rows: u64,
    bytes: u64,
}

fn parquet_units(files: &[FileMark], wanted: impl Fn(&str) -> bool) -> Result<Vec<Unit>, Failure> {
    let mut units = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let metadata = parquet_metadata(Path::new(&file.path))?;
        let mut offset = 0;
        for group in &metadata.row_groups {
            let columns = group.parquet_columns().iter();
            let columns = columns.filter(|column| wanted(&column.descriptor().path_in_schema[0]));
            let bytes = columns.map(|column| column.uncompressed_size().max(0) as u64).sum();
            let rows = group.num_rows() as u64;
            units.push(Unit { file: index, offset, rows, bytes });
            offset += rows;
        }
        if metadata.row_groups.is_empty() {
            units.push(Unit { file: index, offset: 0, rows: 0, bytes: 0 });
        }
    }
    Ok(units)
}

/// A Parquet file's footer; an error names the file.
pub(crate) fn parquet_metadata(path: &Path) -> Result<Arc<FileMetadata>, Failure> {
    let named = |message: String| Failure::Query { message: format!("{}: {message}", path.display()) };
    let file = File::open(path).map_err(|error| named(reason(&error)))?;
    let mut reader = ParquetReader::new(file);
    let metadata = reader.get_metadata().map_err(|error| match query_failure(error) {
        Failure::Query { message } => named(message),
        other => other,
    })?;
    Ok(metadata.clone())
}

/// IPC files keep no row count in their footer, but counting skips the data.
fn ipc_units(files: &[FileMark]) -> (Vec<Unit>, bool) {
    let count = |file: &FileMark| -> PolarsResult<u64> {
        let scan = LazyFrame::scan_ipc(PlRefPath::new(&file.path), Default::default(), Default::default())?;
        let counted = scan.select([len()]).collect()?;
        counted.columns()[0].get(0)?.try_extract()
    };
    let counts: PolarsResult<Vec<u64>> = files.iter().map(count).collect();
    match counts {
        Ok(counts) => {
            let unit = |((file, mark), rows): ((usize, &FileMark), u64)| Unit {
                file,
                offset: 0,
                rows,
                bytes: mark.bytes,
            };
            (files.iter().enumerate().zip(counts).map(unit).collect(), true)
        }
        // The scan itself will say what is wrong.
        Err(_) => (text_units(files), false),
    }
}

fn text_units(files: &[FileMark]) -> Vec<Unit> {
    let unit = |(file, mark): (usize, &FileMark)| {
        let compressed = [".gz", ".zst", ".zlib"].iter().any(|end| mark.path.ends_with(end));
        let bytes = if compressed { mark.bytes * TEXT_COMPRESSION } else { mark.bytes };
        Unit { file, offset: 0, rows: 0, bytes }
    };
    files.iter().enumerate().map(unit).collect()
}

/// Cuts the units down to a slice of all rows.
fn slice_units(units: Vec<Unit>, slice: Option<&Slice>) -> Vec<Unit> {
    let Some(slice) = slice else { return units };
    let total: u64 = units.iter().map(|unit| unit.rows).sum();
    let (start, end) = match *slice {
        Slice::Positive { offset, len } => (offset as u64, (offset as u64).saturating_add(len as u64)),
        Slice::Negative { offset_from_end, len } => {
            // A start before the first row takes rows off the length, as Polars has it.
            let start = total as i128 - offset_from_end as i128;
            let end = (start + len as i128).max(0);
            (start.max(0) as u64, end as u64)
        }
    };
    let mut kept = Vec::new();
    let mut seen = 0;
    for unit in &units {
        let from = start.clamp(seen, seen + unit.rows);
        let to = end.clamp(seen, seen + unit.rows);
        if from < to {
            let rows = to - from;
            let bytes = (u128::from(unit.bytes) * u128::from(rows) / u128::from(unit.rows)) as u64;
            kept.push(Unit { file: unit.file, offset: unit.offset + from - seen, rows, bytes });
        }
        seen += unit.rows;
    }
    kept
}

/// Puts consecutive units together into splits of about equal bytes.
fn assign(files: &Files<'_>, units: Vec<Unit>, shape: &Shape) -> Vec<ScanSplit> {
    let bytes: u64 = units.iter().map(|unit| unit.bytes).sum();
    let rows: u64 = units.iter().map(|unit| unit.rows).sum();
    // Where no column is wanted, rows are counted from the footers.
    let counted = bytes == 0 && files.rows.is_some();
    let worthwhile = if counted { 1 } else { (bytes / MIN_SPLIT_BYTES).max(rows / MIN_SPLIT_ROWS) };
    let by_slots = (u64::from(shape.slots) * SPLITS_PER_SLOT).min(worthwhile);
    let by_memory = bytes.div_ceil(shape.task_bytes.max(1));

    let total: u64 = units.iter().map(Unit::weight).sum();
    let target = total.div_ceil(by_slots.max(by_memory).max(1)).max(1);
    let mut splits: Vec<Vec<Unit>> = Vec::new();
    let mut filled = 0;
    for unit in units.into_iter().flat_map(|unit| subdivide(unit, target, files.rows.is_some())) {
        let weight = unit.weight();
        match splits.last_mut() {
            Some(last) if filled + weight <= target => {
                last.push(unit);
                filled += weight;
            }
            _ => {
                splits.push(vec![unit]);
                filled = weight;
            }
        }
    }
    if splits.is_empty() {
        // No row is wanted, but the columns are: one task reads none.
        let files = files.marks.to_vec();
        return vec![ScanSplit {
            files,
            first: 0,
            rows: Rows::Slice { offset: 0, len: 0 },
            rows_before: 0,
            bytes: 0,
        }];
    }
    splits.iter().map(|units| scan_split(files, units)).collect()
}

impl Unit {
    /// Never nothing, so that units without bytes are spread too.
    fn weight(&self) -> u64 {
        self.bytes.max(self.rows).max(1)
    }
}

/// Cuts a unit that is much larger than a split should be, where rows can be counted off.
fn subdivide(unit: Unit, target: u64, rows_known: bool) -> Vec<Unit> {
    let pieces = unit.weight().div_ceil(target).min(unit.rows / MIN_SPLIT_ROWS);
    if !rows_known || pieces < 2 || unit.weight() < target + target / 2 {
        return vec![unit];
    }
    let bound = |piece: u64| unit.rows * piece / pieces;
    let piece = |k: u64| Unit {
        file: unit.file,
        offset: unit.offset + bound(k),
        rows: bound(k + 1) - bound(k),
        bytes: unit.bytes / pieces,
    };
    (0..pieces).map(piece).collect()
}

fn scan_split(files: &Files<'_>, units: &[Unit]) -> ScanSplit {
    let (first, last) = (units[0].file, units[units.len() - 1].file);
    let mut split = ScanSplit {
        files: files.marks[first..=last].to_vec(),
        first,
        rows: Rows::All,
        rows_before: 0,
        bytes: units.iter().map(|unit| unit.bytes).sum(),
    };
    if let Some(rows_in_file) = &files.rows {
        let rows: u64 = units.iter().map(|unit| unit.rows).sum();
        if rows != rows_in_file[first..=last].iter().sum::<u64>() {
            split.rows = Rows::Slice { offset: units[0].offset, len: rows };
        }
        split.rows_before = rows_in_file[..first].iter().sum();
    }
    split
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn unit(file: usize, offset: u64, rows: u64, bytes: u64) -> Unit {
        Unit { file, offset, rows, bytes }
    }

    fn splits(units: Vec<Unit>, slice: Option<Slice>, rows_known: bool) -> Vec<ScanSplit> {
        let n = units.iter().map(|unit| unit.file + 1).max().unwrap();
        let marks: Vec<_> = (0..n).map(|i| FileMark { path: format!("/{i}"), bytes: 0, mark: 0 }).collect();
        let mut rows = vec![0; n];
        units.iter().for_each(|unit| rows[unit.file] += unit.rows);
        let files = Files { marks: &marks, rows: rows_known.then_some(rows) };
        let shape = Shape { slots: 2, task_bytes: 64 << 20 };
        assign(&files, slice_units(units, slice.as_ref()), &shape)
    }

    #[test]
    fn splits_cover_every_row_once_and_in_order() {
        let units = vec![unit(0, 0, 60_000, 4 << 20), unit(0, 60_000, 60_000, 4 << 20), unit(1, 0, 10, 10)];
        let splits = splits(units, None, true);
        assert!(splits.len() >= 3, "{splits:?}");
        let mut next = 0;
        for split in &splits {
            let (offset, len) = match split.rows {
                Rows::Slice { offset, len } => (offset, len),
                _ => (0, 10),
            };
            assert_eq!(split.rows_before + offset, next);
            next += len;
        }
        assert_eq!(next, 120_010);
    }

    #[test]
    fn small_files_share_a_split_and_a_large_row_group_is_cut() {
        assert_eq!(splits((0..100).map(|file| unit(file, 0, 10, 1000)).collect(), None, true).len(), 1);
        let large = vec![unit(0, 0, 1_000_000, 200 << 20)];
        assert_eq!(splits(large.clone(), None, true).len(), 4);
        assert_eq!(splits(large, None, false).len(), 1);
    }

    #[test]
    fn memory_asks_for_more_splits_than_slots_do() {
        let splits = splits((0..100).map(|k| unit(0, k * 10, 10, 10 << 20)).collect(), None, true);
        assert!(splits.iter().all(|split| split.bytes <= 64 << 20), "{splits:?}");
    }

    #[test]
    fn a_slice_keeps_its_rows_only() {
        let units = vec![unit(0, 0, 10, 100), unit(1, 0, 10, 100)];
        let take = |slice| {
            let splits = splits(units.clone(), Some(slice), true);
            assert_eq!(splits.len(), 1);
            (splits[0].first, splits[0].rows_before, splits[0].rows)
        };
        assert_eq!(take(Slice::Positive { offset: 8, len: 4 }), (0, 0, Rows::Slice { offset: 8, len: 4 }));
        assert_eq!(take(Slice::Positive { offset: 12, len: 4 }), (1, 10, Rows::Slice { offset: 2, len: 4 }));
        assert_eq!(take(Slice::Positive { offset: 10, len: 99 }), (1, 10, Rows::All));
        assert_eq!(take(Slice::Positive { offset: 30, len: 4 }), (0, 0, Rows::Slice { offset: 0, len: 0 }));
        assert_eq!(
            take(Slice::Negative { offset_from_end: 3, len: 2 }),
            (1, 10, Rows::Slice { offset: 7, len: 2 })
        );
        assert_eq!(
            take(Slice::Negative { offset_from_end: 22, len: 4 }),
            (0, 0, Rows::Slice { offset: 0, len: 2 })
        );
        assert_eq!(take(Slice::Positive { offset: 0, len: 0 }), (0, 0, Rows::Slice { offset: 0, len: 0 }));
    }

    #[test]
    fn a_mark_tells_files_apart_and_a_missing_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.csv");
        std::fs::write(&path, vec![b'x'; 300_000]).unwrap();
        let before = mark(&path).unwrap();
        verify(&before).unwrap();
        let mut changed = vec![b'x'; 300_000];
        changed[299_999] = b'y';
        std::fs::write(&path, changed).unwrap();
        assert!(matches!(verify(&before), Err(Failure::Blind { .. })));
        std::fs::remove_file(&path).unwrap();
        let Err(Failure::Blind { why, .. }) = verify(&before) else { panic!("verified") };
        assert_eq!(why, "not found");
        let named = |path: String| FilePath { path, glob: true };
        let found = inspect(&[
            named(path.to_string_lossy().into_owned()),
            named(format!("{}/*.csv", directory.path().display())),
        ]);
        assert_eq!(found[0], Inspected::Missing("not found".into()));
        assert_eq!(found[1], Inspected::Missing("nothing matches".into()));
    }
}
