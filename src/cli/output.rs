//! `output`: prints what an execution has written, read over HTTP. A client that is attached stays attached.
//!
//! Each request is for `bytes=N-`, where N is the end of the last response. One loop therefore handles a response that
//! breaks off, a beginning that is given up meanwhile, and output that grows.

mod response;
mod tail;

use std::time::Duration;

use cc_executor_actors::{name::ExecutionRef, stream::Stream};
use clap::Args;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncWriteExt, time::sleep};

use self::response::{OutputFile, PartOfOutput};
use super::{
    ClientError,
    completions::executions,
    execution_arg::{execution_ref, resolve},
    exit,
    flags::ServiceFlags,
    unwritable,
};
use crate::console::{self, OutputReader};

/// The first interval between two questions for more output, which doubles up to the last one while none comes.
const FIRST_POLL: Duration = Duration::from_millis(100);
const LAST_POLL: Duration = Duration::from_secs(1);

/// How often a response may break off in a row without a byte.
const MAX_BROKEN: usize = 3;

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  everything that there is was printed, or the reader of the output is gone
  64  wrong use: flags, token variables, an ID with several matches
  69  service or backend cannot be reached or does not answer; or the execution
      is not known
  70  the beginning of the output is not there any more (standard error names
      the bytes), or the output was damaged on the way; or invalid message of
      the service
  74  output cannot be written
  75  service full or shutting down
  77  not authorized";

/// Options of `output`.
#[derive(Args, Clone, Debug)]
pub struct PrintOutputOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Print standard error instead of standard output
    #[arg(long)]
    stderr: bool,

    /// Print only the last BYTES bytes
    #[arg(long, value_name = "BYTES", conflicts_with = "lines")]
    tail: Option<u64>,

    /// Print only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u64>,

    /// Continue with what is written from now on, until the execution ends
    #[arg(short, long)]
    follow: bool,

    /// Execution whose output is printed: its id, the beginning of its id, or its name
    #[arg(value_name = "ID", value_parser = execution_ref(), add = executions())]
    id: ExecutionRef,
}

/// Prints the output of an execution.
pub(super) async fn output(options: PrintOutputOptions) -> Result<u8, ClientError> {
    let stream = if options.stderr { Stream::Stderr } else { Stream::Stdout };
    let service = options.service.access()?;
    let id = resolve(&service, &options.id).await?;
    let file = OutputFile::new(&service, id, stream);
    let mut printer =
        OutputPrinter { at: 0, lost: 0, sha256: Sha256::new(), is_whole: true, stdout: console::streams().0 };
    let begin = match (options.tail, options.lines) {
        (None, None) => None,
        (Some(bytes), _) => Some(tail::last_bytes(&file, bytes).await?),
        (None, Some(lines)) => Some(tail::last_lines(&file, lines).await?),
    };
    if let Some(tail::TailStart { from, lost }) = begin {
        (printer.at, printer.is_whole) = (from, from == 0);
        printer.report_lost(from - lost, from);
    }
    if print_from(&file, &mut printer, options.follow).await? == OutputReader::Gone {
        return Ok(0);
    }
    Ok(if printer.lost > 0 { exit::SOFTWARE } else { 0 })
}

/// Prints from the printer's offset on: to the end of what is there, or of the execution.
async fn print_from(file: &OutputFile, printer: &mut OutputPrinter, follow: bool) -> Result<OutputReader, ClientError> {
    let (mut poll, mut n_broken) = (FIRST_POLL, 0);
    loop {
        let before = printer.at;
        match file.read_from(printer.at).await? {
            PartOfOutput::Bytes { first, mut body, written, state } => {
                if first != printer.at {
                    return Err(ClientError::new(
                        exit::SOFTWARE,
                        format!("the service sent bytes from {first} on, and not from {}", printer.at),
                    ));
                }
                let broken = loop {
                    match body.next().await {
                        Ok(Some(bytes)) => {
                            if printer.print(&bytes).await? == OutputReader::Gone {
                                return Ok(OutputReader::Gone);
                            }
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                };
                match broken {
                    Some(error) => {
                        n_broken = if printer.at > before { 1 } else { n_broken + 1 };
                        if n_broken > MAX_BROKEN {
                            return Err(error);
                        }
                    }
                    None if state.has_ended || !follow => {
                        // The disk did not take the rest, or the file was cut.
                        let end = written.filter(|_| state.has_ended).unwrap_or(printer.at);
                        printer.report_lost(printer.at, end);
                        printer.check(state.sha256.as_deref())?;
                        return Ok(OutputReader::Present);
                    }
                    None => n_broken = 0,
                }
            }
            PartOfOutput::Nothing { first_there, .. } if first_there > printer.at => {
                printer.report_lost(printer.at, first_there);
                printer.at = first_there;
                continue;
            }
            PartOfOutput::Nothing { end, state, .. } if state.has_ended || !follow => {
                printer.report_lost(printer.at, if state.has_ended { end } else { printer.at });
                printer.check(state.sha256.as_deref())?;
                return Ok(OutputReader::Present);
            }
            PartOfOutput::Nothing { .. } => {}
        }
        poll = if printer.at > before { FIRST_POLL } else { (2 * poll).min(LAST_POLL) };
        sleep(poll).await;
    }
}

/// Prints the bytes of a stream, and digests them.
struct OutputPrinter {
    /// The offset of the next byte.
    at: u64,
    /// How many bytes are lost.
    lost: u64,
    sha256: Sha256,
    /// Whether everything from the first byte on was printed.
    is_whole: bool,
    stdout: tokio::io::Stdout,
}

impl OutputPrinter {
    async fn print(&mut self, bytes: &[u8]) -> Result<OutputReader, ClientError> {
        self.sha256.update(bytes);
        self.at += bytes.len() as u64;
        let written = match self.stdout.write_all(bytes).await {
            Ok(()) => self.stdout.flush().await,
            failed => failed,
        };
        console::outcome(written).map_err(unwritable)
    }

    fn report_lost(&mut self, from: u64, to: u64) {
        if to > from {
            (self.lost, self.is_whole) = (self.lost + (to - from), false);
            console::report(format_args!("bytes {from} to {to} of this output are not there any more"));
        }
    }

    /// Compares what was printed with the digest of the backend.
    fn check(&self, sha256: Option<&str>) -> Result<(), ClientError> {
        let printed = format!("{:x}", self.sha256.clone().finalize());
        match sha256.filter(|sha256| self.is_whole && *sha256 != printed) {
            None => Ok(()),
            Some(sha256) => Err(ClientError::new(
                exit::SOFTWARE,
                format!("the SHA-256 of the printed output is {printed}, that of the command's output is {sha256}"),
            )),
        }
    }
}
