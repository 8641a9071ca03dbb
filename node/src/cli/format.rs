//! The forms a result can take, each written batch by batch so that its size does not matter.

use std::io::Write;
use std::path::Path;

use clap::ValueEnum;
use floe_client::FrameStream;
use futures::TryStreamExt;
use polars::prelude::{
    CompatLevel, CsvWriter, DataFrame, IpcWriter, JsonFormat, JsonWriter, ParquetWriter, Schema, SchemaExt,
    SerWriter,
};
use polars_arrow::io::ipc::write::default_ipc_fields;

use super::output::{self, Output};
use super::table;

/// How many rows of a result are shown as a table. More is for programs, which read other formats better.
const MAX_TABLE_ROWS: usize = 1_000;

/// How many characters of a text are shown in a table.
const MAX_TABLE_TEXT: usize = 80;

/// Rows and bytes after which a file's row group is closed: large enough to compress and to skip by, small
/// enough to hold.
const GROUP_ROWS: usize = 512 << 10;
const GROUP_BYTES: usize = 128 << 20;

/// A result's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// Comma-separated values with a header
    Csv,
    /// An array of objects
    Json,
    /// Parquet, ZSTD-compressed
    Parquet,
    /// An Arrow IPC file
    Arrow,
}

/// The form of what is not a frame: nodes, jobs, stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// For people
    Table,
    /// For scripts
    Json,
}

impl Format {
    /// The form that a file's ending names.
    pub(super) fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "json" => Some(Self::Json),
            "parquet" | "pq" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" => Some(Self::Arrow),
            _ => None,
        }
    }

    /// Whether it would garble a terminal.
    pub(super) fn is_binary(self) -> bool {
        matches!(self, Self::Parquet | Self::Arrow)
    }
}

/// Makes Polars show whole tables: how many rows there are is decided by [`MAX_TABLE_ROWS`]. What the user has
/// set stays.
pub(super) fn configure_tables() {
    let text = MAX_TABLE_TEXT.to_string();
    for (name, value) in [
        ("POLARS_FMT_MAX_ROWS", "-1"),
        ("POLARS_FMT_MAX_COLS", "-1"),
        ("POLARS_TABLE_WIDTH", "-1"),
        ("POLARS_FMT_STR_LEN", &text),
    ] {
        if std::env::var_os(name).is_none() {
            // SAFETY: called first thing by `main`, while there is no other thread that could read the
            // environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Writes a whole result.
pub(super) async fn write(result: FrameStream, format: Format, output: &mut Output) -> anyhow::Result<()> {
    match format {
        Format::Table => write_table(result, output).await,
        Format::Csv => write_csv(result, output).await,
        Format::Json => write_json(result, output).await,
        Format::Parquet => write_parquet(result, output).await,
        Format::Arrow => write_arrow(result, output).await,
    }
}

async fn write_table(mut result: FrameStream, output: &mut Output) -> anyhow::Result<()> {
    let rows = result.rows();
    let mut shown = DataFrame::empty_with_schema(&result.schema());
    while shown.height() < MAX_TABLE_ROWS
        && let Some(frame) = result.try_next().await?
    {
        shown.vstack_mut_owned(frame)?;
    }
    if shown.height() > MAX_TABLE_ROWS {
        shown = shown.head(Some(MAX_TABLE_ROWS));
    }
    writeln!(output, "{shown}")?;
    if rows > shown.height() as u64 {
        output::note(format_args!(
            "note: the first {} of {} rows are shown; `-o FILE.parquet` or `--format csv` gives all",
            table::count(shown.height() as u64),
            table::count(rows),
        ));
    }
    Ok(())
}

async fn write_csv(mut result: FrameStream, output: &mut Output) -> anyhow::Result<()> {
    let mut writer = CsvWriter::new(output).batched(&result.schema())?;
    while let Some(mut frame) = result.try_next().await? {
        frame.align_chunks();
        writer.write_batch(&frame)?;
    }
    Ok(writer.finish()?)
}

/// One array over all batches. Polars writes each as lines, an object a line, in which no other line breaks
/// can occur.
async fn write_json(mut result: FrameStream, output: &mut Output) -> anyhow::Result<()> {
    let mut before = "[\n";
    while let Some(mut frame) = result.try_next().await? {
        let mut lines = Vec::new();
        JsonWriter::new(&mut lines).with_json_format(JsonFormat::JsonLines).finish(&mut frame)?;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            output.write_all(before.as_bytes())?;
            output.write_all(line)?;
            before = ",\n";
        }
    }
    let end = if before == "[\n" { "[]\n" } else { "\n]\n" };
    Ok(output.write_all(end.as_bytes())?)
}

async fn write_parquet(mut result: FrameStream, output: &mut Output) -> anyhow::Result<()> {
    let mut writer = ParquetWriter::new(output).batched(&result.schema())?;
    let mut group = Group::new(&result.schema());
    while let Some(frame) = result.try_next().await? {
        if let Some(whole) = group.push(frame, false)? {
            writer.write_batch(&whole)?;
        }
    }
    if let Some(rest) = group.rest() {
        writer.write_batch(&rest)?;
    }
    writer.finish()?;
    Ok(())
}

/// An IPC file has one dictionary a column, so categorical columns are written as one batch.
async fn write_arrow(mut result: FrameStream, output: &mut Output) -> anyhow::Result<()> {
    let schema = result.schema();
    let one_batch = schema.iter_values().any(|dtype| dtype.contains_categoricals());
    let fields = schema.to_arrow(CompatLevel::newest());
    let mut writer = IpcWriter::new(output).batched(&schema, default_ipc_fields(fields.iter_values()))?;
    let mut group = Group::new(&schema);
    while let Some(frame) = result.try_next().await? {
        if let Some(whole) = group.push(frame, one_batch)? {
            writer.write_batch(&whole)?;
        }
    }
    if let Some(rest) = group.rest() {
        writer.write_batch(&rest)?;
    }
    Ok(writer.finish()?)
}

/// Gathers batches until they are worth a row group.
struct Group {
    frame: DataFrame,
}

impl Group {
    fn new(schema: &Schema) -> Self {
        Self { frame: DataFrame::empty_with_schema(schema) }
    }

    /// Takes a batch in, and gives a full group out. A group that must be the only one is never full.
    fn push(&mut self, frame: DataFrame, only: bool) -> anyhow::Result<Option<DataFrame>> {
        self.frame.vstack_mut_owned(frame)?;
        let full = self.frame.height() >= GROUP_ROWS || self.frame.estimated_size() >= GROUP_BYTES;
        Ok(if full && !only { self.rest() } else { None })
    }

    fn rest(&mut self) -> Option<DataFrame> {
        if self.frame.height() == 0 {
            return None;
        }
        let empty = self.frame.clear();
        let mut whole = std::mem::replace(&mut self.frame, empty);
        whole.rechunk_mut();
        Some(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_name_forms() {
        assert_eq!(Format::of_path(Path::new("a/b.PARQUET")), Some(Format::Parquet));
        assert_eq!(Format::of_path(Path::new("b.feather")), Some(Format::Arrow));
        assert_eq!(Format::of_path(Path::new("csv")), None);
    }
}
