//! The client gets exactly the bytes that the command writes, compared by SHA-256, in both framings.

use cc_executor_actors::outcome::Status;
use serde_json::json;

use crate::common::{scale, service::Service, sha256, temp::TempPath};

/// A file with known content.
struct Data {
    path: TempPath,
    sha256: String,
    len: usize,
}

impl Data {
    fn new(name: &str, content: &[u8]) -> Data {
        Data { path: TempPath::with_content(name, content), sha256: sha256(content), len: content.len() }
    }

    fn cat(&self) -> String {
        format!("cat {}", self.path.display())
    }

    /// Checks that the content arrives at the test client in both framings, and through `run`.
    fn assert_arrives(&self, service: &Service) {
        for framing in ["chunk", "line"] {
            let mut client = service.connect();
            let recording = client.run(json!({ "command": self.cat(), "framing": framing }));
            assert_eq!(recording.status(), Status::Completed, "{}", recording.end);
            assert_eq!(recording.stdout.len(), self.len);
            assert_eq!(sha256(&recording.stdout), self.sha256, "{framing}");
            assert_eq!(recording.end["sha256"]["stdout"], self.sha256);
            assert_eq!(recording.end["bytes"]["stdout"], self.len);
        }
        let output = service.run(&["--", &self.cat()]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(sha256(&output.stdout), self.sha256, "run");
    }
}

/// Pseudo-random bytes (xorshift64*).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out
}

#[test]
fn many_hexadecimal_lines_arrive_unchanged() {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let n_bytes = scale(10_000_000, 100_000_000);
    let mut lines = Vec::with_capacity(n_bytes / 30 * 61 + 61);
    for line in noise(n_bytes).chunks(30) {
        for byte in line {
            lines.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        lines.push(b'\n');
    }
    Data::new("hex", &lines).assert_arrives(&Service::start());
}

#[test]
fn ten_megabytes_without_a_newline_arrive_unchanged() {
    let text: Vec<u8> = noise(10_000_000).iter().map(|byte| b'a' + byte % 26).collect();
    Data::new("flat", &text).assert_arrives(&Service::start());
}

#[test]
fn ten_megabytes_of_emoji_arrive_unchanged() {
    let emoji = ["😀", "👩\u{200d}🚀", "🇪🇺", "é", "€"];
    let text: String = noise(1_500_000).iter().map(|byte| emoji[usize::from(byte % 5)]).collect();
    Data::new("emoji", &text.as_bytes()[..text.floor_char_boundary(10_000_000)]).assert_arrives(&Service::start());
}

#[test]
fn binary_output_arrives_unchanged() {
    Data::new("noise", &noise(10_000_000)).assert_arrives(&Service::start());
    let nearly_text: Vec<u8> =
        noise(1_000_000).chunks(20).flat_map(|few| [b"line \xc3\xa9 ", few, b"\n"].concat()).collect();
    Data::new("mixed", &nearly_text).assert_arrives(&Service::start());
}

#[test]
fn concurrent_stdout_and_stderr_are_complete_and_separate() {
    let service = Service::start();
    let script = "import os,sys\nfor i in range(20000):\n os.write(1 + i % 2, b'%06d-%s\\n' % (i, b'x' * (i % 90)))";
    let mut client = service.connect();
    for framing in ["chunk", "line"] {
        let recording = client.run(json!({ "command": script, "executor": "python", "framing": framing }));
        for (parity, stream) in [(0, &recording.stdout), (1, &recording.stderr)] {
            let numbers: Vec<u32> = stream
                .split(|b| *b == b'\n')
                .filter(|l| !l.is_empty())
                .map(|line| std::str::from_utf8(&line[..6]).unwrap().parse().unwrap())
                .collect();
            let expected: Vec<u32> = (0..20_000).filter(|n| n % 2 == parity).collect();
            assert_eq!(numbers, expected, "in order");
        }
        assert_eq!(recording.end["sha256"]["stderr"], sha256(&recording.stderr));
    }
}

#[test]
fn line_framing_sends_whole_lines_and_flushes_a_prompt() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "echo one; echo two; printf 'prompt> '; exec sleep 1000", "framing": "line" }));
    let contents: Vec<_> = (0..3).map(|_| client.notification("output")["content"].clone()).collect();
    assert_eq!(contents, ["one\n", "two\n", "prompt> "]);
    client.disconnect();
}
