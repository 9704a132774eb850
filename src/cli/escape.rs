//! The keys of a terminal session that are for the client and not for the command: the detach keys, as docker has them,
//! and escapes at the beginning of a line, as ssh has them. No I/O and no clock.

use std::fmt;

/// Ctrl-Z.
const CTRL_Z: u8 = 0x1a;

/// The sequence of keys that leaves the command running. Empty switches it off.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// Reads keys as docker writes them: characters and `ctrl-X`, separated by commas, or `none`.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() || text == "none" {
            return Ok(DetachKeys::default());
        }
        let keys: Option<Vec<u8>> = text.split(',').map(read_key).collect();
        keys.map(DetachKeys).ok_or_else(|| {
            format!("must be keys such as ctrl-p,ctrl-q (each a character or ctrl- with one of a-z@[\\]^_), or none, not {text:?}")
        })
    }
}

impl fmt::Display for DetachKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, key) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match key {
                0..0x20 => write!(f, "{comma}ctrl-{}", char::from(key | 0x40).to_ascii_lowercase())?,
                _ => write!(f, "{comma}{}", char::from(*key))?,
            }
        }
        Ok(())
    }
}

fn read_key(text: &str) -> Option<u8> {
    match *text.as_bytes() {
        [key @ 0x20..=0x7e] => Some(key),
        [b'c', b't', b'r', b'l', b'-', key] => control_key(key),
        _ => None,
    }
}

/// The byte that a terminal sends for a key together with Ctrl.
fn control_key(key: u8) -> Option<u8> {
    matches!(key, b'a'..=b'z' | b'@' | b'['..=b'_').then_some(key & 0x1f)
}

/// The character that begins an escape. `None` switches escapes off.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct EscapeChar(Option<u8>);

impl EscapeChar {
    /// Reads a character, `^X` for one with Ctrl, or `none`, as ssh does.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        match *text.as_bytes() {
            [key @ 0x21..=0x7e] => Ok(EscapeChar(Some(key))),
            [b'^', key] if control_key(key.to_ascii_lowercase()).is_some() => {
                Ok(EscapeChar(control_key(key.to_ascii_lowercase())))
            }
            _ if text == "none" => Ok(EscapeChar(None)),
            _ => Err(format!("must be a character such as ~, ^X, or none, not {text:?}")),
        }
    }
}

impl fmt::Display for EscapeChar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(key @ 0..0x20) => write!(f, "^{}", char::from(key | 0x40)),
            Some(key) => write!(f, "{}", char::from(key)),
        }
    }
}

/// A request of the user to the client, made with keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KeyRequest {
    /// Leave the command running.
    Detach,
    /// Drop the connection, also one that is frozen.
    Drop,
    /// Suspend the client.
    Suspend,
    /// List the escapes.
    Help,
}

/// A piece of what the user typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Typed {
    /// Input of the command.
    Input(Vec<u8>),
    /// A request to the client.
    Request(KeyRequest),
}

/// Finds requests in what the user types. Everything else is input of the command and passes unchanged.
#[derive(Debug)]
pub(super) struct KeyFilter {
    detach: DetachKeys,
    escape: EscapeChar,
    /// The beginning of the detach keys that was typed. It is input if another key follows.
    held: Vec<u8>,
    line: LinePosition,
}

/// Where the next key is in its line, as far as escapes depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LinePosition {
    Start,
    /// The escape character was typed at the start.
    AfterEscape,
    Inside,
}

impl KeyFilter {
    pub(super) fn new(detach: DetachKeys, escape: EscapeChar) -> Self {
        KeyFilter { detach, escape, held: Vec::new(), line: LinePosition::Start }
    }

    /// Takes typed bytes. They may be cut anywhere.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        for byte in bytes {
            self.held.push(*byte);
            if !self.held.is_empty() && self.held == self.detach.0 {
                self.held.clear();
                typed.push(Typed::Request(KeyRequest::Detach));
            }
            while !self.detach.0.starts_with(&self.held) {
                let first = self.held.remove(0);
                self.pass(first, &mut typed);
            }
        }
        typed
    }

    /// Takes the end of the input. What was held back is input.
    pub(super) fn finish(&mut self) -> Vec<Typed> {
        let mut typed = Vec::new();
        for byte in std::mem::take(&mut self.held) {
            self.pass(byte, &mut typed);
        }
        if let (LinePosition::AfterEscape, Some(escape)) = (self.line, self.escape.0) {
            self.line = LinePosition::Inside;
            push_input(escape, &mut typed);
        }
        typed
    }

    /// Takes a byte that is not of the detach keys.
    fn pass(&mut self, byte: u8, typed: &mut Vec<Typed>) {
        let is_escape = Some(byte) == self.escape.0;
        let request = match (self.line, self.escape.0) {
            (LinePosition::Start, _) if is_escape => {
                self.line = LinePosition::AfterEscape;
                return;
            }
            (LinePosition::AfterEscape, Some(escape)) => match byte {
                b'.' => Some(KeyRequest::Drop),
                CTRL_Z => Some(KeyRequest::Suspend),
                b'?' => Some(KeyRequest::Help),
                _ if is_escape => None,
                _ => {
                    push_input(escape, typed);
                    None
                }
            },
            _ => None,
        };
        if let Some(request) = request {
            self.line = LinePosition::Start;
            typed.push(Typed::Request(request));
            return;
        }
        push_input(byte, typed);
        self.line = if matches!(byte, b'\r' | b'\n') { LinePosition::Start } else { LinePosition::Inside };
    }
}

fn push_input(byte: u8, typed: &mut Vec<Typed>) {
    match typed.last_mut() {
        Some(Typed::Input(bytes)) => bytes.push(byte),
        _ => typed.push(Typed::Input(vec![byte])),
    }
}

/// The list of escapes and detach keys, as the escape for help shows it.
pub(super) fn key_help(detach: &DetachKeys, escape: EscapeChar) -> Vec<String> {
    let mut lines = vec![
        "keys at the beginning of a line:".to_owned(),
        format!("  {escape}.   drop the connection"),
        format!("  {escape}^Z  suspend the client"),
        format!("  {escape}?   list these keys"),
        format!("  {escape}{escape}   send {escape}"),
    ];
    if *detach != DetachKeys::default() {
        lines.push(format!("anywhere: {detach} to leave the command running"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(detach: &str, escape: &str) -> KeyFilter {
        KeyFilter::new(DetachKeys::read(detach).unwrap(), EscapeChar::read(escape).unwrap())
    }

    /// What became of the pieces: input as it is, requests in angle brackets.
    fn shown(filter: &mut KeyFilter, pieces: &[&[u8]]) -> String {
        let mut typed: Vec<_> = pieces.iter().flat_map(|piece| filter.take(piece)).collect();
        typed.extend(filter.finish());
        let show = |typed: Typed| match typed {
            Typed::Input(bytes) => String::from_utf8(bytes).unwrap(),
            Typed::Request(request) => format!("<{request:?}>"),
        };
        typed.into_iter().map(show).collect()
    }

    #[test]
    fn keys_are_read_as_docker_and_ssh_write_them() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", vec![0x10, 0x11]),
            ("a", vec![b'a']),
            ("ctrl-@,ctrl-[,ctrl-_,x", vec![0, 27, 31, b'x']),
            ("none", vec![]),
            ("", vec![]),
        ] {
            let read = DetachKeys::read(text).unwrap();
            assert_eq!(read, DetachKeys(keys));
            assert_eq!(DetachKeys::read(&read.to_string()).unwrap(), read);
        }
        for wrong in ["ctrl-", "ctrl-P", "ctrl-1", "ab", ",", "a,", "\u{e9}", "\n", "ctrl-pp"] {
            assert!(DetachKeys::read(wrong).is_err(), "{wrong:?}");
        }
        for (text, escape) in
            [("~", Some(b'~')), ("^X", Some(0x18)), ("^x", Some(0x18)), ("^", Some(b'^')), ("none", None)]
        {
            let read = EscapeChar::read(text).unwrap();
            assert_eq!(read, EscapeChar(escape));
            assert_eq!(EscapeChar::read(&read.to_string()).unwrap(), read);
        }
        for wrong in ["", " ", "ab", "^1", "\u{e9}", "\n"] {
            assert!(EscapeChar::read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_escape_counts_at_the_beginning_of_a_line_only() {
        for (typed, expected) in [
            ("~.", "<Drop>"),
            ("ls\r~.", "ls\r<Drop>"),
            ("ls\n~.", "ls\n<Drop>"),
            ("ls ~.", "ls ~."),
            ("~~.", "~."),
            ("~~~.", "~~."),
            ("~a~.", "~a~."),
            ("~\r~.", "~\r<Drop>"),
            ("~?~?x", "<Help><Help>x"),
            ("~\u{1a}~.", "<Suspend><Drop>"),
            ("\u{1a}", "\u{1a}"),
            ("\r~", "\r~"),
        ] {
            assert_eq!(shown(&mut filter("none", "~"), &[typed.as_bytes()]), expected, "{typed:?}");
            let bytes: Vec<_> = typed.as_bytes().chunks(1).collect();
            assert_eq!(shown(&mut filter("none", "~"), &bytes), expected, "{typed:?} one by one");
        }
        assert_eq!(shown(&mut filter("none", "none"), &[b"~.\r~."]), "~.\r~.");
        assert_eq!(shown(&mut filter("none", "^X"), &[b"~.\r\x18."]), "~.\r<Drop>");
    }

    #[test]
    fn an_incomplete_detach_sequence_is_input() {
        for (keys, typed, expected) in [
            ("a,b", "ab", "<Detach>"),
            ("a,b", "aab", "a<Detach>"),
            ("a,a,b", "aaab", "a<Detach>"),
            ("a,b,a,c", "ababac", "ab<Detach>"),
            ("a,b", "acab", "ac<Detach>"),
            ("a,b", "xa", "xa"),
            ("a", "xaax", "x<Detach><Detach>x"),
            ("~,x", "~.~x", "<Drop><Detach>"),
            ("none", "ab", "ab"),
        ] {
            assert_eq!(shown(&mut filter(keys, "~"), &[typed.as_bytes()]), expected, "{keys} {typed}");
            let bytes: Vec<_> = typed.as_bytes().chunks(1).collect();
            assert_eq!(shown(&mut filter(keys, "~"), &bytes), expected, "{keys} {typed} one by one");
        }
    }

    #[test]
    fn help_names_the_keys() {
        let help = key_help(&DetachKeys::read("ctrl-p,ctrl-q").unwrap(), EscapeChar::read("^x").unwrap()).join("\n");
        assert!(help.contains("^X.") && help.contains("ctrl-p,ctrl-q"), "{help}");
        assert_eq!(key_help(&DetachKeys::default(), EscapeChar::read("~").unwrap()).len(), 5);
    }

    proptest! {
        /// However the input is cut, the same bytes pass and the same requests are found.
        #[test]
        fn cuts_change_nothing(text in "[ab~.?\\r\u{10}\u{11}\u{1a}]{0,40}", cuts in prop::collection::vec(1usize..5, 1..40)) {
            let whole = shown(&mut filter("ctrl-p,ctrl-q", "~"), &[text.as_bytes()]);
            let (mut rest, mut pieces) = (text.as_bytes(), Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(shown(&mut filter("ctrl-p,ctrl-q", "~"), &pieces), whole);
        }

        /// Where no sequence of the client can begin, every byte passes.
        #[test]
        fn other_bytes_pass_unchanged(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut filter = filter("ctrl-p,ctrl-q", "none");
            let bytes: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0x11).collect();
            let mut typed = filter.take(&bytes);
            typed.extend(filter.finish());
            let passed: Vec<u8> = typed.into_iter().flat_map(|typed| match typed {
                Typed::Input(bytes) => bytes,
                Typed::Request(_) => Vec::new(),
            }).collect();
            prop_assert_eq!(passed, bytes);
        }
    }
}
