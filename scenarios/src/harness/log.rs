//! What a node logged, with the times.

/// One line of a node's log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: f64,
    /// What, with level and module.
    pub text: String,
}

impl LogLine {
    /// Reads a line that starts with its time, as in `2026-01-31T23:59:59.123456Z  INFO ..`; others, such as
    /// what Polars prints, are none.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (time, text) = line.split_once(' ')?;
        Some(Self { unix_ms: unix_ms(time)?, text: text.trim_start().to_owned() })
    }

    /// What stands behind `name=`, up to the next space.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// A time in UTC as logs write it.
fn unix_ms(text: &str) -> Option<f64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let mut time = time.split(':').map(str::parse::<f64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    // Years that begin in March have their odd day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((days * 86_400) as f64 * 1e3 + (hour * 3600.0 + minute * 60.0 + second) * 1e3)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_read_as_logs_write_them() {
        for (text, wanted) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2000-02-29T12:30:00.5Z", 951_827_400_500.0),
            ("2026-11-22T00:16:17.123456Z", 1_795_306_577_123.456),
        ] {
            let read = unix_ms(text).unwrap();
            assert!((read - wanted).abs() < 0.01, "{text}: {read}");
        }
        let line = LogLine::parse("2026-11-22T00:16:17.123456Z  INFO floe::node: elected term=3").unwrap();
        assert_eq!((line.text.as_str(), line.field("term")), ("INFO floe::node: elected term=3", Some("3")));
        assert_eq!(LogLine::parse("a line of somebody else"), None);
    }
}
