//! Where the last bytes or lines of the output begin.

use super::response::{OutputFile, PartBytes, PartOfOutput};
use crate::cli::ClientError;

/// How much is looked at in one request for the beginning of the last lines: little first, because most lines are short,
/// then twice as much each time. So much is kept in memory.
const FIRST_LOOK: u64 = 64 * 1024;
const LONGEST_LOOK: u64 = 2 << 20;

/// The beginning of the last bytes or lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TailStart {
    /// The offset of the first byte that is there.
    pub from: u64,
    /// How many bytes before it may belong to them, and are not there any more.
    pub lost: u64,
}

/// Where the last bytes begin.
pub(super) async fn last_bytes(file: &OutputFile, n: u64) -> Result<TailStart, ClientError> {
    Ok(match file.read_last(n).await? {
        PartOfOutput::Bytes { first, body, written, .. } => {
            let wanted = written.unwrap_or(first + body.left()).saturating_sub(n);
            TailStart { from: first, lost: first.saturating_sub(wanted) }
        }
        PartOfOutput::Nothing { end, .. } if n == 0 => TailStart { from: end, lost: 0 },
        PartOfOutput::Nothing { first_there, end, .. } => {
            let wanted = end.saturating_sub(n);
            TailStart { from: first_there.max(wanted), lost: first_there.saturating_sub(wanted) }
        }
    })
}

/// Where the last lines begin. A newline at the very end ends the last line and begins none.
pub(super) async fn last_lines(file: &OutputFile, n: u64) -> Result<TailStart, ClientError> {
    if n == 0 {
        return last_bytes(file, 0).await;
    }
    let (mut missing, mut look, mut end) = (n, FIRST_LOOK, None);
    let mut part = file.read_last(look).await?;
    loop {
        let (first, bytes) = match (part, end) {
            (PartOfOutput::Bytes { first, body, .. }, _) => (first, collect(body).await?),
            (PartOfOutput::Nothing { first_there, .. }, Some(end)) if first_there < end => {
                part = file.read_part(first_there, end).await?;
                continue;
            }
            // The end is gone, which the printer says.
            (PartOfOutput::Nothing { first_there, end: written, .. }, None) if first_there < written => {
                return Ok(TailStart { from: first_there.max(written.saturating_sub(look)), lost: 0 });
            }
            // Everything before is gone.
            (PartOfOutput::Nothing { first_there, .. }, _) => {
                return Ok(TailStart { from: first_there, lost: first_there });
            }
        };
        let looked_at = match end {
            None => &bytes[..bytes.len() - 1],
            Some(_) => &bytes[..],
        };
        let mut newlines = looked_at.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        if let Some((at, _)) = usize::try_from(missing - 1).ok().and_then(|skipped| newlines.nth(skipped)) {
            return Ok(TailStart { from: first + at as u64 + 1, lost: 0 });
        }
        if first == 0 {
            return Ok(TailStart { from: 0, lost: 0 });
        }
        missing -= looked_at.iter().filter(|byte| **byte == b'\n').count() as u64;
        (end, look) = (Some(first), (2 * look).min(LONGEST_LOOK));
        part = file.read_part(first.saturating_sub(look), first).await?;
    }
}

async fn collect(mut body: PartBytes) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    while let Some(more) = body.next().await? {
        bytes.extend_from_slice(&more);
    }
    Ok(bytes)
}
