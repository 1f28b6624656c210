//! How often similar messages are written: a maximum per minute, and a count of the rest.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// Similar messages written in a [`WINDOW`].
const SHOWN_MAX: u32 = 10;

/// The minute begins with the first of the similar messages.
const WINDOW: Duration = Duration::from_secs(60);

/// Kinds of messages that are distinguished; beyond these, all messages of one place in the source
/// are similar.
const KINDS_MAX: usize = 1_024;

/// Messages are similar when they come from one place in the source and differ in numbers only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    place: Identifier,
    text: u64,
}

impl Key {
    /// The key of an event, and its message.
    pub(super) fn of(event: &Event<'_>) -> (Self, String) {
        let mut text = Text(String::new());
        event.record(&mut text);
        (Self::new(event.metadata().callsite(), &text.0), text.0)
    }

    fn new(place: Identifier, text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        for c in text.chars().filter(|c| !c.is_ascii_digit()) {
            c.hash(&mut hasher);
        }
        Self { place, text: hasher.finish() }
    }
}

/// The message and the fields of an event, in one line.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is written.
    Show,
    /// It is counted.
    Suppress,
    /// It is counted, the first of its minute; the minute is over after this time.
    SuppressFirst(Duration),
}

/// Messages that were counted instead of written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suppressed {
    pub(super) count: u64,
    pub(super) level: Level,
    /// The last of them.
    pub(super) example: String,
}

struct Minute {
    begin: Instant,
    shown: u32,
    suppressed: Option<Suppressed>,
}

/// Counts similar messages. Pure: the time is given.
#[derive(Default)]
pub(super) struct RateLimit {
    minutes: HashMap<Key, Minute>,
    /// Of minutes that ended before they were read.
    overdue: Vec<Suppressed>,
}

impl RateLimit {
    /// Decides about a message.
    pub(super) fn admit(
        &mut self,
        mut key: Key,
        level: Level,
        text: &str,
        now: Instant,
    ) -> Admission {
        if self.minutes.len() >= KINDS_MAX && !self.minutes.contains_key(&key) {
            self.forget_past(now);
            if self.minutes.len() >= KINDS_MAX {
                key.text = 0;
            }
        }
        let begin = || Minute { begin: now, shown: 0, suppressed: None };
        let minute = self.minutes.entry(key).or_insert_with(begin);
        if now.duration_since(minute.begin) >= WINDOW {
            self.overdue.extend(minute.suppressed.take());
            *minute = begin();
        }
        if minute.shown < SHOWN_MAX {
            minute.shown += 1;
            return Admission::Show;
        }
        let example = text.trim_end().to_owned();
        match &mut minute.suppressed {
            Some(suppressed) => {
                suppressed.count += 1;
                suppressed.example = example;
                Admission::Suppress
            }
            none => {
                *none = Some(Suppressed { count: 1, level, example });
                let over = minute.begin + WINDOW;
                Admission::SuppressFirst(over.saturating_duration_since(now))
            }
        }
    }

    fn forget_past(&mut self, now: Instant) {
        let overdue = &mut self.overdue;
        self.minutes.retain(|_, minute| {
            let lives = now.duration_since(minute.begin) < WINDOW;
            if !lives {
                overdue.extend(minute.suppressed.take());
            }
            lives
        });
    }

    /// Takes what was suppressed in minutes that are over at `now`; without `now`, in all of them.
    pub(super) fn take_due(&mut self, now: Option<Instant>) -> Vec<Suppressed> {
        let mut due = std::mem::take(&mut self.overdue);
        for minute in self.minutes.values_mut() {
            if now.is_none_or(|now| now.duration_since(minute.begin) >= WINDOW) {
                due.extend(minute.suppressed.take());
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use tracing::Callsite;
    use tracing::metadata::Kind;

    use super::*;

    /// A place in the source.
    struct Place;
    static PLACE: Place = Place;
    static META: tracing::Metadata<'static> = tracing::metadata! {
        name: "place", target: "observer", level: Level::WARN, fields: &["message"],
        callsite: &PLACE, kind: Kind::EVENT,
    };

    impl Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &tracing::Metadata<'_> {
            &META
        }
    }

    fn admit(limit: &mut RateLimit, text: &str, now: Instant) -> Admission {
        let key = Key::new(META.callsite(), text);
        limit.admit(key, Level::WARN, text, now)
    }

    #[test]
    fn similar_messages_are_counted_and_reported_once() {
        let (mut limit, begin) = (RateLimit::default(), Instant::now());
        for n in 0..SHOWN_MAX {
            assert_eq!(admit(&mut limit, &format!("lost {n}"), begin), Admission::Show);
        }
        let later = begin + Duration::from_secs(20);
        let first = admit(&mut limit, "lost 11", later);
        assert_eq!(first, Admission::SuppressFirst(Duration::from_secs(40)));
        assert_eq!(admit(&mut limit, "lost 12", later), Admission::Suppress);
        assert_eq!(admit(&mut limit, "found 12", later), Admission::Show, "another message");
        assert_eq!(limit.take_due(Some(later)), [], "the minute is not over");
        let due = limit.take_due(Some(begin + WINDOW));
        let expected = Suppressed { count: 2, level: Level::WARN, example: "lost 12".into() };
        assert_eq!(due, [expected]);
        assert_eq!(limit.take_due(None), []);
        assert_eq!(admit(&mut limit, "lost 13", begin + WINDOW), Admission::Show);
    }

    #[test]
    fn nothing_is_forgotten_between_two_minutes_or_at_the_end() {
        let (mut limit, begin) = (RateLimit::default(), Instant::now());
        for _ in 0..SHOWN_MAX + 3 {
            admit(&mut limit, "lost", begin);
        }
        // The next minute begins before the first one was read.
        for _ in 0..SHOWN_MAX + 2 {
            admit(&mut limit, "lost", begin + WINDOW);
        }
        let counts: Vec<u64> = limit.take_due(None).iter().map(|due| due.count).collect();
        assert_eq!(counts, [3, 2]);
    }

    #[test]
    fn many_kinds_of_messages_take_bounded_memory() {
        let (mut limit, begin) = (RateLimit::default(), Instant::now());
        let word = |n: usize| "ab".repeat(n % 97) + &"c".repeat(n / 97);
        let all = 3 * KINDS_MAX;
        let shown =
            (0..all).filter(|n| admit(&mut limit, &word(*n), begin) == Admission::Show).count();
        assert!(limit.minutes.len() <= KINDS_MAX + 1);
        let suppressed: u64 = limit.take_due(None).iter().map(|due| due.count).sum();
        assert_eq!(shown as u64 + suppressed, all as u64);
        admit(&mut limit, "new", begin + WINDOW);
        assert_eq!(limit.minutes.len(), 1, "minutes that are over are forgotten");
    }
}
