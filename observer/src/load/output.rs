//! Where the rows go.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FileType, Mode, OFlags, open, openat};

use crate::place::{self, Existing};

/// Where the rows go, as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file that does not exist yet, or a FIFO that does.
    File(PathBuf),
    /// A Unix socket on which another process listens.
    Unix(PathBuf),
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.strip_prefix("unix:")) {
            ("-", _) => Ok(Self::Stdout),
            ("", _) | (_, Some("")) => Err("no path given".into()),
            (_, Some(path)) => Ok(Self::Unix(path.into())),
            (path, None) => Ok(Self::File(path.into())),
        }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Output {
    /// Opens it for writing: a file is made (readable by its owner only) and never overwritten, a
    /// FIFO waits for its reader.
    ///
    /// # Errors
    ///
    /// When it cannot be created, already exists, or no process listens on it.
    pub fn open(&self) -> std::io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(std::io::stdout()),
            Self::File(path) => Box::new(open_file(path)?),
            Self::Unix(path) => Box::new(connect(path)?),
        })
    }
}

/// A new file that only its owner can read, or the FIFO that is already there.
fn open_file(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let (directory, name) = place::parent(path)?;
    Ok(File::from(match Existing::find(&directory, name)? {
        Some(fifo) if fifo.kind() == FileType::Fifo => open(fifo.path(), flags, Mode::empty())?,
        Some(_) => return Err(ErrorKind::AlreadyExists.into()),
        None => {
            let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            openat(&directory, name, flags, Mode::RUSR | Mode::WUSR)?
        }
    }))
}

fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let (directory, name) = place::parent(path)?;
    let socket = Existing::find(&directory, name)?;
    UnixStream::connect(socket.ok_or(ErrorKind::NotFound)?.path())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_output_is_recognised_by_its_form() {
        let parse = |text: &str| text.parse::<Output>();
        assert_eq!(parse("-"), Ok(Output::Stdout));
        assert_eq!(parse("a:b"), Ok(Output::File("a:b".into())));
        assert_eq!(parse("unix:/run/s"), Ok(Output::Unix("/run/s".into())));
        assert!(parse("unix:").is_err() && parse("").is_err());
    }

    #[test]
    fn a_file_is_private_new_and_no_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let output = Output::File(path.clone());
        output.open().unwrap().write_all(b"x").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = output.open().err().unwrap();
        assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(Output::File(link).open().is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn a_fifo_and_a_socket_are_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::read(fifo).unwrap()
        });
        Output::File(fifo).open().unwrap().write_all(b"rows").unwrap();
        assert_eq!(reader.join().unwrap(), b"rows");

        let socket = dir.path().join("socket");
        assert!(Output::Unix(socket.clone()).open().is_err());
        let listener = UnixListener::bind(&socket).unwrap();
        Output::Unix(socket).open().unwrap().write_all(b"rows").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "rows");
    }
}
