//! Stacks in the page.

use std::fmt::Write as _;
use std::path::Path;

use super::WaitingStacks;
use super::rows::{OfCause, OfStack};
use super::text::{brief, heading, name, times};
use crate::model::{Outcome, Summary};
use crate::output::html::escape;
use crate::output::text::duration;

/// Causes that are shown.
const CAUSES_SHOWN: usize = 6;
/// Stacks of a cause that are shown.
const STACKS_SHOWN: usize = 5;
/// Places of a stack that are shown, from the innermost one on.
const PLACES_SHOWN: usize = 40;

/// The stacks with the most time of each cause that the answer names; where these have none, of all causes
/// together.
pub(in crate::output) fn section(
    page: &mut String,
    waiting: &WaitingStacks,
    summary: Option<&Summary>,
    run: &Path,
) {
    page.push_str("<section><h2>Where the threads waited</h2>\n");
    for paragraph in brief(waiting, run) {
        let _ = writeln!(page, "<p>{}</p>", escape(&paragraph));
    }
    if !waiting.notes.is_empty() {
        page.push_str("<ul class=\"warnings\">");
        for note in &waiting.notes {
            let _ = write!(page, "<li>{}</li>", escape(note));
        }
        page.push_str("</ul>\n");
    }
    let conclusive = summary.filter(|summary| summary.verdict.outcome != Outcome::Inconclusive);
    let is_named = |of_cause: &&OfCause<'_>| {
        let rows = conclusive.map_or(&[][..], |summary| &summary.causes[..]);
        rows.iter().any(|row| row.named && row.cause == of_cause.cause)
    };
    let causes = waiting.by_cause();
    let named: Vec<&OfCause<'_>> = causes.iter().filter(is_named).take(CAUSES_SHOWN).collect();
    for of_cause in &named {
        let _ = writeln!(page, "<p><b>{}</b></p>", escape(&heading(waiting, of_cause)));
        of_cause.stacks.iter().take(STACKS_SHOWN).for_each(|one| stack(page, waiting, one, ""));
    }
    if named.is_empty() {
        let mut all = Vec::new();
        for of_cause in &causes {
            all.extend(of_cause.stacks.iter().map(|one| (of_cause.cause, one)));
        }
        all.sort_by_key(|(_, one)| std::cmp::Reverse(one.time_ns));
        for (cause, one) in all.into_iter().take(STACKS_SHOWN) {
            stack(page, waiting, one, cause.name());
        }
    }
    page.push_str("</section>\n");
}

fn stack(page: &mut String, waiting: &WaitingStacks, stack: &OfStack<'_>, cause: &str) {
    let (time, share) = (duration(stack.time_ns as f64), waiting.share(stack.time_ns));
    let most = stack.telling().map(|(place, is_kernel)| name(place, is_kernel));
    let title = format!(
        "{cause}{}{time}, {share}, {} in {}: {}",
        if cause.is_empty() { "" } else { ": " },
        times(stack.count),
        stack.threads(),
        most.unwrap_or_default()
    );
    let _ = write!(page, "<details><summary>{}</summary><pre>", escape(&title));
    for (place, is_kernel) in stack.places().take(PLACES_SHOWN) {
        let _ = writeln!(page, "{}", escape(&name(place, is_kernel)));
    }
    let more = stack.places().count().saturating_sub(PLACES_SHOWN);
    if more > 0 {
        let _ = writeln!(page, "and {more} more");
    }
    page.push_str("</pre></details>\n");
}
