//! The archive the kernel unpacks as its first root directory: cpio in the "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write},
    path::Path,
};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const SYMBOLIC_LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
const LAST: &str = "TRAILER!!!";

/// An archive being written. Directories above each entry are added by themselves.
pub(crate) struct Archive<W: Write> {
    output: W,
    inode: u32,
    written_bytes: u64,
    names: BTreeSet<String>,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    length_bytes: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, inode: 0, written_bytes: 0, names: BTreeSet::new() }
    }

    /// An empty directory.
    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.parents(path)?;
        self.put(path, DIRECTORY, &[], (0, 0))
    }

    /// A file, readable and executable by all.
    pub(crate) fn file(&mut self, path: &Path, contents: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.put(path, PROGRAM, contents, (0, 0))
    }

    /// A copy of a file of this host.
    pub(crate) fn copy(&mut self, path: &Path, from: &Path) -> io::Result<()> {
        self.parents(path)?;
        let mut file = File::open(from)?;
        let length = u32::try_from(file.metadata()?.len())
            .map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
        let name = name_of(path);
        if !self.names.insert(name.clone()) {
            return Ok(());
        }
        self.header(&Entry { name: &name, mode: PROGRAM, length_bytes: length, device: (0, 0) })?;
        let copied = io::copy(&mut file, &mut self.output)?;
        if copied != u64::from(length) {
            return Err(io::Error::other("it changed while it was read"));
        }
        self.written_bytes += copied;
        self.pad()
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &Path, to: &Path) -> io::Result<()> {
        self.parents(path)?;
        self.put(path, SYMBOLIC_LINK, to.to_string_lossy().as_bytes(), (0, 0))
    }

    /// A character device, by major and minor number.
    pub(crate) fn device(&mut self, path: &Path, major: u32, minor: u32) -> io::Result<()> {
        self.parents(path)?;
        self.put(path, CHARACTER_DEVICE, &[], (major, minor))
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.header(&Entry { name: LAST, mode: 0, length_bytes: 0, device: (0, 0) })?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let mut above: Vec<_> = path.ancestors().skip(1).collect();
        above.reverse();
        above.into_iter().try_for_each(|directory| self.put(directory, DIRECTORY, &[], (0, 0)))
    }

    /// An entry that is there already stays as it is.
    fn put(
        &mut self,
        path: &Path,
        mode: u32,
        contents: &[u8],
        device: (u32, u32),
    ) -> io::Result<()> {
        let name = name_of(path);
        if name.is_empty() || !self.names.insert(name.clone()) {
            return Ok(());
        }
        let length_bytes = u32::try_from(contents.len())
            .map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
        self.header(&Entry { name: &name, mode, length_bytes, device })?;
        self.output.write_all(contents)?;
        self.written_bytes += u64::from(length_bytes);
        self.pad()
    }

    fn header(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.inode += 1;
        let name_bytes = entry.name.len() as u32 + 1;
        // Inode, mode, user, group, links, time, size, the device it lies on (two numbers), the
        // device it is (two), length of the name, checksum (unused).
        let fields = [
            self.inode,
            entry.mode,
            0,
            0,
            1,
            0,
            entry.length_bytes,
            0,
            0,
            entry.device.0,
            entry.device.1,
            name_bytes,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        header += entry.name;
        header.push('\0');
        self.output.write_all(header.as_bytes())?;
        self.written_bytes += header.len() as u64;
        self.pad()
    }

    /// Headers and contents begin at multiples of four.
    fn pad(&mut self) -> io::Result<()> {
        let padding = self.written_bytes.next_multiple_of(4) - self.written_bytes;
        self.written_bytes += padding;
        self.output.write_all(&[0; 3][..padding as usize])
    }
}

/// Names in an archive are relative to the root.
fn name_of(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, contents, device.
    type Read = (String, u32, Vec<u8>, (u32, u32));

    /// Reads an archive by the rules of the format alone.
    fn entries(archive: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(at % 4, 0, "aligned");
            let header = std::str::from_utf8(&archive[at..at + 110]).expect("ASCII");
            assert!(header.starts_with("070701"), "{header}");
            let field = |index: usize| {
                let begin = 6 + index * 8;
                u32::from_str_radix(&header[begin..begin + 8], 16).expect("a number")
            };
            let (length, name_bytes) = (field(6) as usize, field(11) as usize);
            let name = &archive[at + 110..at + 110 + name_bytes];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_bytes - 1].to_vec()).expect("UTF-8");
            let begin = (at + 110 + name_bytes).next_multiple_of(4);
            if name == LAST {
                assert_eq!(begin, archive.len());
                return entries;
            }
            let contents = archive[begin..begin + length].to_vec();
            entries.push((name, field(1), contents, (field(9), field(10))));
            at = (begin + length).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let host = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(host.path(), b"12345").expect("written");
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/init"), b"\x7fELF!").expect("init");
        archive.device(Path::new("/dev/console"), 5, 1).expect("console");
        archive.link(Path::new("/bin/sh"), Path::new("dash")).expect("sh");
        archive.copy(Path::new("/a/b/copy"), host.path()).expect("copy");
        archive.copy(Path::new("/a/b/copy"), host.path()).expect("twice is once");
        archive.directory(Path::new("/a/empty")).expect("empty");
        let bytes = archive.finish().expect("finished");
        let entry = |name: &str, mode: u32, contents: &[u8], device: (u32, u32)| {
            (name.to_owned(), mode, contents.to_vec(), device)
        };
        assert_eq!(
            entries(&bytes),
            [
                entry("init", PROGRAM, b"\x7fELF!", (0, 0)),
                entry("dev", DIRECTORY, b"", (0, 0)),
                entry("dev/console", CHARACTER_DEVICE, b"", (5, 1)),
                entry("bin", DIRECTORY, b"", (0, 0)),
                entry("bin/sh", SYMBOLIC_LINK, b"dash", (0, 0)),
                entry("a", DIRECTORY, b"", (0, 0)),
                entry("a/b", DIRECTORY, b"", (0, 0)),
                entry("a/b/copy", PROGRAM, b"12345", (0, 0)),
                entry("a/empty", DIRECTORY, b"", (0, 0)),
            ]
        );
    }
}
