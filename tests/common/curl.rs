//! The real curl, which reads responses as users do.

use std::process::Command;

use super::{left_out, service::output_of};

/// A response that curl has read.
pub struct CurlAnswer {
    pub status: u16,
    /// The head in lower case.
    head: String,
    pub body: Vec<u8>,
    /// The exit code of curl: 18 if the body was cut.
    pub exit: i32,
}

impl CurlAnswer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Whether curl is here. Reports what cannot be tested otherwise.
pub fn has_curl(what: &str) -> bool {
    let works = Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success());
    if !works {
        left_out(what, "curl is not installed");
    }
    works
}

/// The answer to a request with these options of curl. With `-I` there is no body.
pub fn curl(arguments: &[&str], url: &str) -> CurlAnswer {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--include", "--http1.1", "--noproxy", "*", "--max-time", "120"])
        .args(arguments)
        .arg(url);
    let output = output_of(&mut command);
    let end = output.stdout.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&output.stdout[..end + 2]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    CurlAnswer { status, head, body: output.stdout[end + 4..].to_vec(), exit: output.status.code().unwrap_or(-1) }
}
