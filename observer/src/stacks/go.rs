//! Functions of binaries that Go made, by the table that the Go runtime itself uses.
//!
//! The runtime walks stacks for its garbage collector and for panics, so that its table of functions is in each
//! binary, and remains when the binary is stripped. What it looks like is described in Go's own source,
//! `src/runtime/symtab.go` (`pcHeader`, `functab`, `moduledata`) and `src/runtime/runtime2.go` (`_func`), here
//! of Go 1.18 and later, on processors with 64 bits that are little-endian.
//!
//! The file may contain anything: nothing in here trusts a number in it.

use std::collections::HashMap;

use object::LittleEndian;
use object::elf::{DT_RELA, DT_RELASZ, FileHeader64, PT_LOAD, Rela64};
use object::elf::{R_AARCH64_RELATIVE, R_X86_64_RELATIVE};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

use super::symbolize::Symbol;

/// First bytes of the table since Go 1.18 and since Go 1.20, which differ in nothing that matters here.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// The table and the runtime's description of the binary begin at multiples of this.
const ALIGN_BYTES: usize = 8;
/// Bytes of the header: the magic, two bytes of padding, the smallest length of an instruction, the length of
/// a pointer, and eight numbers.
const HEADER_BYTES: usize = 8 + 8 * 8;
/// Bytes of an entry of the list of functions: where the function begins, and where its description is.
const ENTRY_BYTES: usize = 8;
/// Functions of a binary. Kubernetes has a hundred thousand.
const FUNCTIONS_MAX: usize = 1 << 24;
/// Segments that are looked at. A linker makes about a dozen.
const SEGMENTS_MAX: usize = 256;
/// Bytes of a name.
const NAME_BYTES: usize = 4_096;
/// Words of the runtime's description of the binary (`moduledata`): the address of the table, that of the names
/// in it, that of the list of functions, and the address from which the list counts.
const MODULE_TABLE: u64 = 0;
const MODULE_NAMES: u64 = 1;
const MODULE_FUNCTIONS: u64 = 16;
const MODULE_TEXT: u64 = 22;

/// A part of the file that the kernel maps.
#[derive(Clone, Copy)]
struct Segment<'a> {
    address: u64,
    offset: u64,
    bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    /// What lies at this address, up to the end of the segment.
    fn at(&self, address: u64) -> Option<&'a [u8]> {
        let behind = usize::try_from(address.checked_sub(self.address)?).ok()?;
        self.bytes.get(behind..).filter(|bytes| !bytes.is_empty())
    }

    /// Its parts at multiples of [`ALIGN_BYTES`], with their addresses.
    fn aligned(&self) -> impl Iterator<Item = (u64, &'a [u8])> + use<'a> {
        let (address, bytes) = (self.address, self.bytes);
        let first = (address.wrapping_neg() % ALIGN_BYTES as u64) as usize;
        let starts = (first..bytes.len()).step_by(ALIGN_BYTES);
        starts.map(move |start| (address.wrapping_add(start as u64), &bytes[start..]))
    }
}

/// A binary as it is in memory.
struct Image<'a> {
    segments: Vec<Segment<'a>>,
    /// Words that are set when the binary is loaded, by their address; as if it were loaded at 0.
    set: HashMap<u64, u64>,
}

impl<'a> Image<'a> {
    fn of(file: &'a [u8]) -> Option<Self> {
        let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
        let endian = header.endian().ok()?;
        let headers = header.program_headers(endian, file).ok()?;
        let headers = &headers[..headers.len().min(SEGMENTS_MAX)];
        let loaded = headers.iter().filter(|one| one.p_type(endian) == PT_LOAD);
        let segments = loaded.filter_map(|one| {
            let bytes = one.data(endian, file).ok()?;
            Some(Segment { address: one.p_vaddr(endian), offset: one.p_offset(endian), bytes })
        });
        let mut image = Self { segments: segments.collect(), set: HashMap::new() };
        let dynamic = headers.iter().find_map(|one| one.dynamic(endian, file).ok().flatten());
        let value = |tag| {
            let entry = dynamic.unwrap_or_default().iter().find(|entry| entry.tag(endian) == tag);
            entry.map(|entry| entry.val(endian))
        };
        if let (Some(address), Some(length)) = (value(DT_RELA), value(DT_RELASZ)) {
            image.set = image.relative(address, usize::try_from(length).ok()?);
        }
        Some(image)
    }

    /// The relocations that only add the address at which the binary is loaded.
    fn relative(&self, address: u64, length: usize) -> HashMap<u64, u64> {
        let bytes = self.at(address).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(length)];
        let entries = bytes.chunks_exact(size_of::<Rela64<LittleEndian>>());
        let relative = entries.filter_map(|entry| {
            let [place, info, addend] = [0, 8, 16].map(|at| word(entry, at).unwrap_or_default());
            let kind = info as u32;
            [R_X86_64_RELATIVE.0, R_AARCH64_RELATIVE.0].contains(&kind).then_some((place, addend))
        });
        relative.collect()
    }

    /// What lies at this address, up to the end of its segment.
    fn at(&self, address: u64) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| segment.at(address))
    }

    /// The word of a structure at this address.
    fn word(&self, address: u64, index: u64) -> Option<u64> {
        let address = address.checked_add(index * 8)?;
        self.set.get(&address).copied().or_else(|| word(self.at(address)?, 0))
    }

    /// The addresses at which this word lies.
    fn places_of(&self, value: u64) -> impl Iterator<Item = u64> {
        let set = self.set.iter().filter(move |(_, set)| **set == value).map(|(place, _)| *place);
        let aligned = self.segments.iter().flat_map(Segment::aligned);
        set.chain(
            aligned.filter_map(move |(address, bytes)| {
                (word(bytes, 0) == Some(value)).then_some(address)
            }),
        )
    }

    /// The address of what lies at this offset of the file.
    fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let behind = offset.checked_sub(segment.offset)?;
            (behind < segment.bytes.len() as u64).then(|| segment.address.checked_add(behind))?
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn half_word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// The functions of a Go binary.
pub(super) struct GoFunctions<'a> {
    image: Image<'a>,
    /// The address from which the list counts.
    text: u64,
    /// How many functions the list has. Behind them is the end of the last one.
    count: usize,
    /// The list of functions, and behind it their descriptions.
    functions: &'a [u8],
    /// Their names, each with a zero at its end.
    names: &'a [u8],
}

impl<'a> GoFunctions<'a> {
    /// Looks for the table in a binary; `None` where there is none that is known.
    pub(super) fn find(file: &'a [u8]) -> Option<Self> {
        let image = Image::of(file)?;
        let mut tables = image.segments.iter().flat_map(Segment::aligned);
        let (table, module) = tables.find_map(|(address, bytes)| {
            let table = Table::read(address, bytes)?;
            let module = image.places_of(address).find(|module| table.is_of(&image, *module));
            // Without such a description, the table may know the address itself (Go 1.18 to 1.25).
            (module.is_some() || table.text > 0).then_some((table, module))
        })?;
        let text = module.and_then(|module| image.word(module, MODULE_TEXT)).unwrap_or(table.text);
        let Table { count, functions, names, .. } = table;
        Some(Self { image, text, count, functions, names })
    }

    /// Where a function begins, behind `text`; that of the last but one is the end of the last function.
    fn begin(&self, index: usize) -> Option<u32> {
        half_word(self.functions, index * ENTRY_BYTES)
    }

    /// The function at this offset of the file.
    pub(super) fn at(&self, offset: u64) -> Option<Symbol> {
        let address = self.image.address(offset)?;
        let behind = u32::try_from(address.checked_sub(self.text)?).ok()?;
        if behind >= self.begin(self.count)? {
            return None;
        }
        // The list is in order; in a damaged one, some function is found, or none.
        let (entries, _) =
            self.functions.get(..self.count * ENTRY_BYTES)?.as_chunks::<ENTRY_BYTES>();
        let behind_begin = entries.partition_point(|entry| half_word(entry, 0) <= Some(behind));
        let index = behind_begin.checked_sub(1)?;
        let description = half_word(self.functions, index * ENTRY_BYTES + 4)? as usize;
        let name = half_word(self.functions.get(description..)?, 4)? as usize;
        let name = self.names.get(name..)?;
        let name = &name[..name.len().min(NAME_BYTES)];
        let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?);
        Symbol::named(&name, u64::from(behind - self.begin(index)?))
    }
}

/// The table as its header describes it.
struct Table<'a> {
    address: u64,
    text: u64,
    count: usize,
    names_at: u64,
    names: &'a [u8],
    functions_at: u64,
    functions: &'a [u8],
}

impl<'a> Table<'a> {
    /// The table at the begin of these bytes, if there is one.
    fn read(address: u64, bytes: &'a [u8]) -> Option<Self> {
        let is_table = bytes.len() > HEADER_BYTES
            && MAGICS.contains(&half_word(bytes, 0)?)
            && matches!(bytes[4..8], [0, 0, 1 | 2 | 4, 8]);
        if !is_table {
            return None;
        }
        let number = |index: usize| word(bytes, 8 + 8 * index);
        let count = usize::try_from(number(0)?).ok()?;
        let part = |index: usize| {
            let behind = number(index)?;
            Some((address.checked_add(behind)?, bytes.get(usize::try_from(behind).ok()?..)?))
        };
        let ((names_at, names), (functions_at, functions)) = (part(3)?, part(7)?);
        let is_whole = (1..FUNCTIONS_MAX).contains(&count)
            && functions.len() >= count * ENTRY_BYTES + size_of::<u32>();
        let text = number(2)?;
        is_whole.then_some(Self { address, text, count, names_at, names, functions_at, functions })
    }

    /// Whether the runtime's description of the binary that would lie at this address is about this table.
    fn is_of(&self, image: &Image<'_>, module: u64) -> bool {
        let said = [MODULE_TABLE, MODULE_NAMES, MODULE_FUNCTIONS].map(|at| image.word(module, at));
        said == [self.address, self.names_at, self.functions_at].map(Some)
    }
}
