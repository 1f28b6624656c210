//! What the BPF programs say about an event that they give up on. They are loaded with these
//! messages only if debug messages are shown.

use std::borrow::Cow;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use observer_ebpf::wire::{Config, Counts, LOSS_SLOTS, RecordKind};

use super::load::LoadError;
use super::mapped::MappedWords;
use crate::log::BPF;

/// Size of the ring when the programs log: some hundred messages.
const RING_BYTES: u32 = 64 << 10;

/// After this many messages at once the programs pause until the ring is empty. Otherwise a storm
/// of losses could keep the thread that drains the records here, and so never end.
const MESSAGES_MAX: u64 = 64;

/// The word of [`Config`] that makes the programs pause.
const PAUSED: usize = offset_of!(Config, log_paused) / 8;

/// Whether debug messages of the programs are shown.
pub(super) fn are_shown() -> bool {
    tracing::enabled!(target: BPF, tracing::Level::DEBUG)
}

/// Bytes of the messages' ring: at least a page, since it is in the object in any case.
pub(super) fn ring_bytes() -> u32 {
    if are_shown() { RING_BYTES } else { rustix::param::page_size() as u32 }
}

/// The reader of the messages.
pub(super) struct Messages {
    logger: EbpfLogger<Forward>,
    read: Arc<Read>,
    counts: Arc<MappedWords>,
    /// Messages known to be dropped.
    dropped: u64,
}

/// How far the messages were read.
struct Read {
    /// All so far.
    messages: AtomicU64,
    /// The programs pause after this one.
    pause_after: AtomicU64,
    config: Arc<MappedWords>,
}

/// From aya's logger to the project's.
struct Forward(Arc<Read>);

impl Log for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let read = &self.0;
        let number = read.messages.fetch_add(1, Ordering::Relaxed) + 1;
        if number == read.pause_after.load(Ordering::Relaxed) {
            read.config.set(PAUSED, 1);
        }
        tracing::debug!(target: BPF, "{}", named(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// The message, with the name of a kind of record where it begins with the kind's number.
fn named(message: &str) -> Cow<'_, str> {
    let name = |number: &str| RecordKind::from_raw(number.parse().ok()?).map(RecordKind::name);
    match message.split_once(':').and_then(|(number, rest)| Some((name(number)?, rest))) {
        Some((kind, rest)) => format!("{kind}:{rest}").into(),
        None => message.into(),
    }
}

impl Messages {
    /// Takes the messages' ring of the object.
    pub(super) fn of(
        ebpf: &mut Ebpf,
        config: &Arc<MappedWords>,
        counts: &Arc<MappedWords>,
    ) -> Result<Self, LoadError> {
        let config = Arc::clone(config);
        let read = Read { messages: 0.into(), pause_after: 0.into(), config };
        let read = Arc::new(read);
        let logger = EbpfLogger::init_with_logger(ebpf, Forward(Arc::clone(&read)))
            .map_err(|error| LoadError::map("AYA_LOGS", &error))?;
        Ok(Self { logger, read, counts: Arc::clone(counts), dropped: 0 })
    }

    /// Logs what the programs have said, and how many messages there was no room for.
    pub(super) fn pass_on(&mut self) {
        // Read before the messages: a program logs a loss before it counts it, so that each of
        // these losses has its message in the ring by now, unless that was dropped.
        let losses = lost(&self.counts);
        let read = &self.read;
        let pause_after = read.messages.load(Ordering::Relaxed) + MESSAGES_MAX;
        read.pause_after.store(pause_after, Ordering::Relaxed);
        self.logger.flush();
        read.config.set(PAUSED, 0);
        let dropped = losses.saturating_sub(read.messages.load(Ordering::Relaxed));
        if dropped > self.dropped {
            self.dropped = dropped;
            tracing::debug!(
                target: BPF,
                "{dropped} messages of the BPF programs were dropped so far: there were too many"
            );
        }
    }
}

/// What the programs have counted as lost, on all CPUs.
fn lost(counts: &MappedWords) -> u64 {
    const FIRST: usize = offset_of!(Counts, lost) / 8;
    let of_cpu = |cpu: &[AtomicU64]| -> u64 {
        let lost = cpu.iter().skip(FIRST).take(LOSS_SLOTS);
        lost.map(|word| word.load(Ordering::Relaxed)).sum()
    };
    counts.words().chunks(size_of::<Counts>() / 8).map(of_cpu).sum()
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{LossKind, RecordKind};

    use super::super::load::OBJECT;
    use super::named;
    use crate::model::loss_info;

    /// The sentence of a loss in the table, as the end of a message.
    fn words(kind: &str) -> String {
        let sentence = loss_info(kind).sentence;
        let (first, rest) = sentence.split_at(1);
        format!("{}{}", first.to_lowercase(), rest.trim_end_matches('.'))
    }

    #[test]
    fn each_loss_has_its_message_in_the_words_of_the_table() {
        let kinds = LossKind::ALL.into_iter().filter(|kind| *kind != LossKind::ProgramMissed);
        for kind in kinds.map(LossKind::name) {
            let message = format!("{kind}: {}; ", words(kind));
            let is_there = OBJECT.windows(message.len()).any(|part| part == message.as_bytes());
            assert!(is_there, "observer-ebpf/src/log.rs has no message {message:?}");
        }
    }

    #[test]
    fn a_record_without_room_is_named_in_the_words_of_the_table() {
        for kind in RecordKind::ALL {
            let name = kind.name();
            let said =
                named(&format!("{}: the ring buffer was full; thread 7", kind as u32)).into_owned();
            assert_eq!(said, format!("{name}: {}; thread 7", words(name)));
        }
        for other in ["99: no kind", "task_slot: two", "no colon", ""] {
            assert_eq!(named(other), other);
        }
    }
}
