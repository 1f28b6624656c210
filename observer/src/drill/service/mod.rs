//! The throwaway service that drills watch: a small HTTP/1.1 server that writes its own log.
//!
//! It says on standard output on which port it listens, and when the first request has come. When its
//! standard input ends, it writes its log and ends.

pub mod entry;
mod files;
mod forms;
mod handler;
pub(super) mod http;
mod memory;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::rows::{Form, Harm, Work};
use crate::error::{Error, Exit, Result};
use crate::output::rundir::create_private_file;

/// Arguments of the hidden subcommand.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How connections are handled
    #[arg(long)]
    pub form: Form,
    /// What each request does
    #[arg(long)]
    pub work: Work,
    /// What a share of the requests does besides
    #[arg(long)]
    pub harm: Harm,
    /// Chooses these requests
    #[arg(long)]
    pub seed: u64,
    /// Where the log goes; must not exist
    #[arg(long, value_name = "PATH")]
    pub log: PathBuf,
    /// A file to make for work that reads one, or for what writes to one
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// End after this many seconds in any case
    #[arg(long, value_name = "SECONDS")]
    pub lifetime: u64,
}

/// Serves until standard input ends.
///
/// # Errors
/// When it cannot listen, or cannot write its log.
pub fn run(args: &Args) -> Result<()> {
    let failed = |error: io::Error| {
        Error::new(Exit::Failure, format!("the service of a drill cannot run: {error}"))
    };
    let handler = handler::Handler::new(args.work, args.harm, args.seed, args.file.as_deref());
    let handler = Arc::new(handler.map_err(failed)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    forms::start(args.form, listener, &handler).map_err(failed)?;
    println!("listening {port}");
    wait_for_end(Duration::from_secs(args.lifetime)).map_err(failed)?;
    let mut log = csv::Writer::from_writer(create_private_file(&args.log)?);
    for entry in handler.entries() {
        log.serialize(entry).map_err(|error| failed(error.into()))?;
    }
    log.flush().map_err(failed)
}

/// Until standard input ends, or the time is over.
fn wait_for_end(longest: Duration) -> io::Result<()> {
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("drill-stdin".into()).spawn(move || {
        let mut byte = [0u8; 1];
        while matches!(io::stdin().read(&mut byte), Ok(1)) {}
        // The other end is gone only with the process.
        let _ = ended.send(());
    })?;
    let _ = end.recv_timeout(longest);
    io::stdout().flush()
}
