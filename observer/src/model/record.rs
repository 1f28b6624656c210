//! Kinds of record, as data: which fields a record has, and what it means. Decoding, the trace and
//! its documentation, and the text for users follow from the rows.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU64;

use observer_ebpf::wire::{Address, Record};
use serde::{Deserialize, Serialize};

use super::event::{BODY_BYTES, HEADER_BYTES};
use super::{Cause, Event, Tgid, Tid};
use crate::clock::MonoNanos;
use crate::text::until_nul;

/// Who had what a thread waited for. Packed, so that an optional one takes 20 bytes of a
/// [`super::Stall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(Rust, packed(4))]
pub struct Holder {
    /// The thread; `Tid(0)` when no thread had it (an idle CPU).
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Id of its cgroup; `None` where the record does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<NonZeroU64>,
}

/// Parts that the stall of one record can have, besides the rest.
pub const PARTS: usize = 4;

/// What a record that stands for several short stalls says about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summed {
    /// First instant of the first one. The event ends with the last one, and its length is the time in
    /// all of them together.
    pub first: MonoNanos,
    /// How many they are.
    pub count: u32,
}

/// In what a stall waited (a system call at a connection), or for whom (a process), so that the stalls of
/// one cause can be summed up by it. Both functions are about the part of the stall that has the given
/// cause.
#[derive(Clone, Copy)]
pub struct ObjectRow {
    /// What tells one object from another; `None` where the record does not say it. Of two among 4,096
    /// objects to have the same number is a chance of one in 500.
    pub id: fn(&Event, Cause) -> Option<u32>,
    /// Its name for users.
    pub name: fn(&Event, Cause) -> String,
    /// What could end it.
    pub ended_by: fn(&Event) -> EndedBy,
}

/// What could end the wait for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The object itself.
    Object,
    /// Any of several descriptors that became ready.
    AnyDescriptor,
    /// Another thread of the service, which knows the place in memory with this number: a futex. It tells one
    /// place from another like the number of an object, and may be the same.
    Thread(u32),
}

/// The number of the object of a wait at any futex that is not known to be a lock.
pub const FUTEX_OBJECT: u32 = 0x66_7574;

/// One kind of record.
pub struct RecordRow {
    /// The `kind` in its header.
    pub kind: u16,
    /// Name used in every output.
    pub name: &'static str,
    /// What one such event is, for the docs.
    pub about: &'static str,
    /// Bytes of the record, header included.
    pub size: usize,
    /// Stalls of the target below this are counted and not sent, nanoseconds; `None` for kinds
    /// without a length, whose records are all sent.
    pub floor_ns: Option<u64>,
    /// Above a rate, only every n-th is kept in the trace.
    pub sampled: bool,
    /// Its fields besides the header.
    pub fields: &'static [Field],
    /// The cause of the stall; `None` for kinds that are not stalls.
    pub cause: fn(&Event) -> Option<Cause>,
    /// The causes that parts of the stall have instead, with their nanoseconds.
    pub parts: fn(&Event) -> [(Cause, u64); PARTS],
    /// Who had what the thread waited for, in the part of the stall that has this cause.
    pub holder: fn(&Event, Cause) -> Option<Holder>,
    /// Id of the thread's stack.
    pub stack: fn(&Event) -> Option<u32>,
    /// Of kinds that stand for several short stalls: what the record says about them.
    pub sums: Option<fn(&Event) -> Option<Summed>>,
    /// Of kinds that say what a thread waited in, or who had what it waited for: these, in groups.
    pub objects: Option<ObjectRow>,
    /// What the fields say, for users.
    pub detail: fn(&Event) -> String,
}

impl RecordRow {
    /// A kind that is not a stall, with all its fields as plain text for users.
    #[must_use]
    pub const fn new<R: Record>(
        name: &'static str,
        about: &'static str,
        fields: &'static [Field],
    ) -> Self {
        assert!(size_of::<R>() >= HEADER_BYTES && size_of::<R>() <= HEADER_BYTES + BODY_BYTES);
        Self {
            kind: R::KIND,
            name,
            about,
            size: size_of::<R>(),
            floor_ns: None,
            sampled: false,
            fields,
            cause: |_| None,
            parts: |_| [(Cause::UNEXPLAINED, 0); PARTS],
            holder: |_, _| None,
            stack: |_| None,
            sums: None,
            objects: None,
            detail,
        }
    }

    /// Of stalls: those below the floor are counted and not sent.
    #[must_use]
    pub const fn stalls(self, floor_ns: u64, cause: fn(&Event) -> Option<Cause>) -> Self {
        Self { floor_ns: Some(floor_ns), cause, ..self }
    }

    /// Of what has a length and is no stall: below the floor it is not sent.
    #[must_use]
    pub const fn floor(self, floor_ns: u64) -> Self {
        Self { floor_ns: Some(floor_ns), ..self }
    }

    /// Parts of its stall that have another cause than the rest.
    #[must_use]
    pub const fn parts(self, parts: fn(&Event) -> [(Cause, u64); PARTS]) -> Self {
        Self { parts, ..self }
    }

    /// Its holder.
    #[must_use]
    pub const fn holder(self, holder: fn(&Event, Cause) -> Option<Holder>) -> Self {
        Self { holder, ..self }
    }

    /// Its stack.
    #[must_use]
    pub const fn stack(self, stack: fn(&Event) -> Option<u32>) -> Self {
        Self { stack, ..self }
    }

    /// Of several short stalls.
    #[must_use]
    pub const fn sums(self, sums: fn(&Event) -> Option<Summed>) -> Self {
        Self { sums: Some(sums), ..self }
    }

    /// In what its stalls waited, or for whom.
    #[must_use]
    pub const fn objects(self, objects: ObjectRow) -> Self {
        Self { objects: Some(objects), ..self }
    }

    /// Its text for users.
    #[must_use]
    pub const fn detail(self, detail: fn(&Event) -> String) -> Self {
        Self { detail, ..self }
    }

    /// Only every n-th is kept in the trace above a rate.
    #[must_use]
    pub const fn sampled(self) -> Self {
        Self { sampled: true, ..self }
    }
}

impl std::fmt::Debug for RecordRow {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RecordRow").field("name", &self.name).finish_non_exhaustive()
    }
}

/// `name value, name value`.
fn detail(event: &Event) -> String {
    let fields = event.row().fields.iter();
    let text: Vec<String> =
        fields.map(|field| format!("{} {}", field.name, field.value(event))).collect();
    text.join(", ")
}

/// One field of a record: a column of the trace.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name, with its unit.
    pub name: &'static str,
    /// What it holds, for the docs.
    pub about: &'static str,
    /// How it is kept in the record.
    pub data: Data,
    /// Where in the record.
    pub offset: usize,
    /// A trace without this column can be read; the field is then zero. For fields that were added
    /// after a version without them was released.
    pub optional: bool,
}

/// How a field is kept in a record.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    /// An unsigned number of eight bytes.
    U64,
    /// Of four.
    U32,
    /// A signed number of eight bytes.
    I64,
    /// Of four.
    I32,
    /// A bit of the header's flags.
    Flag(u16),
    /// A name chosen by bits of the header's flags: the first name whose bits are set.
    FlagNames(&'static [(u16, &'static str)]),
    /// A name by a number of four bytes.
    Names(fn(u32) -> Option<&'static str>),
    /// A name of at most this many bytes, NUL padded.
    Text(usize),
    /// Up to this many numbers of eight bytes; the first zero ends the list.
    List(usize),
    /// An IP address, kept in the trace as text.
    Address,
}

/// Numbers that name something, as [`Data::Names`] has them, lie below this.
const NAMES_MAX: u32 = 1 << 10;

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number.
    Unsigned(u64),
    /// A number that may be negative.
    Signed(i64),
    /// A flag.
    Flag(bool),
    /// Text; lossy UTF-8 of the kernel's bytes.
    Text(Cow<'a, str>),
    /// A list of numbers.
    List(Vec<u64>),
}

impl std::fmt::Display for Value<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsigned(number) => number.fmt(formatter),
            Self::Signed(number) => number.fmt(formatter),
            Self::Flag(flag) => flag.fmt(formatter),
            Self::Text(text) => formatter.write_str(&crate::text::clean(text, 64)),
            Self::List(numbers) => write!(formatter, "{numbers:?}"),
        }
    }
}

/// A type of the members of records, and how a trace keeps it.
pub trait Cell {
    /// Its sort.
    const DATA: Data;
}

impl Cell for u64 {
    const DATA: Data = Data::U64;
}
impl Cell for u32 {
    const DATA: Data = Data::U32;
}
impl Cell for i64 {
    const DATA: Data = Data::I64;
}
impl Cell for i32 {
    const DATA: Data = Data::I32;
}
impl Cell for Address {
    const DATA: Data = Data::Address;
}
impl<const N: usize> Cell for [u8; N] {
    const DATA: Data = Data::Text(N);
}
impl<const N: usize> Cell for [u64; N] {
    const DATA: Data = Data::List(N);
}

/// How the member that this function returns is kept.
#[must_use]
pub const fn data_of<R, T: Cell>(_member: fn(&R) -> &T) -> Data {
    T::DATA
}

/// A field that is a member of a record: `field!(RunqueueRecord.ran_tid, "ran_tid", "...")`. With
/// names at the end, those that its numbers stand for.
macro_rules! field {
    ($record:ident . $member:ident, $name:expr, $about:expr) => {
        $crate::model::Field {
            name: $name,
            about: $about,
            data: $crate::model::data_of(|record: &$record| &record.$member),
            offset: std::mem::offset_of!($record, $member),
            optional: false,
        }
    };
    ($record:ident . $member:ident, $name:expr, $about:expr, $names:expr) => {
        $crate::model::Field {
            data: $crate::model::Data::Names($names),
            ..$crate::model::field!($record.$member, $name, $about)
        }
    };
}
pub(crate) use field;

impl Field {
    /// A field that is a bit of the header's flags.
    #[must_use]
    pub const fn flag(name: &'static str, bit: u16, about: &'static str) -> Self {
        Self { name, about, data: Data::Flag(bit), offset: 0, optional: false }
    }

    /// A field that names bits of the header's flags.
    #[must_use]
    pub const fn flag_names(
        name: &'static str,
        names: &'static [(u16, &'static str)],
        about: &'static str,
    ) -> Self {
        Self { name, about, data: Data::FlagNames(names), offset: 0, optional: false }
    }

    /// The same field, which a trace may lack.
    #[must_use]
    pub const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    fn number<const N: usize>(&self, event: &Event) -> [u8; N] {
        event.bytes(self.offset, N).try_into().unwrap_or([0; N])
    }

    /// Whether its value has a name, where it needs one.
    pub(super) fn is_valid(&self, event: &Event) -> bool {
        match self.data {
            Data::Names(name) => name(u32::from_ne_bytes(self.number(event))).is_some(),
            Data::FlagNames(names) => names.iter().any(|(bits, _)| event.flags & bits == *bits),
            _ => true,
        }
    }

    /// Its value in an event of its kind.
    #[must_use]
    pub fn value<'a>(&self, event: &'a Event) -> Value<'a> {
        match self.data {
            Data::U64 => Value::Unsigned(u64::from_ne_bytes(self.number(event))),
            Data::U32 => Value::Unsigned(u32::from_ne_bytes(self.number(event)).into()),
            Data::I64 => Value::Signed(i64::from_ne_bytes(self.number(event))),
            Data::I32 => Value::Signed(i32::from_ne_bytes(self.number(event)).into()),
            Data::Flag(bit) => Value::Flag(event.flags & bit != 0),
            Data::FlagNames(names) => {
                let named = names.iter().find(|(bits, _)| event.flags & bits == *bits);
                Value::Text(named.map_or("", |(_, name)| name).into())
            }
            Data::Names(name) => {
                Value::Text(name(u32::from_ne_bytes(self.number(event))).unwrap_or("").into())
            }
            Data::Text(length) => Value::Text(until_nul(event.bytes(self.offset, length))),
            Data::Address => {
                let address = Ipv6Addr::from(self.number::<16>(event)).to_canonical();
                Value::Text(address.to_string().into())
            }
            Data::List(length) => {
                let (numbers, _) = event.bytes(self.offset, length * 8).as_chunks();
                let numbers = numbers.iter().copied().map(u64::from_ne_bytes);
                Value::List(numbers.take_while(|number| *number != 0).collect())
            }
        }
    }

    /// Puts a value into an event of its kind; `false` when it does not fit the field, or is a name
    /// that this version does not know.
    pub fn put(&self, event: &mut Event, value: &Value<'_>) -> bool {
        let number = |event: &mut Event, bytes: &[u8]| {
            let place = event.bytes_mut(self.offset, bytes.len());
            place.len() == bytes.len() && {
                place.copy_from_slice(bytes);
                true
            }
        };
        match (self.data, value) {
            (Data::U64, Value::Unsigned(value)) => number(event, &value.to_ne_bytes()),
            (Data::I64, Value::Signed(value)) => number(event, &value.to_ne_bytes()),
            (Data::U32, Value::Unsigned(value)) => {
                u32::try_from(*value).is_ok_and(|value| number(event, &value.to_ne_bytes()))
            }
            (Data::I32, Value::Signed(value)) => {
                i32::try_from(*value).is_ok_and(|value| number(event, &value.to_ne_bytes()))
            }
            (Data::Flag(bit), Value::Flag(set)) => {
                event.flags = if *set { event.flags | bit } else { event.flags & !bit };
                true
            }
            (Data::FlagNames(names), Value::Text(text)) => {
                let bits = names.iter().find(|(_, name)| name == text).map(|(bits, _)| *bits);
                event.flags |= bits.unwrap_or(0);
                bits.is_some()
            }
            (Data::Names(name), Value::Text(text)) => (0..NAMES_MAX)
                .find(|value| name(*value) == Some(text))
                .is_some_and(|value| number(event, &value.to_ne_bytes())),
            (Data::Text(length), Value::Text(text)) => {
                // The kernel's own names fit; a longer name is cut.
                let cut = text.floor_char_boundary(length);
                number(event, &text.as_bytes()[..cut])
            }
            (Data::Address, Value::Text(text)) => match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => number(event, &address.to_ipv6_mapped().octets()),
                Ok(IpAddr::V6(address)) => number(event, &address.octets()),
                Err(_) => false,
            },
            (Data::List(length), Value::List(numbers)) => {
                let bytes: Vec<u8> =
                    numbers.iter().take(length).flat_map(|number| number.to_ne_bytes()).collect();
                number(event, &bytes)
            }
            _ => false,
        }
    }
}
