//! Folded stacks, as flame graphs are made of: a line a stack.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::WaitingStacks;
use super::place::KERNEL;
use crate::text::clean;

/// Characters of a thread's name.
const THREAD_CHARACTERS: usize = 64;

/// The stacks, a line each: the thread, the places from the outermost to the innermost one with semicolons between them,
/// and the microseconds. Time of all causes is together.
#[must_use]
pub fn render(waiting: &WaitingStacks) -> String {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for row in &waiting.rows {
        let mut line = plain(&clean(&row.thread, THREAD_CHARACTERS));
        for place in row.user.iter().rev() {
            line.push(';');
            line.push_str(&plain(&place.name()));
        }
        for place in row.kernel.iter().rev() {
            let _ = write!(line, ";{}{KERNEL}", plain(&place.name()));
        }
        let sum_ns = lines.entry(line).or_default();
        *sum_ns = sum_ns.saturating_add(row.time_ns);
    }
    let mut text = String::new();
    for (line, sum_ns) in lines {
        // A line with nothing would be ignored.
        let _ = writeln!(text, "{line} {}", (sum_ns.saturating_add(500) / 1_000).max(1));
    }
    text
}

/// A name without the characters that have a meaning in the format.
fn plain(name: &str) -> String {
    let plain = |c: char| match c {
        ';' => ':',
        c if c.is_whitespace() => '_',
        c => c,
    };
    if name.is_empty() { "?".to_owned() } else { name.chars().map(plain).collect() }
}
