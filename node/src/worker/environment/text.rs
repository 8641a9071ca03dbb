//! What pip and uv print, made fit to be shown: without control codes, and the one line of it that says why.

use std::collections::VecDeque;

/// How much of what was printed is kept.
const MAX_KEPT_BYTES: usize = 64 << 10;

/// The longest reason that is given, in characters.
const MAX_REASON_CHARS: usize = 500;

/// What begins a line that says what went wrong, for pip and for uv.
const ERRORS: [&str; 3] = ["ERROR:", "error:", "×"];

/// Lines that look like reasons and say nothing.
const EMPTY_ERRORS: [&str; 4] = [
    "ERROR: Exception:",
    "ResolutionImpossible",
    "error: subprocess-exited-with-error",
    "error: metadata-generation-failed",
];

/// Lines that are not why something ended.
const ASIDES: [&str; 6] = ["WARNING:", "warning:", "note:", "hint:", "[notice]", "[end of output]"];

/// What begins a line that says what an error comes from.
const CAUSES: [&str; 2] = ["cause:", "Caused by:"];

/// What draws a tree of causes.
const BRANCHES: [char; 8] = [' ', '│', '├', '╰', '─', '▶', '>', '|'];

/// Text without escape sequences and control characters.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            match character {
                '\t' => clean.push(' '),
                _ if character.is_control() => {}
                _ => clean.push(character),
            }
            continue;
        }
        match characters.next() {
            // A sequence of parameters up to a letter, as colours are.
            Some('[') => _ = characters.find(|c| ('\u{40}'..='\u{7e}').contains(c)),
            // A title or link up to a bell or the escape that ends it.
            Some(']') => {
                let end = characters.find(|c| matches!(c, '\u{7}' | '\u{1b}'));
                end.filter(|end| *end == '\u{1b}').and_then(|_| characters.next());
            }
            _ => {}
        }
    }
    clean
}

/// The last lines that were printed, and where the last command's begin.
#[derive(Debug, Default)]
pub(super) struct Printed {
    lines: VecDeque<String>,
    bytes: usize,
    /// How many of the lines, at the end, are the last command's.
    recent: usize,
}

impl Printed {
    /// Adds a line.
    pub(super) fn push(&mut self, line: &str) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line.to_owned());
        self.recent += 1;
        while self.bytes > MAX_KEPT_BYTES
            && let Some(first) = self.lines.pop_front()
        {
            self.bytes -= first.len() + 1;
        }
        self.recent = self.recent.min(self.lines.len());
    }

    /// Says that the next line is another command's.
    pub(super) fn begin_command(&mut self) {
        self.recent = 0;
    }

    /// All of it.
    pub(super) fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line, "\n"]).collect()
    }

    fn recent(&self) -> impl Iterator<Item = &String> {
        self.lines.iter().skip(self.lines.len() - self.recent)
    }

    /// Whether the last command printed one of these.
    pub(super) fn mentions<'a>(&self, texts: impl Iterator<Item = &'a str> + Clone) -> bool {
        self.recent().any(|line| texts.clone().any(|text| line.contains(text)))
    }

    /// Why the last command failed, in one line.
    pub(super) fn reason(&self) -> String {
        let lines: Vec<_> = self.recent().collect();
        let trimmed = |line: &&String| line.trim().to_owned();
        let error = lines.iter().rposition(|line| {
            let line = line.trim_start();
            ERRORS.iter().any(|start| line.starts_with(start))
                && !EMPTY_ERRORS.iter().any(|empty| line.contains(empty))
        });
        let mut reason = match error {
            Some(at) => with_causes(&lines[at..]),
            None => lines
                .iter()
                .rev()
                .map(trimmed)
                .find(|line| !ASIDES.iter().any(|aside| line.starts_with(aside)))
                .unwrap_or_else(|| "it printed nothing".to_owned()),
        };
        if let Some((end, _)) = reason.char_indices().nth(MAX_REASON_CHARS) {
            reason.truncate(end);
            reason.push('…');
        }
        // Both say of an index that they cannot reach that it lacks the requirement.
        if lines.iter().any(|line| line.contains("Retrying (Retry(")) {
            reason.push_str(" (the package index could not be reached)");
        }
        reason
    }
}

/// An error, and below it, further to the right, what caused it.
fn with_causes(lines: &[&String]) -> String {
    let Some((error, rest)) = lines.split_first() else { return String::new() };
    let mut text = error.trim().trim_start_matches("× ").to_owned();
    let below = |line: &&&String| line.starts_with([' ', '╰', '├', '│']);
    for line in rest.iter().take_while(below) {
        let line = line.trim_start_matches(BRANCHES).trim_end();
        if line.starts_with('[') || ASIDES.iter().any(|aside| line.starts_with(aside)) {
            break;
        }
        text.push_str(if CAUSES.iter().any(|cause| line.starts_with(cause)) { "; " } else { " " });
        text.push_str(line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        let mut printed = Printed::default();
        text.lines().for_each(|line| printed.push(line));
        printed.reason()
    }

    #[test]
    fn control_codes_go() {
        assert_eq!(clean("\u{1b}[1;31mERROR\u{1b}[0m:\ta\u{7}\u{8}"), "ERROR: a");
        assert_eq!(clean("\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{7}!"), "link!");
        assert_eq!(clean("cut \u{1b}["), "cut ");
    }

    #[test]
    fn of_pip_the_last_error_is_the_reason() {
        let text = "Looking in links: /opt/wheels\n\
            ERROR: Could not find a version that satisfies the requirement nltk==99.9 (from versions: 3)\n\
            ERROR: No matching distribution found for nltk==99.9\n\
            \n\
            [notice] A new release of pip is available: 23.2.1 -> 26.0";
        assert_eq!(reason(text), "ERROR: No matching distribution found for nltk==99.9");
        let text = "ERROR: Cannot install a==1 and b==2 because these versions conflict.\n\
            The conflict is caused by:\n    x\n\
            ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/";
        assert_eq!(reason(text), "ERROR: Cannot install a==1 and b==2 because these versions conflict.");
        let text = "error: metadata-generation-failed\n\
            × Encountered error while generating package metadata.\n\
            ╰─> foo\nnote: This is an issue with the package mentioned above, not pip.\n\
            hint: See above for details.";
        assert_eq!(reason(text), "Encountered error while generating package metadata. foo");
    }

    #[test]
    fn of_uv_the_error_comes_with_its_causes() {
        let text = "Using Python 3.11.7 environment at: /x\n\
            \u{20} × No solution found when resolving dependencies:\n\
            \u{20} ╰─▶ Because there is no version of nltk==99.9 and you require nltk==99.9, we\n\
            \u{20}     can conclude that your requirements are unsatisfiable.\n\
            \n\
            \u{20}     hint: look elsewhere";
        assert_eq!(
            reason(text),
            "No solution found when resolving dependencies: Because there is no version of nltk==99.9 and \
             you require nltk==99.9, we can conclude that your requirements are unsatisfiable."
        );
        let text = "error: Failed to fetch: `https://x/`\n  Caused by: operation timed out";
        assert_eq!(reason(text), "error: Failed to fetch: `https://x/`; Caused by: operation timed out");
        let text = "error: No solution found when resolving dependencies\n  cause: Because a was not found";
        assert_eq!(
            reason(text),
            "error: No solution found when resolving dependencies; cause: Because a was not found"
        );
    }

    #[test]
    fn an_index_that_does_not_answer_is_said_to_be_the_reason() {
        let text = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'x': /a/\n\
            ERROR: No matching distribution found for a";
        assert_eq!(
            reason(text),
            "ERROR: No matching distribution found for a (the package index could not be reached)"
        );
    }

    #[test]
    fn anything_else_is_a_reason_too() {
        assert_eq!(reason("Killed\nnote: x"), "Killed");
        assert_eq!(reason(""), "it printed nothing");
        assert_eq!(reason(&"x".repeat(1000)).chars().count(), MAX_REASON_CHARS + 1);
    }

    #[test]
    fn another_commands_lines_are_no_reason() {
        let mut printed = Printed::default();
        printed.push("ERROR: old");
        printed.begin_command();
        printed.push("new");
        assert_eq!(printed.reason(), "new");
        assert!(printed.mentions(["other", "ew"].into_iter()) && !printed.mentions(["old"].into_iter()));
        assert_eq!(printed.text(), "ERROR: old\nnew\n");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut printed = Printed::default();
        (0..10_000).for_each(|n| printed.push(&format!("line {n:>10}")));
        assert!(printed.text().len() <= MAX_KEPT_BYTES);
        assert!(printed.text().ends_with("line       9999\n"));
        assert_eq!(printed.reason(), "line       9999");
    }
}
