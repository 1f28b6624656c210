//! The command line of `cargo xtask vm`.

use std::{path::PathBuf, thread};

use clap::{Parser, ValueEnum, builder::PossibleValue};
use xtask_common::{kernel::Kernel, results};

/// Percentage of the usual work that tests do in a guest: an emulated CPU is slow.
const GUEST_SCALE: u32 = 50;

/// Twice what all tests take in a guest with PREEMPT_RT beside another guest.
const GUEST_LIMIT_SECONDS: u64 = 6000;

const EXAMPLES: &str = "\
Examples:
  cargo xtask vm                                    all kernels, and this host's (an hour)
  cargo xtask vm --kernel 6.1-rt                    one kernel
  cargo xtask vm --kernel 6.1 --test exactness -- reclaim
                                                    tests of one program by name
  cargo xtask vm --kernel all --exec 'observer doctor'
                                                    a command instead of the tests
  cargo xtask vm --kernel 6.12 --memory 256         little memory, to force reclaim
  cargo xtask vm --bench --kernel 6.12 -- --rounds 2
                                                    the cost of each tier of each probe

Kernels are Debian packages, found with apt, downloaded once, and kept in ~/.cache/observer/kernels.
The output of each guest is in target/vm/logs, the results of its tests in target/vm/results.";

/// Run the privileged tests on other kernels, in virtual machines
#[derive(Parser)]
#[command(name = "cargo xtask vm", bin_name = "cargo xtask vm", version, after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Kernel to test; repeat for several [default: all]
    #[arg(long = "kernel", value_enum, value_name = "KERNEL", hide_default_value = true)]
    pub(crate) kernels: Vec<Choice>,
    /// Run only this test program; repeat for several [default: those that depend on the kernel]
    #[arg(long = "test", value_name = "NAME")]
    pub(crate) tests: Vec<String>,
    /// Run only the Kth of N parts of the tests of these programs
    #[arg(long, value_name = "K/N", value_parser = part, conflicts_with_all = ["exec", "bench", "arguments"])]
    pub(crate) part: Option<Part>,
    /// Run this command with `sh` in each guest instead of the tests, and show its output; `observer`
    /// and the programs of the tests are in its PATH
    #[arg(long, value_name = "COMMAND", conflicts_with = "tests")]
    pub(crate) exec: Option<String>,
    /// Put this program of the host into each guest as well; repeat for several
    #[arg(long = "with", value_name = "PROGRAM")]
    pub(crate) programs: Vec<String>,
    /// Memory of a guest, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(192..))]
    pub(crate) memory: u32,
    /// Swap of a guest on compressed memory, MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub(crate) swap: u64,
    /// CPUs of a guest; with --bench and --counted it is always one
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: u32,
    /// CPUs that a guest could have, as on a host where CPUs can be added [default: those it has]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) possible_cpus: Option<u32>,
    /// Number of guests that run at a time [default: one for each CPU of the host, at most two]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Stop a guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = GUEST_LIMIT_SECONDS)]
    pub(crate) limit: u64,
    /// Percentage of the usual work that tests do in a guest
    #[arg(long, value_name = "PERCENT", default_value_t = GUEST_SCALE, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) scale: u32,
    /// Report a kernel that is not available, but do not fail
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// Measure the tiers of every probe instead of running the tests; ARGUMENTs go to bench-tiers
    #[arg(long, conflicts_with_all = ["tests", "scale", "exec", "built"])]
    pub(crate) bench: bool,
    /// Let the clocks of a guest count instructions, one a nanosecond: measurements are repeatable then,
    /// whatever the host does meanwhile; always so with --bench
    #[arg(long)]
    pub(crate) counted: bool,
    /// Build nothing: run the programs in this list, which `cargo xtask test` leaves
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) built: Option<PathBuf>,
    /// Arguments for the test programs, as with `cargo test`
    #[arg(last = true, value_name = "ARGUMENT")]
    pub(crate) arguments: Vec<String>,
}

/// A part of the tests: every `of`th one, from the `number`th on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

/// `2/3`.
fn part(text: &str) -> Result<Part, String> {
    let numbers = text.split_once('/').map(|(number, of)| (number.parse(), of.parse()));
    match numbers {
        Some((Ok(number), Ok(of))) if (1..=of).contains(&number) => Ok(Part { number, of }),
        _ => Err("not a number from 1, a slash, and the number of parts, like 2/3".to_owned()),
    }
}

impl Options {
    /// Whether the clocks of guests count instructions.
    pub(crate) const fn is_counted(&self) -> bool {
        self.bench || self.counted
    }

    /// A guest takes one CPU of the host. With more guests than CPUs, tests would exceed their own
    /// time limits.
    pub(crate) fn jobs(&self) -> u32 {
        let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.jobs.unwrap_or(if cpus > 1 { 2 } else { 1 })
    }

    /// The chosen guests, each once, and whether the host was chosen.
    pub(crate) fn chosen(&self) -> (Vec<Kernel>, bool) {
        let choices = &self.kernels;
        let all = choices.is_empty() || choices.contains(&Choice::All);
        let guests = Kernel::value_variants()
            .iter()
            .copied()
            .filter(|kernel| all || choices.contains(&Choice::Guest(*kernel)))
            .collect();
        (guests, all || choices.contains(&Choice::Host))
    }
}

/// A value of `--kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Guest(Kernel),
    Host,
    All,
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: &[Choice] = &[
            Choice::Guest(Kernel::V6_1),
            Choice::Guest(Kernel::V6_12),
            Choice::Guest(Kernel::V6_1Rt),
            Choice::Guest(Kernel::V6_12Rt),
            Choice::Host,
            Choice::All,
        ];
        ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Guest(kernel) => kernel.to_possible_value(),
            Self::Host => {
                let value = PossibleValue::new(results::HOST);
                Some(value.help("The kernel of this host, without a virtual machine"))
            }
            Self::All => Some(PossibleValue::new("all").help("All of these")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(arguments: &[&str]) -> (Vec<Kernel>, bool) {
        let line = ["vm"].iter().chain(arguments);
        Options::try_parse_from(line).expect("a command line").chosen()
    }

    #[test]
    fn kernels_are_chosen_once_and_in_their_order() {
        let all = Kernel::value_variants().to_vec();
        assert_eq!(chosen(&[]), (all.clone(), true));
        assert_eq!(chosen(&["--kernel", "all"]), (all, true));
        assert_eq!(chosen(&["--kernel", "host"]), (Vec::new(), true));
        assert_eq!(
            chosen(&["--kernel", "6.12", "--kernel", "6.1", "--kernel", "6.12"]),
            (vec![Kernel::V6_1, Kernel::V6_12], false)
        );
    }

    #[test]
    fn every_choice_has_a_name_and_every_kernel_is_a_choice() {
        let names: Vec<_> = Choice::value_variants()
            .iter()
            .filter_map(Choice::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        assert_eq!(names, ["6.1", "6.12", "6.1-rt", "6.12-rt", "host", "all"]);
        let kernels = Kernel::value_variants().iter().map(|kernel| Choice::Guest(*kernel));
        assert!(kernels.into_iter().all(|choice| Choice::value_variants().contains(&choice)));
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        for line in [
            ["vm", "--bench", "--test", "run"].as_slice(),
            &["vm", "--exec", "true", "--test", "run"],
            &["vm", "--kernel", "5.0"],
            &["vm", "--memory", "64"],
        ] {
            assert!(Options::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
