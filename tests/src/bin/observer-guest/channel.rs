//! The second serial port: one JSON object a line, read by xtask/vm/src/protocol.rs. The first
//! port is the kernel's.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::Result;

const PORT: &str = "/dev/ttyS1";

/// Longer lines of output are cut: a port sends some hundred kilobytes a second.
const LINE_CHARS_MAX: usize = 2000;

/// Where the host listens.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    port: Arc<Mutex<File>>,
}

impl Channel {
    /// Opens the port; nothing that is written to it is changed on the way.
    pub(crate) fn open() -> Result<Self> {
        let port = OpenOptions::new()
            .write(true)
            .open(PORT)
            .map_err(|error| format!("cannot open {PORT}: {error}"))?;
        // SAFETY: zeroed is a value of this plain struct, which the next call fills in.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: an open descriptor and a struct that lives long enough, for all three calls.
        let set = unsafe {
            let read = libc::tcgetattr(port.as_raw_fd(), &raw mut settings);
            libc::cfmakeraw(&raw mut settings);
            read | libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &raw const settings)
        };
        if set != 0 {
            return Err(format!("cannot set {PORT} up: {}", std::io::Error::last_os_error()));
        }
        Ok(Self { port: Arc::new(Mutex::new(port)) })
    }

    fn send(&self, message: &Value) {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        // In one write: lines of two threads must not mix. An error can only be reported to the
        // kernel's console.
        if let Err(error) = port.write_all(format!("{message}\n").as_bytes()) {
            eprintln!("observer-guest: cannot write to {PORT}: {error}");
        }
    }

    /// The system is up; `made` says what it has.
    pub(crate) fn booted(&mut self, made: &Value) {
        self.send(&json!({"event": "booted", "system": made}));
    }

    /// A command begins.
    pub(crate) fn started(&mut self, name: &str) {
        self.send(&json!({"event": "started", "name": name}));
    }

    /// A line that the command printed.
    pub(crate) fn output(&mut self, name: &str, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let text: String = line.trim_end().chars().take(LINE_CHARS_MAX).collect();
        self.send(&json!({"event": "output", "name": name, "text": text}));
    }

    /// A line that the tests wrote to their file of results.
    pub(crate) fn result(&mut self, name: &str, line: &str) {
        match serde_json::from_str::<Value>(line) {
            Ok(result) => self.send(&json!({"event": "result", "name": name, "result": result})),
            Err(_) => self.output(name, format!("no result: {line}").as_bytes()),
        }
    }

    /// The command ended: by itself with a code, by a signal, or because its time was up.
    pub(crate) fn ended(&mut self, name: &str, code: Option<i32>, timed_out: bool, seconds: f64) {
        let event = json!({"event": "ended", "name": name, "code": code, "timed_out": timed_out,
            "seconds": seconds});
        self.send(&event);
    }

    /// Nothing is left to do.
    pub(crate) fn done(&mut self) {
        self.send(&json!({"event": "done"}));
    }

    /// The guest cannot go on.
    pub(crate) fn failed(&mut self, message: &str) {
        self.send(&json!({"event": "failed", "message": message}));
    }
}
