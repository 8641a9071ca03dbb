//! Plain text tables for people: columns in line, no borders, no colours.

use std::fmt::Write;
use std::time::Duration;

use floe_protocol::node::is_unseen;

/// The most characters of a cell: what others call their nodes and jobs is shown here.
const MAX_CELL: usize = 1_000;

/// Text for one line of a terminal, whoever wrote it: what would change how others are shown is shown and not obeyed.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::new();
    for (at, character) in text.chars().enumerate() {
        match character {
            _ if at == MAX_CELL => {
                plain.push('…');
                break;
            }
            _ if character.is_control() => plain.extend(character.escape_debug()),
            _ if is_unseen(character) => plain.extend(character.escape_unicode()),
            _ => plain.push(character),
        }
    }
    plain
}

/// Lays rows out under their headers.
pub(super) fn layout<const N: usize>(headers: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headers.map(|header| header.chars().count());
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; N]| {
        let mut padded = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(padded, "{cell:<width$}  ");
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    };
    line(headers);
    for row in &rows {
        line(row.each_ref().map(String::as_str));
    }
    text
}

/// Bytes for people: `512 B`, `1.5 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() < 0.05 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Counts for people: `1_234_567`.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// Spans of time for people: `12 ms`, `3.4 s`, `2 min 5 s`.
/// The same of a duration.
pub(super) fn span(span: Duration) -> String {
    span_ms(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn span_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        _ => format!("{} min {} s", ms / 60_000, ms / 1_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_in_line_and_lines_have_no_trailing_blanks() {
        let rows = [["1".into(), "näme".into()], ["22".into(), String::new()]];
        assert_eq!(layout(["ID", "NAME"], &rows), "ID  NAME\n1   näme\n22\n");
    }

    #[test]
    fn what_others_wrote_stays_in_its_cell() {
        let rows = [["\u{1b}[31ma\nb".to_owned()], ["x".repeat(100_000)]];
        let text = layout(["NAME"], &rows);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains(r"\u{1b}[31ma\nb") && text.len() < 3_000, "{text}");
    }

    #[test]
    fn sizes_counts_and_spans_read_well() {
        assert_eq!([bytes(0), bytes(1536), bytes(1 << 30)], ["0 B", "1.5 KiB", "1 GiB"]);
        assert_eq!([count(7), count(1_000), count(1_234_567)], ["7", "1_000", "1_234_567"]);
        assert_eq!([span_ms(999), span_ms(1_500), span_ms(125_000)], ["999 ms", "1.5 s", "2 min 5 s"]);
    }
}
