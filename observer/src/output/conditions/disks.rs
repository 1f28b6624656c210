//! The disks of the host while the target ran, in words.

use crate::model::{Cause, DiskRequestsSummary, DiskSummary, Summary};
use crate::output::text::{bytes, clean, count, duration, percent};

/// Characters of a disk's name.
const NAME_CHARACTERS: usize = 40;
/// Disks that are shown.
const SHOWN: usize = 4;
/// A cause that waits for disks with this part of the excess latency is a reason to tell about them.
const MATTERS: f64 = 0.05;
/// So is a disk that was busy for this part of the run, or of a second of it.
const BUSY: f64 = 0.5;
const BUSY_SECOND: f64 = 0.9;
/// From so many requests at a time on, one usually finds others before it.
const QUEUED: f64 = 2.0;
/// The target is told not to be the one who uses the disks if it moved less than this part of their bytes.
const OTHERS: f64 = 0.5;
/// Fewer bytes than these are no use of a disk.
const FEW_BYTES: u64 = 1 << 20;

/// A paragraph for each disk that was busy, or of all that were used where requests waited for disks, and one
/// about who used them; empty where there is nothing to say.
pub(super) fn paragraphs(summary: &Summary) -> Vec<String> {
    let waited = summary.causes.iter().any(|cause| {
        [Cause::BLOCK_IO, Cause::FAULT_MAJOR].contains(&cause.cause) && cause.share >= MATTERS
    });
    let conditions = &summary.conditions;
    let is_told = |disk: &&DiskSummary| {
        waited || disk.busy_share() >= BUSY || disk.busiest_share >= BUSY_SECOND
    };
    let told: Vec<&DiskSummary> = conditions.disks.iter().filter(is_told).collect();
    let mut paragraphs: Vec<String> = told.iter().take(SHOWN).map(|disk| paragraph(disk)).collect();
    let more = conditions.disks_beyond + told.len().saturating_sub(SHOWN) as u64;
    if more > 0 && !told.is_empty() {
        paragraphs.push(format!("{} other disks were busy for no longer than these.", count(more)));
    }
    if !told.is_empty() {
        paragraphs.extend(of_target(summary));
    }
    paragraphs
}

fn paragraph(disk: &DiskSummary) -> String {
    let mut text = format!(
        "Disk {} was busy for {} of the run",
        clean(&disk.disk, NAME_CHARACTERS),
        percent(disk.busy_share())
    );
    if disk.busiest_share > disk.busy_share() {
        text += &format!(" (for {} of its busiest second)", percent(disk.busiest_share));
    }
    text += &format!(", with {:.1} requests at a time on average:", disk.mean_queue());
    let kinds = [
        ("reads", disk.reads, true),
        ("writes", disk.writes, true),
        ("flushes", disk.flushes, false),
    ];
    let kinds: Vec<String> = kinds
        .into_iter()
        .filter_map(|(name, requests, has_bytes)| of_kind(name, &requests, has_bytes))
        .collect();
    text +=
        &format!(" {}. A request's time is that in the queue and in the disk.", kinds.join(", "));
    if disk.mean_queue() >= QUEUED {
        text += " Most requests found others before them: fewer or larger ones, or a disk that works on more at a \
                 time, make each of them faster.";
    }
    text
}

/// `1,234 reads of 12 MiB together (1.2 ms each)`
fn of_kind(name: &str, requests: &DiskRequestsSummary, has_bytes: bool) -> Option<String> {
    let mean_ns = requests.mean_ns()?;
    let together = match has_bytes {
        true => format!(" of {} together", bytes(requests.bytes)),
        false => String::new(),
    };
    // The kernel counts milliseconds.
    let each = match mean_ns {
        none if none < 1e3 => "less than 1 µs".to_owned(),
        some => duration(some),
    };
    Some(format!("{} {name}{together} ({each} each)", count(requests.count)))
}

/// What the target did of it.
fn of_target(summary: &Summary) -> Option<String> {
    let own = summary.conditions.disk_bytes?;
    let of_disks = |of: fn(&DiskSummary) -> u64| -> u64 {
        summary.conditions.disks.iter().map(of).fold(0, u64::saturating_add)
    };
    let all = of_disks(|disk| disk.reads.bytes).saturating_add(of_disks(|disk| disk.writes.bytes));
    let mut text = format!(
        "The target read {} from disks, and wrote {} for them; what it writes to files reaches a disk later.",
        bytes(own.read),
        bytes(own.written)
    );
    let is_other = (own.read.saturating_add(own.written) as f64) < all as f64 * OTHERS;
    if is_other && all >= FEW_BYTES {
        text += " Most of what the disks did was for other programs: pidstat -d and iotop show them, and io.stat of \
                 the cgroups.";
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CauseSummary, Conditions, DiskBytesSummary};
    use crate::output::example;

    fn told(change: impl FnOnce(&mut Summary)) -> Vec<String> {
        let mut summary = example::attributed();
        let (disks, disk_bytes) = (example::disks(), Some(example::DISK_BYTES));
        summary.conditions = Conditions { disks, disk_bytes, ..Conditions::default() };
        change(&mut summary);
        paragraphs(&summary)
    }

    #[test]
    fn a_busy_disk_is_told_with_what_it_did_and_for_whom() {
        assert_eq!(
            told(|_| ()),
            [
                "Disk vda was busy for 82 % of the run (for 98 % of its busiest second), with 3.1 requests at a time on \
                 average: 1,200 reads of 4.7 MiB together (1.50 ms each), 9,600 writes of 600 MiB together (9.00 ms \
                 each), 480 flushes (12.0 ms each). A request's time is that in the queue and in the disk. Most \
                 requests found others before them: fewer or larger ones, or a disk that works on more at a time, \
                 make each of them faster.",
                "The target read 4 MiB from disks, and wrote 12 MiB for them; what it writes to files reaches a disk \
                 later. Most of what the disks did was for other programs: pidstat -d and iotop show them, and io.stat \
                 of the cgroups.",
            ]
        );
    }

    #[test]
    fn a_quiet_disk_is_no_word_unless_requests_waited_for_it() {
        let quiet = |summary: &mut Summary| {
            summary.conditions.disks[0].busy_ms = 1_000;
            summary.conditions.disks[0].busiest_share = 0.4;
            summary.conditions.disks[0].queued_ms = 900;
            summary.conditions.disk_bytes = Some(DiskBytesSummary { read: 0, written: 600 << 20 });
        };
        assert_eq!(told(quiet), [""; 0]);
        let waited = told(|summary| {
            quiet(summary);
            let cause = CauseSummary { cause: Cause::BLOCK_IO, ..summary.causes[0].clone() };
            summary.causes.push(CauseSummary { share: 0.4, ..cause });
        });
        let [disk, target] = &waited[..] else { panic!("{waited:?}") };
        assert!(disk.contains("busy for 3.3 %") && !disk.contains("found others"), "{disk}");
        assert!(target.ends_with("reaches a disk later."), "{target}");
    }

    #[test]
    fn many_disks_with_names_of_any_kind_are_told_briefly() {
        let said = told(|summary| {
            let mut disk = summary.conditions.disks[0].clone();
            disk.disk = example::HOSTILE.to_owned();
            disk.reads = DiskRequestsSummary { count: 7, bytes: 0, time_ms: 0 };
            summary.conditions.disks = vec![disk; 6];
            summary.conditions.disks_beyond = 3;
            summary.conditions.disk_bytes = None;
        });
        assert_eq!(said.len(), SHOWN + 1);
        assert!(said[0].starts_with("Disk </b><i>?[31m was") && said[0].contains("less than 1 µs"));
        assert_eq!(said[SHOWN], "5 other disks were busy for no longer than these.");
    }
}
