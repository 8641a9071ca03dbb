//! Whether two partitions are parts of one table, and if not, what differs.

/// How many columns a difference lists: the rest would bury the sentence.
const MAX_LISTED: usize = 8;

/// A column's name and type, as people read them.
pub(crate) type Column = (String, String);

/// What differs between partition 0's columns and those of another partition; nothing if they fit.
pub(crate) fn difference(first: &[Column], partition: u32, other: &[Column]) -> Option<String> {
    if first == other {
        return None;
    }
    let find = |columns: &[Column], name: &str| {
        columns.iter().find(|(known, _)| known == name).map(|(_, kind)| kind.clone())
    };
    let mut found = Vec::new();
    for (name, kind) in first {
        match find(other, name) {
            Some(other) if other == *kind => {}
            Some(other) => {
                found.push(format!(
                    "column {name} is {kind} in partition 0 and {other} in partition {partition}"
                ));
            }
            None => found.push(format!("column {name} ({kind}) is only in partition 0")),
        }
    }
    for (name, kind) in other {
        if find(first, name).is_none() {
            found.push(format!("column {name} ({kind}) is only in partition {partition}"));
        }
    }
    if found.is_empty() {
        return Some(format!(
            "the columns stand in another order, {} in partition 0 and {} in partition {partition}",
            names(first),
            names(other)
        ));
    }
    if found.len() > MAX_LISTED {
        let more = found.len() - MAX_LISTED;
        found.truncate(MAX_LISTED);
        found.push(format!("and {more} more"));
    }
    Some(found.join("; "))
}

fn names(columns: &[Column]) -> String {
    let names: Vec<_> = columns.iter().take(MAX_LISTED).map(|(name, _)| name.as_str()).collect();
    let more = if columns.len() > MAX_LISTED { ", …" } else { "" };
    names.join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(text: &str) -> Vec<Column> {
        let column = |part: &str| part.split_once(':').map(|(name, kind)| (name.to_owned(), kind.to_owned()));
        text.split_whitespace().filter_map(column).collect()
    }

    #[test]
    fn a_difference_is_told_column_by_column() {
        let first = columns("carrier:Utf8 delay:Int64 origin:Utf8");
        assert_eq!(difference(&first, 3, &first), None);
        let told = difference(&first, 3, &columns("carrier:Utf8 delay:Float64 tail:Utf8")).unwrap();
        assert_eq!(
            told,
            "column delay is Int64 in partition 0 and Float64 in partition 3; \
             column origin (Utf8) is only in partition 0; column tail (Utf8) is only in partition 3"
        );
        let told = difference(&first, 1, &columns("delay:Int64 carrier:Utf8 origin:Utf8")).unwrap();
        assert!(told.contains("another order, carrier, delay, origin in partition 0 and delay"), "{told}");
        let many: String = (0..20).map(|at| format!("c{at}:Utf8 ")).collect();
        assert!(difference(&columns(&many), 1, &[]).unwrap().ends_with("; and 12 more"));
    }
}
