//! The limits of memory on the cgroups of the target, in words.

use crate::host::cgroups::with_those_above;
use crate::model::{Conditions, MemoryLimitSummary};
use crate::output::text::{bytes, clean, count};

/// Characters of the name of a cgroup.
const NAME_CHARACTERS: usize = 120;
/// Limits that are shown.
const SHOWN: usize = 4;
/// From this part of the limit on, it is said how near it is.
const NEAR: f64 = 0.9;

/// A paragraph for each limit that was hit or nearly so, those with the most kills and hits first; empty where
/// there is nothing to say.
pub(super) fn paragraphs(conditions: &Conditions) -> Vec<String> {
    let mut limits: Vec<&MemoryLimitSummary> =
        conditions.memory_limits.iter().filter(|limit| matters(limit)).collect();
    limits.sort_by_key(|limit| std::cmp::Reverse((limit.oom_kills, hits(limit))));
    let mut paragraphs: Vec<String> =
        limits.iter().take(SHOWN).map(|limit| paragraph(limit)).collect();
    let more = limits.len().saturating_sub(SHOWN);
    if more > 0 {
        paragraphs.push(format!("{more} other limits were hit no more often than these."));
    }
    let elsewhere = conditions.host_oom_kills.unwrap_or(0).saturating_sub(kills(conditions));
    if elsewhere > 0 {
        paragraphs.push(format!(
            "The kernel killed {} outside of these cgroups because no memory was left during the run; its log says which \
             (dmesg, journalctl -k).",
            processes(elsewhere)
        ));
    }
    paragraphs
}

/// Processes that were killed in all of these cgroups, each counted once: version 2 counts those of a cgroup
/// in those above it too.
fn kills(conditions: &Conditions) -> u64 {
    let limits = &conditions.memory_limits;
    let is_below_another = |one: &MemoryLimitSummary| {
        let mut above = with_those_above(&one.cgroup).skip(1);
        one.version != 1 && above.any(|above| limits.iter().any(|other| other.cgroup == above))
    };
    let once = limits.iter().filter(|limit| !is_below_another(limit));
    once.filter_map(|limit| limit.oom_kills).sum()
}

fn hits(limit: &MemoryLimitSummary) -> u64 {
    limit.limit_hits.unwrap_or(0).saturating_add(limit.high_hits.unwrap_or(0))
}

fn matters(limit: &MemoryLimitSummary) -> bool {
    let is_near = limit
        .highest_bytes
        .zip(limit.max_bytes)
        .is_some_and(|(highest, max)| highest as f64 >= NEAR * max as f64);
    hits(limit) > 0 || limit.oom_kills.is_some_and(|kills| kills > 0) || is_near
}

fn paragraph(limit: &MemoryLimitSummary) -> String {
    let file = if limit.version == 1 { "memory.limit_in_bytes" } else { "memory.max" };
    let name = clean(&limit.cgroup, NAME_CHARACTERS);
    let mut text = match limit.max_bytes {
        Some(max) => format!("Cgroup {name} may use {} of memory ({file}).", bytes(max)),
        None => format!("Cgroup {name} has no limit of its own ({file})."),
    };
    if limit.changed {
        text += " The limit was changed during the run; this is the last one.";
    }
    if let Some(highest) = limit.highest_bytes {
        text += &format!(" It used up to {}, page cache included.", bytes(highest));
    }
    let mut advice = Vec::new();
    match limit.limit_hits {
        Some(hits) if hits > 0 => {
            text += &format!(
                " It came to the limit {}: the thread that asked for memory then had to free some first (cause \
                 reclaim_memcg).",
                times(hits)
            );
            advice.push(format!("raise {file}"));
        }
        Some(_) if limit.max_bytes.is_some() => text += " It did not come to the limit.",
        _ => {}
    }
    match (limit.high_bytes, limit.high_hits) {
        (Some(high), Some(hits)) if hits > 0 => {
            text += &format!(
                " It exceeded memory.high ({}) {}: the kernel then holds its threads back until they have freed \
                 memory.",
                bytes(high),
                times(hits)
            );
            advice.push("raise memory.high".to_owned());
        }
        _ => {}
    }
    if let Some(kills) = limit.oom_kills.filter(|kills| *kills > 0) {
        text += &format!(
            " The kernel killed {} of it because no memory was left (OOM); its log says which (dmesg, journalctl -k).",
            processes(kills)
        );
        if advice.is_empty() {
            advice.push("give it more memory".to_owned());
        }
    }
    if advice.is_empty() {
        return text;
    }
    let mut advice = advice.join(", ");
    advice.get_mut(..1).into_iter().for_each(str::make_ascii_uppercase);
    format!("{text} {advice}, or let the service use less memory.")
}

fn times(number: u64) -> String {
    if number == 1 { "once".to_owned() } else { format!("{} times", count(number)) }
}

fn processes(number: u64) -> String {
    if number == 1 { "1 process".to_owned() } else { format!("{} processes", count(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::example;

    fn limit() -> MemoryLimitSummary {
        let mut limit = example::attributed().conditions.memory_limits.remove(0);
        limit.cgroup = "/foo".into();
        limit
    }

    #[test]
    fn hits_and_kills_are_told_with_what_to_do() {
        assert_eq!(
            paragraph(&limit()),
            "Cgroup /foo may use 256 MiB of memory (memory.max). It used up to 256 MiB, page cache included. It \
             came to the limit 1,234 times: the thread that asked for memory then had to free some first (cause \
             reclaim_memcg). The kernel killed 1 process of it because no memory was left (OOM); its log says which \
             (dmesg, journalctl -k). Raise memory.max, or let the service use less memory."
        );
        let older =
            MemoryLimitSummary { version: 1, oom_kills: None, limit_hits: Some(1), ..limit() };
        let text = paragraph(&older);
        assert!(text.contains("to the limit once") && !text.contains("killed"), "{text}");
        assert!(
            text.ends_with("Raise memory.limit_in_bytes, or let the service use less memory."),
            "{text}"
        );
        let high = MemoryLimitSummary {
            max_bytes: None,
            high_bytes: Some(1 << 20),
            high_hits: Some(3),
            limit_hits: Some(0),
            oom_kills: Some(0),
            changed: true,
            ..limit()
        };
        let text = paragraph(&high);
        assert!(text.contains("exceeded memory.high (1 MiB) 3 times"), "{text}");
        assert!(text.contains("was changed") && !text.contains("did not come"), "{text}");
        assert!(text.ends_with("Raise memory.high, or let the service use less memory."), "{text}");
        let near = MemoryLimitSummary { limit_hits: Some(0), oom_kills: Some(0), ..limit() };
        assert!(
            paragraph(&near).ends_with("It did not come to the limit."),
            "{}",
            paragraph(&near)
        );
    }

    #[test]
    fn a_limit_that_is_far_is_no_word_and_kills_elsewhere_are_told() {
        let mut conditions = Conditions::default();
        assert_eq!(paragraphs(&conditions), [""; 0]);
        let far = MemoryLimitSummary {
            highest_bytes: Some(1 << 20),
            limit_hits: Some(0),
            oom_kills: Some(0),
            ..limit()
        };
        conditions.memory_limits = vec![far; 2];
        conditions.host_oom_kills = Some(0);
        assert_eq!(paragraphs(&conditions), [""; 0]);
        conditions.host_oom_kills = Some(2);
        assert!(paragraphs(&conditions)[0].starts_with("The kernel killed 2 processes outside"));
        // Two processes, one of them in the cgroup below, and the same in version 1.
        for (version, below, above) in [(2, 1, 2), (1, 1, 1)] {
            let of = |cgroup: &str, kills| MemoryLimitSummary {
                cgroup: cgroup.into(),
                version,
                oom_kills: Some(kills),
                ..limit()
            };
            conditions.memory_limits = vec![of("/a/b", below), of("/a", above)];
            assert_eq!(paragraphs(&conditions).len(), 2, "{version}: no further one");
        }
        conditions.memory_limits = (1..=6)
            .map(|nth| MemoryLimitSummary { limit_hits: Some(nth), oom_kills: Some(2), ..limit() })
            .collect();
        conditions.memory_limits[5].cgroup = example::HOSTILE.into();
        let shown = paragraphs(&conditions);
        assert_eq!(shown.len(), SHOWN + 1, "{shown:?}");
        assert!(shown[0].starts_with("Cgroup </b><i>?[31m may"), "{shown:?}");
        assert_eq!(shown[SHOWN], "2 other limits were hit no more often than these.");
    }
}
