//! Struct offsets, enum values and tracepoints of the running kernel, from its BTF.
//!
//! The format is Documentation/bpf/btf.rst of the kernel. Only what the loader asks for is decoded;
//! the input may be a file from the user, so none of it is trusted.

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::Path;

/// Why BTF could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("cannot read BTF from {path}: {source}")]
    Read {
        /// The file that was tried.
        path: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Not BTF, or damaged.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// A file that the user named is not BTF, or is damaged.
    #[error("{path} is not BTF of a kernel: {reason}")]
    File {
        /// Its name.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A struct member, enum value or type this kernel does not have.
    #[error("{0}")]
    Missing(String),
}

/// Where the kernel provides its own BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_TYPE_TAG: u32 = 18;

/// No kernel's BTF is nearly this large; a whole vmlinux with its debug information may be.
const FILE_BYTES_MAX: u64 = 2 << 30;

/// Types of a kernel.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    strings_end: usize,
    /// Byte offset of each type, by id (0 is void).
    types: Vec<usize>,
    /// Hash of kind and name with the id, sorted, of the kinds that are asked for. A table with the
    /// names would take as long to build as all other steps of attaching together.
    names: Vec<(u64, u32)>,
}

impl Btf {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    /// When the kernel provides none, or it is damaged.
    pub fn of_kernel() -> Result<Self, BtfError> {
        let data = std::fs::read(KERNEL_BTF)
            .map_err(|source| BtfError::Read { path: KERNEL_BTF.into(), source })?;
        Self::parse(data)
    }

    /// Reads BTF from a file: raw, as the kernel provides it, or the `.BTF` section of an ELF file
    /// such as vmlinux.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no BTF of a kernel.
    pub fn of_file(path: &Path) -> Result<Self, BtfError> {
        use object::{Object, ObjectSection};

        let shown = path.display().to_string();
        let wrong = |reason: String| BtfError::File { path: shown.clone(), reason };
        let mut data = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut data))
            .map_err(|source| BtfError::Read { path: shown.clone(), source })?;
        if data.starts_with(b"\x7fELF") {
            let elf = object::File::parse(&*data).map_err(|error| wrong(error.to_string()))?;
            let section =
                elf.section_by_name(".BTF").ok_or_else(|| wrong("no .BTF section".into()))?;
            data = section.data().map_err(|error| wrong(error.to_string()))?.to_vec();
        }
        let btf = Self::parse(data).map_err(|error| wrong(error.to_string()))?;
        if btf.struct_id("task_struct").is_none() {
            return Err(wrong("it describes no task_struct".into()));
        }
        Ok(btf)
    }

    /// Indexes raw BTF.
    ///
    /// # Errors
    /// When it is not BTF, or damaged.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        const MAGIC: u16 = 0xeb9f;
        let word = |offset| read_u32(&data, offset).ok_or(BtfError::Malformed("short header"));
        if word(0)? as u16 != MAGIC {
            return Err(BtfError::Malformed("wrong magic number or byte order"));
        }
        let header = word(4)? as usize;
        let (type_start, type_length) = (header + word(8)? as usize, word(12)? as usize);
        let (strings, string_length) = (header + word(16)? as usize, word(20)? as usize);
        let strings_end = strings + string_length;
        let type_end = type_start + type_length;
        if type_end > data.len() || strings_end > data.len() {
            return Err(BtfError::Malformed("sections reach past the end"));
        }
        let mut btf = Self { data, strings, strings_end, types: vec![0], names: Vec::new() };
        let mut offset = type_start;
        while offset < type_end {
            let id = btf.types.len() as u32;
            let (kind, count) = btf.info(offset).ok_or(BtfError::Malformed("cut type"))?;
            if matches!(kind, KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_TYPEDEF | KIND_FUNC)
                && let Some(name) = btf.name_at(offset)
                && !name.is_empty()
            {
                let hash = hash(kind, name);
                btf.names.push((hash, id));
            }
            btf.types.push(offset);
            let body = match kind {
                // INT, VAR, DECL_TAG: one word.
                1 | 14 | 17 => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION => count * 12,
                KIND_ENUM | KIND_FUNC_PROTO => count * 8,
                // DATASEC, ENUM64: three words an entry.
                15 | 19 => count * 12,
                KIND_PTR | 7..=12 | 16 | KIND_TYPE_TAG => 0,
                _ => return Err(BtfError::Malformed("unknown kind of type")),
            };
            offset += 12 + body;
        }
        btf.names.sort_unstable();
        Ok(btf)
    }

    /// Byte offset of a member, following nested (also anonymous) structs: `("task_struct",
    /// "thread_info.status")`.
    ///
    /// # Errors
    /// [`BtfError::Missing`] when the struct or a member does not exist or is a bit field.
    pub fn offset_of(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("struct {structure} has no member {path}"));
        let no_struct = || BtfError::Missing(format!("there is no struct {structure}"));
        let mut id = self.struct_id(structure).ok_or_else(no_struct)?;
        let mut bits = 0;
        for member in path.split('.') {
            let (offset, member_type) = self.member(id, member, 0).ok_or_else(missing)?;
            bits += offset;
            id = member_type;
        }
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(missing()) }
    }

    /// Where a member of one bit is in a struct: offset of its byte, and the bit in that byte.
    ///
    /// # Errors
    /// [`BtfError::Missing`] when the struct or the member does not exist.
    pub fn bit_of(&self, structure: &str, member: &str) -> Result<(u32, u32), BtfError> {
        let missing = || BtfError::Missing(format!("struct {structure} has no bit {member}"));
        let id = self.struct_id(structure).ok_or_else(missing)?;
        let (bits, width, _) = self.member_bits(id, member, 0).ok_or_else(missing)?;
        if width == 1 { Ok((bits / 8, 1 << (bits % 8))) } else { Err(missing()) }
    }

    /// Size of a struct, bytes.
    ///
    /// # Errors
    /// [`BtfError::Missing`] when there is none of this name.
    pub fn size_of(&self, name: &str) -> Result<u32, BtfError> {
        let id = self.struct_id(name);
        id.and_then(|id| read_u32(&self.data, *self.types.get(id as usize)? + 8))
            .ok_or_else(|| BtfError::Missing(format!("there is no struct {name}")))
    }

    /// Value of an enumerator.
    ///
    /// # Errors
    /// [`BtfError::Missing`] when the enum or the enumerator does not exist.
    pub fn enum_value(&self, name: &str, enumerator: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("enum {name} has no value {enumerator}"));
        let id = self.find(KIND_ENUM, name).ok_or_else(missing)?;
        let offset = *self.types.get(id as usize).ok_or_else(missing)?;
        let (_, count) = self.info(offset).ok_or_else(missing)?;
        (0..count)
            .map(|index| offset + 12 + index * 8)
            .find(|entry| self.name_at(*entry) == Some(enumerator.as_bytes()))
            .and_then(|entry| read_u32(&self.data, entry + 4))
            .ok_or_else(missing)
    }

    /// Whether the kernel has a raw tracepoint of this name, and with how many arguments.
    #[must_use]
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        // The first parameter is the tracepoint's private data.
        Some(self.tracepoint_parameters(name)?.len().saturating_sub(1))
    }

    /// Position of the first argument of a raw tracepoint that points to this struct.
    #[must_use]
    pub fn tracepoint_argument(&self, name: &str, structure: &str) -> Option<usize> {
        let id = self.struct_id(structure)?;
        let parameters = self.tracepoint_parameters(name)?;
        let points_there = |parameter: &u32| {
            let pointer = self.resolve(*parameter)?;
            let (kind, _) = self.info(*self.types.get(pointer as usize)?)?;
            (kind == KIND_PTR && self.resolve(self.referenced(pointer)?)? == id).then_some(())
        };
        parameters.iter().skip(1).position(|parameter| points_there(parameter).is_some())
    }

    /// Whether the kernel has a function of this name, and with how many parameters.
    #[must_use]
    pub fn function_parameters(&self, name: &str) -> Option<usize> {
        let function = self.find(KIND_FUNC, name)?;
        Some(self.parameters(self.referenced(function)?)?.len())
    }

    fn tracepoint_parameters(&self, name: &str) -> Option<Vec<u32>> {
        let typedef = self.find(KIND_TYPEDEF, &format!("btf_trace_{name}"))?;
        let pointer = self.referenced(typedef)?;
        self.parameters(self.referenced(pointer)?)
    }

    /// Types of the parameters of a prototype.
    fn parameters(&self, prototype: u32) -> Option<Vec<u32>> {
        let offset = *self.types.get(prototype as usize)?;
        let (kind, count) = self.info(offset)?;
        if kind != KIND_FUNC_PROTO {
            return None;
        }
        (0..count).map(|index| read_u32(&self.data, offset + 12 + index * 8 + 4)).collect()
    }

    /// Where the length of each array of this integer type is in the data, and the length.
    pub(super) fn arrays_of(&self, element: &str) -> impl Iterator<Item = (usize, u32)> {
        self.types.iter().skip(1).filter_map(move |&offset| {
            let (kind, _) = self.info(offset)?;
            if kind != KIND_ARRAY {
                return None;
            }
            let of = self.resolve(read_u32(&self.data, offset + 12)?)?;
            let name = self.name_at(*self.types.get(of as usize)?)?;
            // `struct btf_array`: the types of element and index, and the length.
            let at = offset + 20;
            (name == element.as_bytes()).then_some((at, read_u32(&self.data, at)?))
        })
    }

    fn struct_id(&self, name: &str) -> Option<u32> {
        self.find(KIND_STRUCT, name)
    }

    /// Kind and number of entries.
    fn info(&self, offset: usize) -> Option<(u32, usize)> {
        let info = read_u32(&self.data, offset + 4)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn name_at(&self, offset: usize) -> Option<&[u8]> {
        let start = self.strings + read_u32(&self.data, offset)? as usize;
        let bytes = self.data.get(start..self.strings_end)?;
        Some(CStr::from_bytes_until_nul(bytes).ok()?.to_bytes())
    }

    /// Id of the first type of this kind and name.
    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let hash = hash(kind, name.as_bytes());
        let from = self.names.partition_point(|(other, _)| *other < hash);
        let same_hash = self.names[from..].iter().take_while(|(other, _)| *other == hash);
        let mut ids = same_hash.map(|(_, id)| *id);
        ids.find(|id| {
            let offset = self.types.get(*id as usize).copied().unwrap_or_default();
            self.info(offset).is_some_and(|(found, _)| found == kind)
                && self.name_at(offset) == Some(name.as_bytes())
        })
    }

    /// The type a pointer, typedef or qualifier refers to.
    fn referenced(&self, id: u32) -> Option<u32> {
        read_u32(&self.data, *self.types.get(id as usize)? + 8)
    }

    /// Strips typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        // Chains are short; the bound stops a malicious cycle.
        for _ in 0..32 {
            let offset = *self.types.get(id as usize)?;
            match self.info(offset)?.0 {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = self.referenced(id)?;
                }
                _ => return Some(id),
            }
        }
        None
    }

    /// Offset in bits and type of a member, looked for in anonymous members too.
    fn member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let (bits, width, member_type) = self.member_bits(id, name, depth)?;
        (width == 0).then_some((bits, member_type))
    }

    /// Offset of a member in bits, its width if it is a bit field (0 otherwise), and its type.
    fn member_bits(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32, u32)> {
        if depth > 8 {
            return None;
        }
        let offset = *self.types.get(self.resolve(id)? as usize)?;
        let info = read_u32(&self.data, offset + 4)?;
        let (kind, count) = self.info(offset)?;
        if kind != KIND_STRUCT && kind != KIND_UNION {
            return None;
        }
        let has_bitfields = info >> 31 != 0;
        for index in 0..count {
            let entry = offset + 12 + index * 12;
            let member_type = read_u32(&self.data, entry + 4)?;
            let raw = read_u32(&self.data, entry + 8)?;
            let (bits, width) =
                if has_bitfields { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            let member_name = self.name_at(entry)?;
            if member_name == name.as_bytes() {
                return Some((bits, width, member_type));
            }
            if member_name.is_empty()
                && let Some((inner, width, inner_type)) =
                    self.member_bits(member_type, name, depth + 1)
            {
                return Some((bits + inner, width, inner_type));
            }
        }
        None
    }
}

fn hash(kind: u32, name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, name).hash(&mut hasher);
    hasher.finish()
}

fn read_u32(data: &[u8], offset: usize) -> Option<u32> {
    let bytes = data.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_what_the_programs_need() {
        // Readable without privileges wherever the kernel has BTF at all.
        let Ok(btf) = Btf::of_kernel() else {
            println!("not run: this kernel shows no BTF");
            return;
        };
        let pid = btf.offset_of("task_struct", "pid").expect("pid");
        let tgid = btf.offset_of("task_struct", "tgid").expect("tgid");
        assert_eq!(tgid, pid + 4, "neighbours since 2.6");
        assert!(btf.offset_of("task_struct", "no_such_member").is_err());
        assert!(btf.offset_of("sock", "__sk_common.skc_family").is_ok(), "through anonymous");
        assert_eq!(btf.tracepoint_arguments("sched_wakeup"), Some(1));
        assert_eq!(btf.tracepoint_arguments("no_such_tracepoint"), None);
        assert_eq!(btf.tracepoint_argument("sched_wakeup", "task_struct"), Some(0));
        assert_eq!(btf.tracepoint_argument("sched_wakeup", "sock"), None);
        assert!(btf.function_parameters("handle_mm_fault").is_some_and(|count| count >= 3));
        assert_eq!(btf.function_parameters("no_such_function"), None);
    }

    #[test]
    fn btf_is_taken_from_raw_files_and_refused_from_others() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        for wrong in [&b""[..], b"\x7fELF", b"text, no types"] {
            std::fs::write(&file, wrong).unwrap();
            let error = Btf::of_file(&file).err().expect("refused").to_string();
            assert!(error.contains("file is not BTF of a kernel"), "{error}");
        }
        let error = Btf::of_file(&directory.path().join("absent")).err().expect("refused");
        assert!(matches!(error, BtfError::Read { .. }));
        if Path::new(KERNEL_BTF).exists() {
            std::fs::copy(KERNEL_BTF, &file).unwrap();
            let (own, copy) = (Btf::of_kernel().unwrap(), Btf::of_file(&file).unwrap());
            let pid = |btf: &Btf| btf.offset_of("task_struct", "pid").unwrap();
            assert_eq!(pid(&own), pid(&copy));
        }
    }

    #[test]
    fn damaged_input_is_an_error() {
        assert!(Btf::parse(Vec::new()).is_err());
        assert!(Btf::parse(vec![0; 64]).is_err());
        let mut header = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        header.extend_from_slice(&[0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0]);
        assert!(Btf::parse(header).is_err());
    }
}
