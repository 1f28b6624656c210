//! Numbers and names in words: shared by the rows of tables and the outputs for users.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A duration with three significant digits: `41.2 ms`.
#[must_use]
pub fn duration(ns: f64) -> String {
    let (value, unit) = match ns.abs() {
        small if small < 999.5 => return format!("{ns:.0} ns"),
        micro if micro < 999.5e3 => (ns / 1e3, "µs"),
        milli if milli < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = match value.abs() {
        below if below < 9.995 => 2,
        below if below < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// An instant of the run, to the microsecond: `9.603421 s`.
#[must_use]
pub fn instant(offset_ns: f64) -> String {
    format!("{:.6} s", offset_ns / 1e9)
}

/// A whole number with separators: `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size: `4 MiB`, `1.5 GiB`, `300 B`.
#[must_use]
pub fn bytes(size: u64) -> String {
    let mut value = size as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    let digits = usize::from(value.fract() > 0.04 && value < 100.0);
    format!("{value:.digits$} {unit}")
}

/// A share: `71 %`, `0.4 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    let digits = usize::from(value.abs() < 9.95 && value != 0.0);
    let text = format!("{value:.digits$} %");
    // A negative share that rounds to nothing would read "-0.0 %".
    if text.trim_start_matches('-').starts_with("0.0 ") { "0 %".to_owned() } else { text }
}

/// The text of the kernel in a field of fixed length: what comes before the first NUL.
#[must_use]
pub fn until_nul(bytes: &[u8]) -> Cow<'_, str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

/// Codes of the styles that observer itself prints: ESC, `[`, one of them, `m`.
const STYLES: [&str; 8] = ["0", "1", "2", "33", "1;31", "1;32", "1;33", "1;36"];

/// Whether a character cannot rewrite the terminal or the line: no control character (C0, DEL, C1), and
/// none that is invisible or changes the direction of the text.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

const fn or_question_mark(harmless: bool, c: char) -> char {
    if harmless { c } else { '?' }
}

/// Text of unknown origin for one line: whatever could rewrite the terminal or the line becomes `?`,
/// and long text is cut.
#[must_use]
pub fn clean(text: &str, longest: usize) -> String {
    let mut characters = text.chars();
    let mut cleaned: String =
        characters.by_ref().take(longest).map(|c| or_question_mark(is_harmless(c), c)).collect();
    if characters.next().is_some() {
        cleaned.push('…');
    }
    cleaned
}

/// Everything that is printed for users goes through here: text in which only line ends are left of
/// what could rewrite the terminal, and with `styles` the styles that observer itself uses.
#[must_use]
pub fn printable(text: &str, styles: bool) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let style = STYLES.iter().find_map(|code| {
            let after = rest.strip_prefix("\u{1b}[")?.strip_prefix(code)?.strip_prefix('m')?;
            Some(&rest[..rest.len() - after.len()])
        });
        let length = if let Some(style) = style.filter(|_| styles) {
            cleaned.push_str(style);
            style.len()
        } else {
            cleaned.push(or_question_mark(c == '\n' || is_harmless(c), c));
            c.len_utf8()
        };
        rest = &rest[length..];
    }
    cleaned
}

/// Everything that is printed as JSON goes through here: the same JSON, in which what could rewrite a
/// terminal is escaped.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || is_harmless(c) {
            escaped.push(c);
        } else {
            // Outside the first plane there is none, so that one unit is enough.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        }
    }
    escaped
}

/// `worker-*` of `worker-17`.
#[must_use]
pub fn without_number(name: &str) -> String {
    let kept = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    if kept.len() == name.len() { name.to_owned() } else { format!("{kept}*") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (ns, text) in [
            (0.0, "0 ns"),
            (999.0, "999 ns"),
            (999.6, "1.00 µs"),
            (41_200_000.0, "41.2 ms"),
            (999_600_000.0, "1.00 s"),
            (123_000.0, "123 µs"),
        ] {
            assert_eq!(duration(ns), text);
        }
        assert_eq!(instant(9_603_421_999.0), "9.603422 s");
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
        assert_eq!(bytes(4 << 20), "4 MiB");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(17), "17 B");
        assert_eq!(percent(0.71), "71 %");
        assert_eq!(percent(0.004), "0.4 %");
        assert_eq!(percent(-0.0001), "0 %");
        assert_eq!(percent(0.0), "0 %");
    }

    #[test]
    fn text_in_a_field_ends_at_the_first_nul() {
        assert_eq!(until_nul(b"nginx\0\0rest"), "nginx");
        assert_eq!(until_nul(b"all of it"), "all of it");
        assert_eq!(until_nul(b"\0"), "");
        assert_eq!(until_nul(b"h\xf6g\0"), "h\u{fffd}g");
    }

    #[test]
    fn hostile_text_cannot_steer_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{202e}d", 50), "a?[2Jb?c?d");
        assert_eq!(clean("abcdef", 3), "abc…");
        assert_eq!(clean("hög", 3), "hög");
        let hostile = "\u{1b}[1;31m\u{1b}[8m\u{7f}\u{9b}2J\u{61c}\u{2066}\r\n\u{7}ä";
        assert_eq!(printable(hostile, false), "?[1;31m?[8m??2J???\n?ä");
        assert_eq!(printable(hostile, true), "\u{1b}[1;31m?[8m??2J???\n?ä");
    }

    #[test]
    fn json_that_is_printed_means_the_same() {
        let hostile = "\u{1b}[8m\u{7f}\u{9b}2J\u{61c}\u{2066}\r\n\u{7}\"ä\\";
        let json = serde_json::to_string_pretty(&[hostile]).unwrap();
        let printed = printable_json(&json);
        assert_eq!(printable(&printed, false), printed);
        assert_eq!(serde_json::from_str::<Vec<String>>(&printed).unwrap(), [hostile]);
    }
}
