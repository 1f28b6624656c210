//! Open descriptors of processes with their limit, and open files of the whole host.

use std::fs;
use std::path::Path;

use super::{process, read_start};
use crate::model::{DescriptorSample, Tgid};
use crate::pace::rest;

/// Most descriptors that are counted one by one, which a kernel before Linux 6.2 requires.
pub const COUNTED_MAX: usize = 65_536;
/// Most descriptors of a process that are looked at to learn which of them are sockets.
pub const LOOKED_AT: u64 = 128;
/// Entries of a directory between two rests.
const PIECE: usize = 64;
/// Most bytes that are read of a file. The kernel's have fewer than 2,000.
const FILE_BYTES: u64 = 4_096;

/// Open files of the host, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFiles {
    /// Open files.
    pub open: u64,
    /// The limit (`fs.file-max`).
    pub limit: u64,
}

/// How many descriptors a process has open (of the table that its first thread has, or another one if
/// that has exited). `None` for a process that is gone or may not be looked at, and where more than
/// [`COUNTED_MAX`] would have to be counted.
#[must_use]
pub fn open_descriptors(tgid: Tgid) -> Option<u64> {
    match count(&directory(tgid))? {
        // A thread that has exited has none.
        0 if process::stat(tgid)?.has_ended() => count(&directory(process::heir(tgid)?)),
        open => Some(open),
    }
}

fn directory(tgid: Tgid) -> String {
    format!("/proc/{}/fd", tgid.0)
}

/// Since Linux 6.2 the size of the directory is their number; before, it is 0.
fn count(directory: &str) -> Option<u64> {
    let size = fs::metadata(directory).ok()?.len();
    if size > 0 { Some(size) } else { count_entries(Path::new(directory), COUNTED_MAX) }
}

fn count_entries(directory: &Path, most: usize) -> Option<u64> {
    let mut counted = 0;
    for entry in fs::read_dir(directory).ok()? {
        entry.ok()?;
        counted += 1;
        if counted > most {
            return None;
        }
        if counted.is_multiple_of(PIECE) {
            rest();
        }
    }
    Some(counted as u64)
}

/// How many descriptors a process may have (`RLIMIT_NOFILE`, the soft limit); `None` for a process that
/// is gone.
#[must_use]
pub fn descriptor_limit(tgid: Tgid) -> Option<u64> {
    let limits = read_start(format!("/proc/{}/limits", tgid.0), FILE_BYTES).ok()?;
    limit_in(&String::from_utf8_lossy(&limits))
}

/// `Max open files            1024                 524288               files`
fn limit_in(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files "))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// How many of a process's descriptors are sockets, of `open` ones: of all of them, or of [`LOOKED_AT`]
/// that are spread evenly. `None` for a process that is gone or may not be looked at.
#[must_use]
pub fn sample(tgid: Tgid, open: u64) -> Option<DescriptorSample> {
    let directory = directory(tgid);
    let mut sample = DescriptorSample::default();
    let mut look_at = |name: &str| {
        // One that was closed meanwhile, or a number that is not in use, does not count.
        if let Ok(link) = fs::read_link(format!("{directory}/{name}")) {
            sample.looked_at += 1;
            sample.sockets += u64::from(link.to_string_lossy().starts_with("socket:"));
        }
        rest();
    };
    if open <= LOOKED_AT {
        let entries = fs::read_dir(&directory).ok()?.take(LOOKED_AT as usize);
        entries.flatten().for_each(|entry| look_at(&entry.file_name().to_string_lossy()));
    } else {
        // The kernel gives out the lowest number that is free, so that there are few gaps.
        (0..LOOKED_AT).for_each(|nth| {
            let number = u128::from(nth) * u128::from(open) / u128::from(LOOKED_AT);
            look_at(&number.to_string());
        });
    }
    (sample.looked_at > 0).then_some(sample)
}

/// The open files of the host; `None` where `/proc` does not say.
#[must_use]
pub fn host_files() -> Option<HostFiles> {
    let text = read_start("/proc/sys/fs/file-nr", FILE_BYTES).ok()?;
    host_files_in(&String::from_utf8_lossy(&text))
}

/// `437 0 2466177` with tabs between them: allocated, of these unused (0 since Linux 2.6), and the limit.
fn host_files_in(text: &str) -> Option<HostFiles> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
    let (allocated, unused, limit) =
        (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(HostFiles { open: allocated.saturating_sub(unused), limit })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;

    use super::*;

    fn me() -> Tgid {
        Tgid(std::process::id())
    }

    #[test]
    fn the_soft_limit_is_read_and_garbage_is_none() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             9                    9                    processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(limit_in(text), Some(1_024));
        for garbage in
            ["", "Max open files", "Max open files unlimited", "Max open files  -1 2", "\0"]
        {
            assert_eq!(limit_in(garbage), None, "{garbage:?}");
        }
        let (soft, _) = {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            (limit.current, limit.maximum)
        };
        assert_eq!(descriptor_limit(me()), soft);
        assert_eq!(descriptor_limit(Tgid(u32::MAX)), None);
    }

    #[test]
    fn files_of_the_host_are_read_and_garbage_is_none() {
        assert_eq!(
            host_files_in("437\t7\t2466177\n"),
            Some(HostFiles { open: 430, limit: 2_466_177 })
        );
        assert_eq!(host_files_in("1 2 3\n"), Some(HostFiles { open: 0, limit: 3 }));
        for garbage in ["", "437", "437 0", "437 0 x", "-1 0 5", "\u{fffd}"] {
            assert_eq!(host_files_in(garbage), None, "{garbage:?}");
        }
        let files = host_files().unwrap();
        assert!(files.open > 0 && files.limit > 0, "{files:?}");
    }

    #[test]
    fn descriptors_of_a_child_are_counted_in_both_ways() {
        // A child has no threads that open files meanwhile.
        let mut child = Command::new("sh");
        child.args(["-c", "exec 7</dev/null 8</dev/null; echo; read line"]);
        child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut said = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let tgid = Tgid(child.id());
        let entries = count_entries(Path::new(&directory(tgid)), COUNTED_MAX).unwrap();
        assert!(entries >= 5, "{entries}");
        assert_eq!(open_descriptors(tgid), Some(entries));
        assert_eq!(count_entries(Path::new(&directory(tgid)), entries as usize - 1), None);
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while process::stat(tgid).is_some_and(|stat| !stat.has_ended()) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(open_descriptors(tgid), None, "a zombie has none, and that is not 0");
        child.wait().unwrap();
        assert_eq!(open_descriptors(tgid), None);
    }

    #[test]
    fn sockets_are_told_apart() {
        let before = sample(me(), 1).unwrap();
        let sockets: Vec<_> = (0..5).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let found = sample(me(), 1).unwrap();
        assert!(found.sockets >= 5 && found.looked_at <= LOOKED_AT, "{before:?} {found:?}");
        // Numbers of which most are not in use.
        let spread = sample(me(), 1 << 40).unwrap();
        assert!(spread.looked_at <= found.looked_at.max(LOOKED_AT), "{spread:?}");
        assert_eq!(sample(Tgid(u32::MAX), 5), None);
        drop(sockets);
    }
}
