//! Functions by address: in the kernel's list of its symbols, and in the symbol tables of an ELF file or, where it has
//! none, in the table of the Go runtime.

use std::fs::File;
use std::path::Path;

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{Input, Reason, Symbolized, Symbolizer};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::go::GoFunctions;
use crate::text;

/// Characters of a function's name. With all its types, a name of C++ or Rust can be far longer.
const NAME_CHARACTERS: usize = 160;

/// No function of the kernel is longer. Its list has no lengths, so that an address behind the last
/// function of a part would be given to that function.
const KERNEL_FUNCTION_BYTES: u64 = 1 << 20;

/// The function at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Its name, demangled, without control characters.
    pub name: String,
    /// Bytes behind its begin.
    pub offset: u64,
}

impl Symbol {
    /// The same with a name that can be shown, whatever it was.
    #[must_use]
    pub fn cleaned(self) -> Self {
        Self { name: text::clean(&self.name, NAME_CHARACTERS), ..self }
    }

    /// `None` without a name.
    pub(super) fn named(name: &str, offset: u64) -> Option<Self> {
        let name = text::clean(name, NAME_CHARACTERS);
        (!name.is_empty()).then_some(Self { name, offset })
    }

    fn of(found: &Symbolized<'_>) -> Option<Self> {
        let found = found.as_sym()?;
        Self::named(&found.name, found.offset as u64)
    }
}

fn symbolizer() -> Symbolizer {
    Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_code_info(false)
        .enable_inlined_fns(false)
        .build()
}

/// The functions of the running kernel at these addresses, `None` where there is no function. The list
/// is empty for readers without `CAP_SYSLOG`.
///
/// # Errors
/// When the kernel's list (`/proc/kallsyms`) cannot be read, in one line.
pub fn in_kernel(addresses: &[u64]) -> Result<Vec<Option<Symbol>>, String> {
    let source = Source::Kernel(Kernel {
        vmlinux: MaybeDefault::None,
        debug_syms: false,
        ..Kernel::default()
    });
    let symbolizer = symbolizer();
    let found = symbolizer.symbolize(&source, Input::AbsAddr(addresses));
    let found = found.map_err(|error| error.to_string())?;
    let of = |found: &Symbolized<'_>| {
        Symbol::of(found).filter(|symbol| symbol.offset < KERNEL_FUNCTION_BYTES)
    };
    Ok(found.iter().map(of).collect())
}

/// An ELF file that is mapped and not yet read.
pub struct ElfFile {
    symbolizer: Symbolizer,
    source: Source<'static>,
    bytes: Mmap,
}

impl ElfFile {
    /// Opens and maps the file, and reads nothing of it: that comes with [`ElfFile::symbols`], for
    /// which the file does not have to be opened again.
    ///
    /// # Errors
    /// When it cannot be opened or mapped, in one line.
    pub fn open(path: &Path) -> Result<Self, String> {
        let mut elf = Elf::new(path);
        elf.debug_syms = false;
        let (symbolizer, source) = (symbolizer(), Source::Elf(elf));
        let opened = symbolizer.symbolize(&source, Input::FileOffset(&[])).map(drop);
        opened.map_err(|error| error.to_string())?;
        let file = File::open(path).map_err(|error| error.to_string())?;
        // SAFETY: bytes of it may change at any time, and are read as such: nothing in here relies on reading the
        // same ones twice. The file may also become shorter, of which the callers of `symbols` know.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|error| error.to_string())?;
        Ok(Self { symbolizer, source, bytes })
    }

    /// The functions at these offsets of the file, `None` where there is no function.
    ///
    /// A file that was made for it can make this function panic, run for long, or worse; one that becomes
    /// shorter meanwhile ends the process. Call it for files of others only where nothing is lost by
    /// that.
    ///
    /// # Errors
    /// When the file is no ELF file or is damaged, in one line.
    pub fn symbols(&self, offsets: &[u64]) -> Result<Vec<Option<Symbol>>, String> {
        let found = self.in_symbol_tables(offsets);
        let is_complete = |found: &Vec<_>| found.iter().all(Option::is_some);
        if found.as_ref().is_ok_and(is_complete) {
            return found;
        }
        let Some(go) = GoFunctions::find(&self.bytes) else { return found };
        let found = found.unwrap_or_else(|_| vec![None; offsets.len()]);
        let with_go = found.into_iter().zip(offsets);
        Ok(with_go.map(|(found, offset)| found.or_else(|| go.at(*offset))).collect())
    }

    fn in_symbol_tables(&self, offsets: &[u64]) -> Result<Vec<Option<Symbol>>, String> {
        let found = self.symbolizer.symbolize(&self.source, Input::FileOffset(offsets));
        let found = found.map_err(|error| error.to_string())?;
        let failed =
            |found: &Symbolized<'_>| matches!(found, Symbolized::Unknown(Reason::IgnoredError));
        if let Some(first) = offsets.first().filter(|_| found.iter().all(failed)) {
            // Asked for one offset, it says why.
            let again = self.symbolizer.symbolize_single(&self.source, Input::FileOffset(*first));
            again.map_err(|error| format!("{error:#}").replace('\n', " "))?;
        }
        Ok(found.iter().map(Symbol::of).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::Write;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::model::Tgid;
    use crate::stacks::mappings::{FILES_MAX, Mappings};

    #[inline(never)]
    fn a_function_of_this_test(number: u64) -> u64 {
        std::hint::black_box(number) + 1
    }

    /// The offset of the function in this program.
    fn own_offset() -> u64 {
        let address = a_function_of_this_test as *const () as u64;
        let mut mappings = Mappings::new(FILES_MAX);
        mappings.places(Tgid(std::process::id()), &[address])[0].offset
    }

    fn symbols(bytes: &[u8], offsets: &[u64]) -> Result<Vec<Option<Symbol>>, String> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("it takes bytes");
        ElfFile::open(file.path())?.symbols(offsets)
    }

    #[test]
    fn a_function_of_this_program_has_its_name() {
        assert_eq!(a_function_of_this_test(1), 2);
        let offset = own_offset();
        let own = ElfFile::open(Path::new("/proc/self/exe")).expect("it is there");
        let found = own.symbols(&[offset + 1, u64::MAX]).expect("it is an ELF file");
        let [Some(symbol), None] = &found[..] else { panic!("{found:?}") };
        assert!(symbol.name.ends_with("tests::a_function_of_this_test"), "{symbol:?}");
        assert_eq!(symbol.offset, 1);
    }

    #[test]
    fn what_is_no_elf_file_is_an_error_of_one_line() {
        let own = std::fs::read("/proc/self/exe").expect("it is there");
        for bytes in [&b""[..], b"\x7f", b"\x7fELF", b"#!/bin/sh\n", &[0; 4096], &own[..63]] {
            let error = symbols(bytes, &[1, 2]).expect_err("no ELF file");
            assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
        }
        // The tables of symbols are at its end.
        let offset = own_offset();
        let error = symbols(&own[..own.len() / 2], &[offset]).expect_err("half of one");
        assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
        assert!(ElfFile::open(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn garbage_has_no_functions() {
        let mut random = StdRng::seed_from_u64(3);
        for length in [16, 64, 100, 1_000, 5_000] {
            let mut bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
            assert!(symbols(&bytes, &[1]).is_err());
            bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            bytes[7..].fill(0);
            let found = symbols(&bytes, &[1]);
            assert!(found.as_ref().map_or(true, |found| *found == [None]), "{found:?}");
        }
    }

    #[test]
    fn names_cannot_steer_a_terminal_and_are_cut() {
        let symbol = Symbol { name: format!("\u{1b}[2J{}", "x".repeat(10_000)), offset: 3 };
        let Symbol { name, offset } = symbol.cleaned();
        assert!(name.starts_with("?[2Jxx") && offset == 3, "{name:?}");
        assert_eq!(name.chars().count(), NAME_CHARACTERS + 1);
    }

    #[test]
    fn functions_of_the_kernel_are_those_of_its_list() {
        let list = std::fs::read_to_string("/proc/kallsyms").expect("it is there");
        let mut names: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        let mut functions = BTreeSet::new();
        for line in list.lines() {
            let mut words = line.split_ascii_whitespace();
            let [Some(address), Some(kind), Some(name)] = [(); 3].map(|()| words.next()) else {
                panic!("{line:?}")
            };
            let address = u64::from_str_radix(address, 16).expect("an address");
            names.entry(address).or_default().insert(name);
            // Without CAP_SYSLOG, all addresses are 0.
            if address > 0 && kind.eq_ignore_ascii_case("t") && functions.len() < 2_000 {
                functions.insert(address);
            }
        }
        let addresses: Vec<u64> = functions.into_iter().collect();
        let found = in_kernel(&addresses).expect("it can be read");
        assert_eq!(found.len(), addresses.len());
        for (address, found) in addresses.iter().zip(found) {
            let found = found.expect("a function");
            assert_eq!(found.offset, 0);
            // Names of functions in Rust are demangled.
            let is_its_name = names[address].contains(found.name.as_str());
            assert!(is_its_name || found.name.contains("::"), "{address:#x}: {found:?}");
        }
        let none = in_kernel(&[1, u64::MAX]).expect("it can be read");
        assert_eq!(none, [None, None]);
    }
}
