//! A file's text as its documents.
//!
//! Splitting comes before parsing, as kubectl does it: so a document that is not YAML spoils
//! itself only. The price is kubectl's too: a line `---` at the start of a line inside a block
//! scalar ends the document.

/// One document of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// From 1; documents without content are not counted.
    pub(super) number: usize,
    /// The line of the file, from 1, on which `text` begins.
    pub(super) first_line: usize,
    pub(super) text: &'a str,
}

impl Document<'_> {
    /// The line on which the first content stands.
    pub(super) fn line(&self) -> usize {
        let blank = self.text.lines().take_while(|line| !is_content(line)).count();
        self.first_line + blank
    }
}

/// The documents of `text` that have content.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut from, mut first_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if let Some(content) = separator(line) {
            parts.push((first_line, &text[from..at]));
            (from, first_line) = (at + content, index + 1);
        }
        at += line.len();
    }
    parts.push((first_line, &text[from..]));
    let with_content = parts.into_iter().filter(|(_, text)| text.lines().any(is_content));
    let numbered = with_content.enumerate();
    numbered
        .map(|(index, (first_line, text))| Document { number: index + 1, first_line, text })
        .collect()
}

/// Where the next document's text begins in `line`, if `line` ends a document. Content may follow
/// on the same line (`--- {"kind": ...}`); a ruler of dashes separates too.
fn separator(line: &str) -> Option<usize> {
    let rest = line.strip_prefix("---")?;
    if rest.trim_end().bytes().all(|b| b == b'-') {
        // Without the line break, so that lines can still be counted.
        return Some(line.trim_end_matches(['\r', '\n']).len());
    }
    rest.starts_with(char::is_whitespace).then_some(3)
}

/// Comments, directives and the end marker are not content.
fn is_content(line: &str) -> bool {
    let trimmed = line.trim();
    !(trimmed.is_empty() || trimmed.starts_with('#') || line.starts_with('%') || trimmed == "...")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(usize, &str)]) {
        let found = documents(text);
        let found: Vec<_> = found.iter().map(|d| (d.line(), d.text.trim())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn documents_are_split_as_kubectl_splits_them() {
        check("", &[]);
        check("# only a comment\n---\n\n", &[]);
        check("a: 1", &[(1, "a: 1")]);
        check("---\na: 1\n---\nb: 2\n", &[(2, "a: 1"), (4, "b: 2")]);
        check("a: 1\r\n---\r\nb: 2\r\n", &[(1, "a: 1"), (3, "b: 2")]);
        check("a: 1\n--- # two\nb: 2\n", &[(1, "a: 1"), (3, "# two\nb: 2")]);
        check("--- {a: 1}\n---\n...\n", &[(1, "{a: 1}")]);
        check("%YAML 1.2\n---\na: 1\n", &[(3, "a: 1")]);
        check("a: |\n  ---\n  b\n-----\nb: 2", &[(1, "a: |\n  ---\n  b"), (5, "b: 2")]);
        check("\u{feff}---\na: 1", &[(2, "a: 1")]);
        check("---a: 1", &[(1, "---a: 1")]);
    }

    #[test]
    fn empty_documents_are_not_counted() {
        let numbers: Vec<_> =
            documents("# head\n---\na: 1\n---\n---\nb: 2").iter().map(|d| d.number).collect();
        assert_eq!(numbers, [1, 2]);
    }
}
