//! The conditions under which the target ran, in words: the same for the terminal and the page.

mod connections;
mod cpu_limits;
mod network;

use crate::model::{Conditions, Summary};

/// What can be said about one kind of condition: a heading, and what gives its paragraphs.
type Kind = (&'static str, fn(&Conditions) -> Vec<String>);

const SECTIONS: &[Kind] =
    &[("CPU limits", cpu_limits::paragraphs), ("Network", network::paragraphs)];

/// Headings with their paragraphs, of those kinds about which there is anything to say.
pub(super) fn sections(summary: &Summary) -> impl Iterator<Item = (&'static str, Vec<String>)> {
    SECTIONS
        .iter()
        .map(|(heading, paragraphs)| (*heading, paragraphs(&summary.conditions)))
        .filter(|(_, paragraphs)| !paragraphs.is_empty())
}
