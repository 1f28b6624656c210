//! Stacks for users at a terminal.

use std::path::Path;

use super::place::KERNEL;
use super::rows::OfCause;
use super::{Place, WaitingStacks};
use crate::model::Cause;
use crate::output::terminal::{Paint, wrapped};
use crate::output::text::{clean, count, duration};

/// Causes named in the short form.
const BRIEF_CAUSES: usize = 4;

/// What is said of time whose cause is not known.
const NOT_KNOWN: &str =
    "no record says why; sleeps are recorded of threads that serve requests only";

/// The stacks by cause, of each cause at most so many, with or without colours.
#[must_use]
pub fn render(waiting: &WaitingStacks, top: usize, colour: bool) -> String {
    let paint = Paint::new(colour);
    let mut text = String::new();
    wrapped(&mut text, &paint.heading(&waiting.headline()), "");
    for note in &waiting.notes {
        wrapped(&mut text, &paint.warning(&clean(note, 400)), "  ! ");
    }
    if !waiting.rows.is_empty() {
        let order = format!(
            "The innermost function comes first; those of the kernel end in {KERNEL}. Shares are of the \
             time that is shown."
        );
        wrapped(&mut text, &order, "");
    }
    for of_cause in waiting.by_cause() {
        text.push('\n');
        cause(&mut text, waiting, &of_cause, top, paint);
    }
    text
}

/// `lock_wait: waiting for a lock, 8.20 s (67 %)`.
pub(super) fn heading(waiting: &WaitingStacks, of_cause: &OfCause<'_>) -> String {
    let OfCause { cause, time_ns, .. } = of_cause;
    let title = match *cause {
        Cause::UNEXPLAINED => NOT_KNOWN.to_owned(),
        cause => {
            let mut title = cause.info().title.to_owned();
            title.get_mut(..1).iter_mut().for_each(|first| first.make_ascii_lowercase());
            title
        }
    };
    let (time, share) = (duration(*time_ns as f64), waiting.share(*time_ns));
    format!("{}: {title}, {time} ({share})", cause.name())
}

fn cause(
    text: &mut String,
    waiting: &WaitingStacks,
    of_cause: &OfCause<'_>,
    top: usize,
    paint: Paint,
) {
    wrapped(text, &paint.heading(&heading(waiting, of_cause)), "");
    for stack in of_cause.stacks.iter().take(top) {
        let (time, share) = (duration(stack.time_ns as f64), waiting.share(stack.time_ns));
        let times = times(stack.count);
        let threads = stack.threads();
        text.push_str(&format!("  {time:>8} {share:>6}  {times} in {threads}\n"));
        for (place, is_kernel) in stack.places() {
            text.push_str(&format!("      {}\n", name(place, is_kernel)));
        }
    }
    let rest = of_cause.stacks.get(top..).unwrap_or_default();
    if !rest.is_empty() {
        let rest_ns = rest.iter().fold(0_u64, |sum, stack| sum.saturating_add(stack.time_ns));
        let (number, time) = (count(rest.len() as u64), duration(rest_ns as f64));
        text.push_str(&format!("  {time:>8} {:>6}  in {number} more\n", waiting.share(rest_ns)));
    }
}

/// `once`, `2,001 times`.
pub(super) fn times(number: u64) -> String {
    if number == 1 { "once".to_owned() } else { format!("{} times", count(number)) }
}

/// `futex_wait_queue_[k]`, `accept4 (libc.so.6)`.
pub(super) fn name(place: &Place, is_kernel: bool) -> String {
    let name = place.name();
    match place.file() {
        _ if is_kernel => name + KERNEL,
        Some(file) if place.function.is_some() => format!("{name} ({file})"),
        _ => name,
    }
}

/// What a report says, a paragraph each: how long the threads waited, and how to see more.
pub(in crate::output) fn brief(waiting: &WaitingStacks, run: &Path) -> Vec<String> {
    let mut text = waiting.headline();
    let causes = waiting.by_cause();
    if causes.is_empty() {
        return vec![text];
    }
    let named = causes.iter().take(BRIEF_CAUSES).map(|of_cause| {
        let share = waiting.share(of_cause.time_ns);
        let place = of_cause.stacks.first().and_then(|stack| stack.telling());
        let most = place.map_or_else(String::new, |(place, is_kernel)| {
            format!(", most of all in {}", name(place, is_kernel))
        });
        format!("{} {share}{most}", of_cause.cause.name())
    });
    text += &format!(" Why: {}.", named.collect::<Vec<_>>().join("; "));
    let run = clean(&run.display().to_string(), 4_096);
    vec![text, format!("`observer stacks {run}` shows their stacks.")]
}
