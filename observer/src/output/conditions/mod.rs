//! The conditions under which the target ran, in words: the same for the terminal and the page.

mod connections;
mod counters;
mod cpu_limits;
mod cpu_time;
mod descriptors;
mod disks;
mod memory_limits;
mod network;
mod pressure;
mod ran_instead;

use crate::model::Summary;

/// What can be said about one kind of condition: a heading, and what gives its paragraphs.
type Kind = (&'static str, fn(&Summary) -> Vec<String>);

/// The heading under which the page also shows a table.
pub(super) const RAN_INSTEAD: &str = "Who ran instead of the target";

const SECTIONS: &[Kind] = &[
    (RAN_INSTEAD, |summary| ran_instead::paragraphs(&summary.conditions)),
    ("CPU limits", |summary| cpu_limits::paragraphs(&summary.conditions)),
    ("Network", network::paragraphs),
    ("CPU time and frequency", |summary| cpu_time::paragraphs(&summary.conditions)),
    ("Open descriptors", descriptors::paragraphs),
    ("Memory limits", |summary| memory_limits::paragraphs(&summary.conditions)),
    ("Disks", disks::paragraphs),
    ("Counters", counters::paragraphs),
    ("Pressure", |summary| pressure::paragraphs(&summary.conditions)),
];

/// Headings with their paragraphs, of those kinds about which there is anything to say.
pub(super) fn sections(summary: &Summary) -> impl Iterator<Item = (&'static str, Vec<String>)> {
    SECTIONS
        .iter()
        .map(|(heading, paragraphs)| (*heading, paragraphs(summary)))
        .filter(|(_, paragraphs)| !paragraphs.is_empty())
}
