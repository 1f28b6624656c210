//! Numbers and names in words: what the outputs for people share.

use crate::model::{Event, EventKind, FloorChange, MmCall, RunInfo, Tid};

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

/// Text of unknown origin, safe to print: control and direction-changing characters, with which a
/// thread's name could rewrite the terminal or the line, become `?`; long text is cut.
#[must_use]
pub fn clean(text: &str, longest: usize) -> String {
    let harmless = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let mut characters = text.chars();
    let mut cleaned: String =
        characters.by_ref().take(longest).map(|c| if harmless(c) { c } else { '?' }).collect();
    if characters.next().is_some() {
        cleaned.push('…');
    }
    cleaned
}

/// A thread by name and id: `worker-1 (101)`.
#[must_use]
pub fn thread(run: &RunInfo, tid: Tid) -> String {
    let name = run.thread_names.get(&tid.0).or_else(|| run.target_processes.get(&tid.0));
    name.map_or_else(|| tid.0.to_string(), |name| format!("{} ({})", clean(name, 16), tid.0))
}

/// How the table of advice in `include/uapi/asm-generic/mman-common.h` names it.
fn advice(number: u32) -> Option<&'static str> {
    Some(match number {
        0 => "NORMAL",
        1 => "RANDOM",
        2 => "SEQUENTIAL",
        3 => "WILLNEED",
        4 => "DONTNEED",
        8 => "FREE",
        9 => "REMOVE",
        10 => "DONTFORK",
        11 => "DOFORK",
        12 => "MERGEABLE",
        13 => "UNMERGEABLE",
        14 => "HUGEPAGE",
        15 => "NOHUGEPAGE",
        16 => "DONTDUMP",
        17 => "DODUMP",
        18 => "WIPEONFORK",
        19 => "KEEPONFORK",
        20 => "COLD",
        21 => "PAGEOUT",
        22 => "POPULATE_READ",
        23 => "POPULATE_WRITE",
        24 => "DONTNEED_LOCKED",
        25 => "COLLAPSE",
        100 => "HWPOISON",
        102 => "GUARD_INSTALL",
        103 => "GUARD_REMOVE",
        _ => return None,
    })
}

/// What an event's fields say beyond its cause, thread and length.
#[must_use]
pub fn detail(kind: &EventKind) -> String {
    match kind {
        EventKind::Runqueue { preempted, ran_tid, ran_comm, .. } => {
            let began = if *preempted { "preempted" } else { "woken" };
            if ran_tid.0 == 0 {
                format!("{began}; the CPU was idle")
            } else {
                format!("{began}; ran instead: {} ({})", clean(ran_comm, 16), ran_tid.0)
            }
        }
        EventKind::Fault { kernel_mode, address, .. } => {
            let mode = if *kernel_mode { "kernel" } else { "user" };
            format!("{mode} mode, at {address:#x}")
        }
        EventKind::Reclaim { reclaimed_pages, order, gfp_flags, .. } => {
            format!("{} pages, order {order}, gfp {gfp_flags:#x}", count(*reclaimed_pages))
        }
        EventKind::Compaction { status } => format!("result {status}"),
        EventKind::MmSyscall { call, length_bytes, result, argument, .. } => {
            let mut text = call.name().to_owned();
            if *call == MmCall::Madvise {
                match advice(*argument) {
                    Some(name) => text += &format!("({name})"),
                    None => text += &format!("({argument})"),
                }
            }
            if *call != MmCall::Brk {
                text += &format!(" {}", bytes(*length_bytes));
            }
            // Addresses of mmap are positive; errors lie in -4095..0.
            if (-4095..0).contains(result) {
                text += &format!(", failed with errno {}", -result);
            }
            text
        }
        EventKind::SocketReleased { accepted, .. } => {
            if *accepted { "accepted" } else { "created" }.to_owned()
        }
        EventKind::FdFailure { call, errno } => format!("{call}: errno {errno}"),
        EventKind::Fork { comm, .. } | EventKind::Exec { comm } | EventKind::Exit { comm } => {
            clean(comm, 16)
        }
        EventKind::Floor(FloorChange { record, old_ns, new_ns, reason }) => format!(
            "{} from {} to {} ({})",
            record.name(),
            duration(*old_ns as f64),
            duration(*new_ns as f64),
            reason.name()
        ),
    }
}

/// The cause of an event's stall by name, or its kind.
#[must_use]
pub fn cause(event: &Event) -> &'static str {
    crate::model::Stall::from_event(event)
        .map_or_else(|| event.kind.name(), |stall| stall.cause.name())
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
    fn hostile_text_cannot_steer_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{202e}d", 50), "a?[2Jb?c?d");
        assert_eq!(clean("abcdef", 3), "abc…");
        assert_eq!(clean("hög", 3), "hög");
    }

    #[test]
    fn details_name_what_the_numbers_mean() {
        let call = |call, argument, result| EventKind::MmSyscall {
            call,
            address: 1,
            length_bytes: 4 << 20,
            result,
            argument,
        };
        assert_eq!(detail(&call(MmCall::Madvise, 4, 0)), "madvise(DONTNEED) 4 MiB");
        assert_eq!(detail(&call(MmCall::Madvise, 77, 0)), "madvise(77) 4 MiB");
        assert_eq!(detail(&call(MmCall::Mmap, 0, -12)), "mmap 4 MiB, failed with errno 12");
        assert_eq!(detail(&call(MmCall::Brk, 0, 0x5000)), "brk");
        let ran = |tid| EventKind::Runqueue {
            preempted: true,
            ran_tid: Tid(tid),
            ran_tgid: crate::model::Tgid(tid),
            ran_comm: "hog\u{1b}".into(),
        };
        assert_eq!(detail(&ran(123)), "preempted; ran instead: hog? (123)");
        assert_eq!(detail(&ran(0)), "preempted; the CPU was idle");
    }
}
