//! A disk that is small enough to be filled.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

fn terminated(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

/// A file system in memory, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it at a new directory, with the options of tmpfs(5).
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn mount(place: &Path, options: &str) -> Self {
        fs::create_dir(place).expect("a directory");
        let c = |text: &str| CString::new(text).expect("no NUL");
        let (kind, path, options) = (c("tmpfs"), terminated(place), c(options));
        // SAFETY: strings that end in NUL and live through the call.
        let result = unsafe {
            libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast())
        };
        assert_eq!(result, 0, "mount: {}", std::io::Error::last_os_error());
        Self(place.to_owned())
    }

    /// Where it is mounted.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Writes a file until nothing fits any more.
    ///
    /// # Panics
    /// When the file cannot be created.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).expect("a file");
        let block = [0u8; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = terminated(&self.0);
        // SAFETY: a string that ends in NUL and lives through the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}
