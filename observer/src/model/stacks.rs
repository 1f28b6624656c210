//! `stacks.json`: the frames of the stacks that `stack` events name by id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Tgid;

/// Version of the file. Readers accept newer ones whose fields they know.
pub const STACKS_SCHEMA: u32 = 1;

/// All stacks of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stacks {
    /// [`STACKS_SCHEMA`].
    pub schema: u32,
    /// The kernel's part of each stack, by id.
    pub kernel: BTreeMap<u32, Vec<Frame>>,
    /// The part in user space. The same addresses are other functions in another process.
    pub user: Vec<UserStack>,
    /// What is not known, by kind: how often.
    pub not_known: BTreeMap<String, u64>,
}

/// The part of a stack in user space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserStack {
    /// The process.
    pub tgid: Tgid,
    /// The id.
    pub id: u32,
    /// Its frames, the innermost first.
    pub frames: Vec<Frame>,
}

/// A place in a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Frame {
    /// The function; `None` where no symbol is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The file that it is in, as in /proc/PID/maps, `[kernel]`, `[vdso]`, `[anonymous]` (memory without a
    /// file, as for code that is made while the program runs), or `[unknown]`.
    pub module: String,
    /// Bytes behind the begin of the function; without one, behind the begin of the file; in
    /// `[kernel]`, `[anonymous]` and `[unknown]` without one, the address.
    pub offset: u64,
}
