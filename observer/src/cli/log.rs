//! What is logged, and how: options of every subcommand.

use crate::log::{Format, Verbosity};

/// Options about log lines.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct LogArgs {
    /// Verbose output; -vv also shows debug messages, those of the BPF programs included
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 900)]
    verbose: u8,
    /// Print errors only: no warnings, no progress line
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 901)]
    quiet: bool,
    /// Format of log messages on standard error
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t = Format::Text,
        display_order = 902
    )]
    pub(super) log_format: Format,
}

impl LogArgs {
    /// How much is logged.
    pub(super) const fn verbosity(self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Default,
            (false, 1) => Verbosity::Verbose,
            (false, _) => Verbosity::Debug,
        }
    }
}
