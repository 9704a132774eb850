//! Tests of the writer, on outputs that fail or stand still.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use serde_json::Value;

use super::*;

fn line(message: &str) -> LogLine<'_> {
    LogLine { level: Level::Info, target: "cc_executor", fields: serde_json::Map::new(), message: message.into() }
}

fn text_of(message: &str) -> String {
    line(message).format(Format::Json, "2026-01-02T03:04:05Z".parse().unwrap())
}

/// An output whose writes end as scripted: how many bytes it takes, or an error. After the script it takes all.
struct ScriptedOutput {
    script: Vec<Result<usize, io::ErrorKind>>,
    written: Vec<u8>,
}

impl ScriptedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = if self.script.is_empty() { Ok(bytes.len()) } else { self.script.remove(0) };
        let n = n.map_err(io::Error::from)?.min(bytes.len());
        self.written.extend_from_slice(&bytes[..n]);
        Ok(n)
    }
}

/// Writes batches of these messages to such an output, and returns the lines that it has then.
fn lines_written(script: &[Result<usize, io::ErrorKind>], batches: &[(&[&str], u64)]) -> Vec<String> {
    let mut target = ScriptedOutput { script: script.to_vec(), written: Vec::new() };
    let write = |bytes: &[u8]| target.write(bytes);
    let mut output = LogOutput { write, format: Format::Json, is_within_line: false, missing: None };
    for (messages, n_dropped) in batches {
        let mut batch = LineBatch::default();
        for message in *messages {
            batch.push(&text_of(message), 1);
        }
        output.write_batch(&mut batch, *n_dropped);
    }
    String::from_utf8(target.written).unwrap().lines().map(str::to_owned).collect()
}

/// The messages of lines; for a line that counts others their number, and for a part of a line `...`.
fn summary(lines: &[String]) -> Vec<String> {
    let one = |line: &String| match serde_json::from_str::<Value>(line) {
        Ok(line) if line["event"] == "log.dropped" => format!("{} dropped", line["lines"]),
        Ok(line) => line["message"].as_str().unwrap().to_owned(),
        Err(_) => "...".to_owned(),
    };
    lines.iter().map(one).collect()
}

#[test]
fn what_could_not_be_written_is_named_before_the_next_line() {
    const FULL: Result<usize, io::ErrorKind> = Err(io::ErrorKind::StorageFull);
    const GONE: Result<usize, io::ErrorKind> = Err(io::ErrorKind::BrokenPipe);
    const ALL: Result<usize, io::ErrorKind> = Ok(usize::MAX);
    let (two, one): (&[&str], &[&str]) = (&["a", "b"], &["c"]);
    for (script, batches, expected) in [
        (vec![], vec![(two, 0), (one, 0)], vec!["a", "b", "c"]),
        (vec![], vec![(two, 5), (one, 0)], vec!["a", "b", "5 dropped", "c"]),
        (vec![FULL], vec![(two, 0), (one, 0)], vec!["2 dropped", "c"]),
        (vec![GONE, GONE, GONE], vec![(two, 7), (one, 0), (one, 0), (one, 0)], vec!["11 dropped", "c"]),
        // The disk becomes full within a line: the next line begins on a line of its own.
        (vec![Ok(20), FULL], vec![(two, 0), (one, 0)], vec!["...", "2 dropped", "c"]),
        (vec![Ok(20), FULL, FULL], vec![(two, 0), (one, 0), (one, 0)], vec!["...", "3 dropped", "c"]),
        // Between two lines.
        (vec![Ok(text_of("a").len()), FULL], vec![(two, 0), (one, 0)], vec!["a", "...", "2 dropped", "c"]),
        // The count itself could not be written.
        (vec![FULL, Ok(10), FULL], vec![(two, 0), (one, 0), (one, 0)], vec!["...", "3 dropped", "c"]),
        (vec![Ok(3), Ok(4), ALL], vec![(two, 0)], vec!["a", "b"]),
        (vec![Ok(0)], vec![(one, 0), (one, 0)], vec!["1 dropped", "c"]),
        // Nothing new was logged, and the count is tried again.
        (vec![FULL, FULL], vec![(two, 0), (&[], 0), (&[], 0), (&[], 0)], vec!["2 dropped"]),
    ] {
        assert_eq!(summary(&lines_written(&script, &batches)), expected, "{script:?}");
    }
}

/// A writer whose output is this sender. Its thread ends when the receiver is gone and something is written.
fn start(takes: mpsc::SyncSender<Vec<u8>>) -> Arc<LogWriter> {
    let writer = Arc::new(LogWriter::new(Format::Json));
    let for_thread = Arc::clone(&writer);
    thread::spawn(move || {
        for_thread.run(|bytes| {
            takes.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        })
    });
    writer
}

/// The number of records that the text accounts for.
fn n_records(text: &str) -> u64 {
    let of = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        match line["event"].as_str() {
            Some("log.dropped" | "log.omitted") => line["lines"].as_u64().unwrap(),
            _ => 1 + line["omitted"].as_u64().unwrap_or(0),
        }
    };
    text.lines().map(of).sum()
}

#[test]
fn a_reader_that_stands_still_holds_nobody_up_and_every_line_is_accounted_for() {
    const LINES: u64 = 40_000;
    // It blocks at the second piece.
    let (takes, taken) = mpsc::sync_channel(1);
    let writer = start(takes);
    let began_at = Instant::now();
    for n in 0..LINES {
        let mut line = line("request refused");
        if n % 2 == 0 {
            line.fields.extend([("event".to_owned(), "request.refused".into()), ("peer".to_owned(), "1.2.3.4".into())]);
        }
        writer.log(line);
    }
    writer.flush(Duration::from_millis(50));
    assert!(began_at.elapsed() < Duration::from_secs(20), "{:?}", began_at.elapsed());
    let (mut text, mut n) = (String::new(), 0);
    while n < LINES {
        let piece = String::from_utf8(taken.recv_timeout(Duration::from_secs(20)).unwrap()).unwrap();
        n += n_records(&piece);
        text.push_str(&piece);
    }
    assert_eq!(n, LINES);
    assert!(text.contains("log.dropped"), "{} bytes", text.len());
}

#[test]
fn flush_waits_for_the_last_line_and_the_counts_of_omitted_ones() {
    let (takes, taken) = mpsc::sync_channel(1000);
    let writer = start(takes);
    for _ in 0..15 {
        let mut line = line("request refused");
        line.fields.insert("event".to_owned(), "request.refused".into());
        writer.log(line);
    }
    writer.flush(Duration::from_secs(20));
    let text: Vec<u8> = taken.try_iter().flatten().collect();
    let text = String::from_utf8(text).unwrap();
    assert_eq!((n_records(&text), text.lines().count()), (15, 11), "{text}");
}
