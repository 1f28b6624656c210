//! Places in programs, as they are shown, and stacks of them, each once.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::model::{Absence, Frame, Stacks, Tgid};
use crate::text::clean;

/// Characters of a name that are shown. Those of C++ and Rust can be long.
const NAME_CHARACTERS: usize = 200;
/// The module of a frame of which nothing is known.
const UNKNOWN: &str = "[unknown]";
/// The module of a frame in memory without a file.
const ANONYMOUS: &str = "[anonymous]";
/// Behind the names of functions of the kernel.
pub(super) const KERNEL: &str = "_[k]";

/// A frame as it is shown: two calls in the same function are the same place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// The function; `None` where no symbol is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// As in [`Frame::module`].
    pub module: String,
    /// Where no function is known: bytes behind the begin of the file; in `[kernel]`, the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl Place {
    fn new(frame: &Frame) -> Self {
        let Frame { function, module, offset } = frame.clone();
        // An address without a file says nothing, and is another one in each process.
        let has_file = module != UNKNOWN && module != ANONYMOUS;
        let offset = (function.is_none() && has_file).then_some(offset);
        Self { function, module, offset }
    }

    /// In the place of a part of a stack that is not there, why.
    fn missing(part: &str, id: i32) -> Self {
        let why = match id.saturating_neg() {
            libc::EFAULT => format!("[no {part} stack]"),
            libc::EEXIST => format!("[{part} stack lost: another one has its place]"),
            libc::ENOMEM => format!("[{part} stack lost: no memory]"),
            error if error > 0 => format!("[no {part} stack: error {error}]"),
            _ => format!("[{part} stack not kept]"),
        };
        Self { function: Some(why), module: UNKNOWN.to_owned(), offset: None }
    }

    /// The last part of the module's path; `None` where it is not known.
    pub(super) fn file(&self) -> Option<String> {
        let name = self.module.rsplit('/').next().unwrap_or(&self.module);
        (self.module != UNKNOWN).then(|| clean(name, NAME_CHARACTERS))
    }

    /// The function, or the place in the file.
    pub(super) fn name(&self) -> String {
        match (&self.function, self.offset, self.file()) {
            (Some(function), ..) => clean(function, NAME_CHARACTERS),
            (None, Some(offset), Some(file)) => format!("{file}+{offset:#x}"),
            (None, _, file) => file.unwrap_or_else(|| UNKNOWN.to_owned()),
        }
    }
}

/// The stacks of a run as they are shown, the innermost place first, each once.
#[derive(Debug)]
pub(super) struct Table {
    places: Vec<Arc<[Place]>>,
    known: HashMap<Arc<[Place]>, u32>,
    kernel: HashMap<i32, u32>,
    user: HashMap<(Tgid, i32), u32>,
}

impl Table {
    pub(super) fn new(stacks: &Stacks) -> Self {
        let mut table = Self {
            places: Vec::new(),
            known: HashMap::new(),
            kernel: HashMap::new(),
            user: HashMap::new(),
        };
        for (id, frames) in &stacks.kernel {
            let Ok(id) = i32::try_from(*id) else { continue };
            let number = table.intern(frames.iter().map(Place::new).collect());
            table.kernel.insert(id, number);
        }
        for stack in &stacks.user {
            let Ok(id) = i32::try_from(stack.id) else { continue };
            let number = table.intern(stack.frames.iter().map(Place::new).collect());
            table.user.insert((stack.tgid, id), number);
        }
        table
    }

    fn intern(&mut self, places: Arc<[Place]>) -> u32 {
        if let Some(number) = self.known.get(&places) {
            return *number;
        }
        // There are fewer stacks than records, and fewer of these than 32 bits count.
        let number = self.places.len() as u32;
        self.places.push(Arc::clone(&places));
        self.known.insert(places, number);
        number
    }

    /// Numbers of the parts of an absence's stack: the kernel's, and that in user space.
    pub(super) fn of(&mut self, absence: &Absence) -> (u32, u32) {
        let Absence { kernel_stack, user_stack, tgid, .. } = *absence;
        let kernel = self.kernel.get(&kernel_stack).copied().unwrap_or_else(|| {
            let number = self.intern(Arc::new([Place::missing("kernel", kernel_stack)]));
            self.kernel.insert(kernel_stack, number);
            number
        });
        let user = self.user.get(&(tgid, user_stack)).copied().unwrap_or_else(|| {
            let number = self.intern(Arc::new([Place::missing("user", user_stack)]));
            self.user.insert((tgid, user_stack), number);
            number
        });
        (kernel, user)
    }

    /// The places of a part of a stack, the innermost first.
    pub(super) fn places(&self, number: u32) -> Arc<[Place]> {
        self.places.get(number as usize).map(Arc::clone).unwrap_or_default()
    }
}
