//! Tables as programs read and write them: Arrow IPC streams, CSV, JSON lines.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use floe_protocol::Failure;
use floe_protocol::arrow_file::stream_of;
use floe_protocol::function::Format;
use polars::prelude::*;

use super::Returned;
use super::host::cut;
use super::wire;
use crate::store::ipc;

/// How much of a file is looked at to see what it is.
const HEAD_BYTES: u64 = 256;

/// How much of Polars' account of what is wrong is shown.
const MAX_ACCOUNT_BYTES: usize = 500;

/// Where a table comes from.
pub(super) enum Source {
    /// A file that the user named.
    File(PathBuf),
    /// Arrow IPC files, one after the other.
    Partitions(Vec<Bytes>),
}

/// What a file holds, by its ending or else its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Csv,
    /// Compressed CSV.
    PackedCsv,
    Ndjson,
    /// Compressed JSON lines.
    PackedNdjson,
    Json,
    Parquet,
    ArrowFile,
    ArrowStream,
    Unknown,
}

/// Runs something that reads or writes tables on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let work = tokio::task::spawn_blocking(|| {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Failure::internal("Polars panicked")))
    });
    work.await.map_err(Failure::internal)?
}

/// The first bytes of a file.
pub(super) fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// The file that holds a table just as it is wanted, if one does.
pub(super) fn as_it_is(source: &Source, format: Format) -> Option<PathBuf> {
    let Source::File(path) = source else {
        return None;
    };
    let there = match (kind(path), format) {
        (Kind::Csv, Format::Csv) | (Kind::Ndjson, Format::Ndjson) | (Kind::ArrowStream, Format::Arrow) => {
            true
        }
        // Lines of a log, say: text is text.
        (Kind::Unknown, Format::Csv | Format::Ndjson) => true,
        _ => false,
    };
    there.then(|| path.clone())
}

/// A table in the form that is wanted.
pub(super) fn converted(source: Source, format: Format, typed: bool, name: &str) -> Result<Bytes, Failure> {
    let unreadable = |path: &Path, error: &dyn std::fmt::Display| Failure::Refused {
        message: format!("{} cannot be handed to {name} as {}: {error}", path.display(), format.name()),
    };
    let frame = match source {
        Source::File(path) => {
            let kind = kind(&path);
            if kind == Kind::Unknown {
                let known = "not a file that ends in .csv, .ndjson, .jsonl, .json, .parquet, .arrow or .ipc";
                return Err(unreadable(&path, &known));
            }
            if kind == Kind::ArrowFile && format == Format::Arrow {
                let file = Bytes::from(std::fs::read(&path).map_err(|error| unreadable(&path, &error))?);
                if let Ok(stream) = stream_of(&file) {
                    return Ok(stream);
                }
            }
            read_file(&path, kind, typed).map_err(|error| unreadable(&path, &error))?
        }
        Source::Partitions(files) => {
            if let ([file], Format::Arrow) = (&files[..], format) {
                return stream_of(file).map_err(Failure::internal);
            }
            if files.is_empty() && format != Format::Arrow {
                return Ok(Bytes::new());
            }
            read_partitions(&files).map_err(|error| Failure::Refused {
                message: format!("the input of {name} is not one table: {error}"),
            })?
        }
    };
    write(frame, format).map_err(|error| {
        let message = format!("the input of {name} cannot be written as {}: {error}", format.name());
        Failure::Refused { message }
    })
}

/// What a program wrote, as a frame.
pub(super) fn read_output(
    wrote: Bytes,
    format: Format,
    typed: bool,
    name: &str,
) -> Result<Returned, Failure> {
    let rubbish = |account: &str| Failure::Exception {
        name: name.to_owned(),
        message: format!(
            "it should write {} to stdout, and wrote {}{}{}",
            match format {
                Format::Arrow => "an Arrow IPC stream",
                Format::Csv => "CSV with a header",
                Format::Ndjson => "a JSON object a line",
            },
            wire::shown(&wrote),
            if account.is_empty() { "" } else { ": " },
            cut(account.lines().next().unwrap_or_default().to_owned(), MAX_ACCOUNT_BYTES)
        ),
        traceback: String::new(),
        exception: Bytes::new(),
    };
    if format != Format::Arrow {
        match std::str::from_utf8(&wrote) {
            Err(_) => return Err(rubbish("it is not text in UTF-8")),
            Ok(text) if text.contains('\0') => return Err(rubbish("text has no zero bytes")),
            Ok(_) => {}
        }
    }
    let read = catch_unwind(AssertUnwindSafe(|| match format {
        _ if wrote.trim_ascii().is_empty() => Ok(DataFrame::empty()),
        Format::Arrow if wrote.starts_with(b"ARROW1") => IpcReader::new(Cursor::new(&wrote[..])).finish(),
        Format::Arrow => IpcStreamReader::new(Cursor::new(&wrote[..])).finish(),
        Format::Csv => read_csv(wrote.to_vec(), typed),
        Format::Ndjson => read_ndjson(&wrote),
    }));
    let frame = match read {
        Ok(Ok(frame)) => frame,
        Ok(Err(error)) => return Err(rubbish(&error.to_string())),
        Err(_) => return Err(rubbish("it is damaged")),
    };
    let mut file = Vec::new();
    ipc::write(&frame, None, &mut file).map_err(|error| rubbish(&error.to_string()))?;
    Ok(Returned::Frame { file: file.into(), rows: frame.height() as u64 })
}

fn kind(path: &Path) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let packed = [".gz", ".zst", ".zstd"].iter().find_map(|ending| name.strip_suffix(ending));
    let ending = |name: &str| name.rsplit_once('.').map(|(_, ending)| ending.to_owned());
    match (ending(packed.unwrap_or(&name)).as_deref(), packed.is_some()) {
        (Some("csv"), false) => return Kind::Csv,
        (Some("csv"), true) => return Kind::PackedCsv,
        (Some("ndjson" | "jsonl"), false) => return Kind::Ndjson,
        (Some("ndjson" | "jsonl"), true) => return Kind::PackedNdjson,
        _ => {}
    }
    let head = head(path).unwrap_or_default();
    match ending(&name).as_deref() {
        _ if head.starts_with(b"ARROW1") => Kind::ArrowFile,
        _ if head.starts_with(b"PAR1") => Kind::Parquet,
        Some("arrow" | "arrows" | "ipc" | "feather") => Kind::ArrowStream,
        Some("json") if head.trim_ascii_start().starts_with(b"[") => Kind::Json,
        Some("json") => Kind::Ndjson,
        Some("parquet" | "pq") => Kind::Parquet,
        _ => Kind::Unknown,
    }
}

fn read_file(path: &Path, kind: Kind, typed: bool) -> PolarsResult<DataFrame> {
    if path.metadata()?.len() == 0 {
        return Ok(DataFrame::empty());
    }
    match kind {
        Kind::Csv | Kind::PackedCsv => read_csv(std::fs::read(path)?, typed),
        Kind::Ndjson => read_ndjson(&std::fs::read(path)?),
        Kind::PackedNdjson => {
            let path = PlRefPath::try_from_path(path)?;
            LazyJsonLineReader::new(path).with_infer_schema_length(None).finish()?.collect()
        }
        Kind::Json => JsonReader::new(Cursor::new(std::fs::read(path)?)).infer_schema_len(None).finish(),
        Kind::Parquet => ParquetReader::new(File::open(path)?).finish(),
        Kind::ArrowFile => IpcReader::new(File::open(path)?).finish(),
        Kind::ArrowStream => IpcStreamReader::new(File::open(path)?).finish(),
        Kind::Unknown => polars_bail!(ComputeError: "it is of no known kind"),
    }
}

fn read_csv(text: Vec<u8>, typed: bool) -> PolarsResult<DataFrame> {
    let options = CsvReadOptions::default().with_infer_schema_length(if typed { None } else { Some(0) });
    options.into_reader_with_file_handle(Cursor::new(text)).finish()
}

fn read_ndjson(text: &[u8]) -> PolarsResult<DataFrame> {
    JsonReader::new(Cursor::new(text)).with_json_format(JsonFormat::JsonLines).infer_schema_len(None).finish()
}

fn read_partitions(files: &[Bytes]) -> PolarsResult<DataFrame> {
    let mut all: Option<DataFrame> = None;
    for file in files {
        let frame = IpcReader::new(Cursor::new(file)).finish()?;
        match &mut all {
            // An empty output of a program has no columns.
            Some(all) if all.width() > 0 && frame.width() > 0 => drop(all.vstack_mut(&frame)?),
            Some(all) if all.width() > 0 => {}
            _ => all = Some(frame),
        }
    }
    Ok(all.unwrap_or_default())
}

fn write(mut frame: DataFrame, format: Format) -> PolarsResult<Bytes> {
    let mut bytes = Vec::new();
    match format {
        Format::Arrow => {
            ipc::write(&frame, None, &mut bytes)?;
            let file = Bytes::from(bytes);
            return stream_of(&file).map_err(|error| polars_err!(ComputeError: "{error}"));
        }
        _ if frame.width() == 0 => {}
        Format::Csv => CsvWriter::new(&mut bytes).include_header(true).finish(&mut frame)?,
        Format::Ndjson => {
            JsonWriter::new(&mut bytes).with_json_format(JsonFormat::JsonLines).finish(&mut frame)?;
        }
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use floe_protocol::Function;
    use floe_protocol::function::{Argument, Limits};
    use polars::df;

    use super::*;
    use crate::worker::hosts::tests::{Fixture, a_fixture, file_argument, program, until};

    fn file_of(frame: &DataFrame) -> Bytes {
        let mut file = Vec::new();
        ipc::write(frame, None, &mut file).unwrap();
        file.into()
    }

    fn frame_of(returned: Returned) -> DataFrame {
        let Returned::Frame { file, rows } = returned else { panic!("an object") };
        let frame = IpcReader::new(Cursor::new(file)).finish().unwrap();
        assert_eq!(frame.height() as u64, rows);
        frame
    }

    async fn run(it: &Fixture, function: &Function, argument: Argument, inputs: Vec<Bytes>) -> DataFrame {
        frame_of(it.run_with(0, function, argument, inputs).await.unwrap())
    }

    fn mixed() -> DataFrame {
        df!("n" => [Some(1i64), None, Some(3)], "text" => ["a,b", "ä \"q\"", "007"]).unwrap()
    }

    #[tokio::test]
    async fn programs_read_and_write_tables_in_each_format() {
        let it = a_fixture();
        let cat = |stdin, stdout| program(&it, "#!/bin/sh\nexec cat\n", stdin, stdout);
        let inputs = vec![file_of(&mixed()), file_of(&mixed())];
        let twice = mixed().vstack(&mixed()).unwrap();
        let arrow = run(&it, &cat(Format::Arrow, Format::Arrow), Argument::None, inputs.clone()).await;
        assert_eq!(arrow, twice);
        let one = run(&it, &cat(Format::Arrow, Format::Arrow), Argument::None, vec![file_of(&mixed())]).await;
        assert_eq!(one, mixed());
        let json = run(&it, &cat(Format::Ndjson, Format::Ndjson), Argument::None, inputs.clone()).await;
        assert_eq!(json, twice);
        let text = run(&it, &cat(Format::Csv, Format::Csv), Argument::None, inputs.clone()).await;
        let n = text.column("n").unwrap().str().unwrap().clone();
        assert_eq!(n.get(0), Some("1"));
        assert_eq!((n.get(1), text.height()), (None, 6));
        assert_eq!(text.column("text").unwrap().str().unwrap().get(2), Some("007"), "letter by letter");
        let nothing = run(&it, &cat(Format::Csv, Format::Csv), Argument::None, Vec::new()).await;
        assert_eq!(nothing.shape(), (0, 0));
        let wide = program(
            &it,
            "#!/bin/sh\nread one\necho \"$FLOE_JOB,$FLOE_PARTITION,$COLOUR\"\necho \"$1,$2,$one\"\n",
            Format::Csv,
            Format::Csv,
        );
        // It reads one line of many.
        let many = df!("n" => (0..300_000i64).collect::<Vec<_>>()).unwrap();
        let seen = run(&it, &wide, Argument::None, vec![file_of(&many)]).await;
        assert_eq!(seen, df!("0000000000000001" => ["one"], "0" => ["two words"], "blue" => ["n"]).unwrap());
    }

    #[tokio::test]
    async fn files_are_passed_as_they_are_or_converted() {
        let it = a_fixture();
        let cat = |stdin, stdout| program(&it, "#!/bin/sh\nexec cat\n", stdin, stdout);
        let file = |name: &str, content: &[u8]| {
            let path = it.path().join(name);
            std::fs::write(&path, content).unwrap();
            file_argument(&path)
        };
        let lines = program(&it, "#!/bin/sh\necho lines; exec wc -c\n", Format::Csv, Format::Csv);
        for (name, bytes) in [("odd.csv", 7), ("a.log", 7)] {
            let counted = run(&it, &lines, file(name, b"a;b\r\n\x00\n"), Vec::new()).await;
            assert_eq!(counted, df!("lines" => [bytes.to_string()]).unwrap());
        }
        let json = file("a.json", br#"[{"n": 1, "text": "a,b"}, {"text": "7"}]"#);
        let converted = run(&it, &cat(Format::Csv, Format::Csv), json, Vec::new()).await;
        assert_eq!(converted, df!("n" => [Some("1"), None], "text" => ["a,b", "7"]).unwrap());
        let csv = file("a.csv", b"n,text\n01,x\n");
        let converted = run(&it, &cat(Format::Arrow, Format::Arrow), csv, Vec::new()).await;
        assert_eq!(converted, df!("n" => ["01"], "text" => ["x"]).unwrap());
        let parquet = it.path().join("a.parquet");
        ParquetWriter::new(File::create(&parquet).unwrap()).finish(&mut mixed()).unwrap();
        for (format, function) in [Format::Arrow, Format::Ndjson].map(|format| (format, cat(format, format)))
        {
            let converted = run(&it, &function, file_argument(&parquet), Vec::new()).await;
            assert_eq!(converted, mixed(), "{format:?}");
        }
        let arrow = file("a.arrow", &file_of(&mixed()));
        assert_eq!(run(&it, &cat(Format::Arrow, Format::Arrow), arrow, Vec::new()).await, mixed());
        let empty = file("empty.csv", b"");
        assert_eq!(
            run(&it, &cat(Format::Arrow, Format::Arrow), empty.clone(), Vec::new()).await.shape(),
            (0, 0)
        );
        assert_eq!(run(&it, &cat(Format::Csv, Format::Csv), empty, Vec::new()).await.shape(), (0, 0));
        let unknown = file("a.log", b"lines");
        let failure =
            it.run_with(0, &cat(Format::Arrow, Format::Arrow), unknown, Vec::new()).await.unwrap_err();
        assert!(failure.to_string().contains("a.log cannot be handed to clean.sh as arrow"), "{failure}");
        let broken = file("b.parquet", b"PAR1 and no more");
        let failure = it.run_with(0, &cat(Format::Csv, Format::Csv), broken, Vec::new()).await.unwrap_err();
        assert!(matches!(failure, Failure::Refused { .. }), "{failure}");
    }

    #[tokio::test]
    async fn rubbish_on_stdout_is_told_with_its_first_bytes() {
        let it = a_fixture();
        let cases = [
            (Format::Csv, r"\377\376 bytes", r#"and wrote "\xff\xfe bytes": it is not text"#),
            (Format::Csv, r"a,b\n\0000\n", r#"and wrote "a,b\n\x000\n": text has no zero bytes"#),
            (Format::Csv, r"a,b\n1,2,3\n", "it should write CSV with a header to stdout"),
            (
                Format::Ndjson,
                r"no json\n",
                "it should write a JSON object a line to stdout, and wrote \"no json",
            ),
            (
                Format::Arrow,
                r"no arrow\n",
                "it should write an Arrow IPC stream to stdout, and wrote \"no arrow",
            ),
            (Format::Arrow, r"ARROW1\n", "it should write an Arrow IPC stream to stdout, and wrote \"ARROW1"),
        ];
        for (format, printed, expected) in cases {
            let function = program(&it, &format!("#!/bin/sh\nprintf '{printed}'\n"), Format::Csv, format);
            let failure = it.run(&function).await.unwrap_err();
            assert!(matches!(failure, Failure::Exception { .. }), "{failure:?}");
            assert!(failure.to_string().contains(expected), "{failure}");
        }
        let limits = Limits { memory_bytes: None, time_ms: Some(200) };
        let hangs = program(&it, "#!/bin/sh\nsleep 600 & wait\n", Format::Csv, Format::Csv);
        let failure = it.run(&Function { limits, ..hangs }).await.unwrap_err();
        assert!(matches!(failure, Failure::Limit { .. }), "{failure}");
        until(|| it.is_alone()).await;
    }

    #[test]
    fn endings_say_what_a_file_is() {
        let kinds = ["a.CSV", "a.csv.gz", "b.jsonl", "b.ndjson.zst", "c.parquet", "d.ipc", "e.txt", "csv"];
        let kinds = kinds.map(|name| kind(Path::new(name)));
        use Kind::*;
        assert_eq!(kinds, [Csv, PackedCsv, Ndjson, PackedNdjson, Parquet, ArrowStream, Unknown, Unknown]);
    }
}
