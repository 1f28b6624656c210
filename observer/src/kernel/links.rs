//! Links between programs and the places where they run, apart from the programs: a link can go and
//! come back while its program stays loaded.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use aya::Ebpf;
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::programs::{CgroupAttachMode, PerfEvent, Program as AyaProgram, ProgramError};

use crate::host::system;

/// Where a loaded program is linked to.
#[derive(Clone, Debug)]
pub(super) enum Site {
    /// The hook that the program was loaded for (fentry, fexit, tp_btf).
    Own,
    /// A raw tracepoint.
    RawTracepoint(&'static str),
    /// A function of the kernel.
    Function(&'static str),
    /// A tracepoint `syscalls:NAME`.
    Syscall(String),
    /// A software event on every CPU that is online.
    EveryCpu(SoftwareEvent),
    /// A cgroup and all below it.
    Cgroup(PathBuf),
}

/// The kernel refused a link, for this reason.
#[derive(Debug)]
pub(super) struct LinkError(pub(super) String);

/// A link of any kind: dropping it detaches.
trait Link: Send {}

impl<T: Send> Link for T {}

/// One program's places, and its links to them while it is attached.
#[derive(Default)]
struct Linked {
    sites: Vec<Site>,
    links: Vec<Box<dyn Link>>,
    /// Links to one CPU each.
    by_cpu: BTreeMap<u32, Box<dyn Link>>,
}

/// All links, by program.
#[derive(Default)]
pub(super) struct Links(BTreeMap<&'static str, Linked>);

impl Links {
    /// Links a program to its places for the first time.
    ///
    /// # Errors
    /// When the kernel refuses one of them; the links made before stay until [`Links::forget`].
    pub(super) fn add(
        &mut self,
        program: &mut AyaProgram,
        name: &'static str,
        sites: Vec<Site>,
    ) -> Result<(), ProgramError> {
        let linked = self.0.entry(name).or_default();
        linked.sites = sites;
        linked.link(program)
    }

    /// Drops the links of a program; its places stay known.
    pub(super) fn detach(&mut self, name: &str) {
        if let Some(linked) = self.0.get_mut(name) {
            linked.clear();
        }
    }

    /// Whether a program is linked to every CPU.
    pub(super) fn is_by_cpu(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|linked| !linked.by_cpu.is_empty())
    }

    /// Links a program again on a CPU that has come online: the kernel has removed what was there
    /// before. A CPU that has gone again needs no link; the kernel will say when it comes back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn renew(&mut self, ebpf: &mut Ebpf, name: &str, cpu: u32) -> Result<(), LinkError> {
        let missing = || LinkError("it was never attached".to_owned());
        let linked = self.0.get_mut(name).ok_or_else(missing)?;
        linked.by_cpu.remove(&cpu);
        let program = ebpf.program_mut(name).ok_or_else(missing)?;
        for site in &linked.sites {
            if let (AyaProgram::PerfEvent(program), Site::EveryCpu(event)) = (&mut *program, site) {
                match on_cpu(program, *event, cpu) {
                    Ok(link) => drop(linked.by_cpu.insert(cpu, link)),
                    Err(error) if is_offline(&error) => {}
                    Err(error) => return Err(LinkError(error.to_string())),
                }
            }
        }
        Ok(())
    }

    /// Links a program to its places again, unless it is linked.
    ///
    /// # Errors
    /// When the kernel refuses one of them; none is left then.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, name: &str) -> Result<(), LinkError> {
        let missing = || LinkError("it was never attached".to_owned());
        let linked = self.0.get_mut(name).ok_or_else(missing)?;
        if !linked.links.is_empty() || !linked.by_cpu.is_empty() {
            return Ok(());
        }
        let program = ebpf.program_mut(name).ok_or_else(missing)?;
        linked.link(program).map_err(|error| {
            linked.clear();
            LinkError(error.to_string())
        })
    }

    /// Drops a program's links and places.
    pub(super) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}

impl Linked {
    fn link(&mut self, program: &mut AyaProgram) -> Result<(), ProgramError> {
        for site in &self.sites {
            if let (AyaProgram::PerfEvent(program), Site::EveryCpu(event)) = (&mut *program, site) {
                for cpu in system::online_cpus() {
                    self.by_cpu.insert(cpu, on_cpu(program, *event, cpu)?);
                }
            } else {
                link(program, site, &mut self.links)?;
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.links.clear();
        self.by_cpu.clear();
    }
}

/// Every single event of one CPU is a sample.
fn on_cpu(
    program: &mut PerfEvent,
    event: SoftwareEvent,
    cpu: u32,
) -> Result<Box<dyn Link>, ProgramError> {
    let (config, scope) =
        (PerfEventConfig::Software(event), PerfEventScope::AllProcessesOneCpu { cpu });
    let link = program.attach(config, scope, SamplePolicy::Period(1), false)?;
    Ok(Box::new(program.take_link(link)?))
}

/// Whether the kernel refused an event because the CPU is not online.
fn is_offline(error: &ProgramError) -> bool {
    const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();
    matches!(error, ProgramError::SyscallError(call) if call.io_error.raw_os_error() == Some(ENODEV))
}

fn link(
    program: &mut AyaProgram,
    site: &Site,
    links: &mut Vec<Box<dyn Link>>,
) -> Result<(), ProgramError> {
    // The link is taken out of the program, because the program would keep it until it is dropped
    // itself.
    macro_rules! take {
        ($program:expr, $link:expr) => {{
            let link = $link?;
            links.push(Box::new($program.take_link(link)?));
        }};
    }
    match (program, site) {
        (AyaProgram::FEntry(program), Site::Own) => take!(program, program.attach()),
        (AyaProgram::FExit(program), Site::Own) => take!(program, program.attach()),
        (AyaProgram::BtfTracePoint(program), Site::Own) => take!(program, program.attach()),
        (AyaProgram::RawTracePoint(program), Site::RawTracepoint(name)) => {
            take!(program, program.attach(name));
        }
        (AyaProgram::KProbe(program), Site::Function(name)) => {
            take!(program, program.attach(name, 0));
        }
        (AyaProgram::TracePoint(program), Site::Syscall(name)) => {
            take!(program, program.attach("syscalls", name));
        }
        (AyaProgram::CgroupSock(program), Site::Cgroup(root)) => {
            let root = File::open(root).map_err(|error| {
                ProgramError::IOError(std::io::Error::new(
                    error.kind(),
                    format!("cannot open {}: {error}", root.display()),
                ))
            })?;
            // A link always lets others attach too; asking for it by flag is an error.
            take!(program, program.attach(root, CgroupAttachMode::Single));
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(())
}
