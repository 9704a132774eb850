//! What log lines and error texts show of a request. They never show its query or the parameters of its path, because
//! clients put tokens there, and not more of the rest than a person needs to recognize it.

use actix_web::{dev::ServiceRequest, http::StatusCode};
use cc_executor_actors::excerpt::cut;
use log::warn;

/// The longest path that is shown, in bytes.
const MAX_PATH: usize = 200;

/// The longest method. HTTP's own are shorter.
const MAX_METHOD: usize = 20;

/// The longest explanation of a refusal. It may hold a header of the request.
const MAX_MESSAGE: usize = 400;

/// The part of a path that is shown: without the parameters of its segments (`;…`, RFC 3986 section 3.3) and without a
/// query or a fragment, also if their first character is percent-encoded.
pub fn shown_path(path: &str) -> String {
    let path = before(path, &["?", "#", "%3F", "%23"]);
    let mut shown = String::new();
    for (n, segment) in path.split('/').enumerate() {
        if n > 0 {
            shown.push('/');
        }
        shown.push_str(before(segment, &[";", "%3B"]));
        if shown.len() > MAX_PATH {
            break;
        }
    }
    cut(&shown, MAX_PATH).into_owned()
}

/// The text before the first of these marks, in upper or lower case.
fn before<'a>(text: &'a str, marks: &[&str]) -> &'a str {
    let begins = |at: usize, mark: &str| {
        text.as_bytes()[at..].get(..mark.len()).is_some_and(|found| found.eq_ignore_ascii_case(mark.as_bytes()))
    };
    let found = (0..text.len()).find(|at| marks.iter().any(|mark| begins(*at, mark)));
    // All marks are ASCII, so this is the end of a character.
    &text[..found.unwrap_or(text.len())]
}

/// The method, cut if it is none of HTTP's own.
pub fn shown_method(method: &str) -> String {
    cut(method, MAX_METHOD).into_owned()
}

/// Logs that a request is refused. The logger limits how often it writes this event for each peer.
pub fn log_refused(request: &ServiceRequest, status: StatusCode, message: &str) {
    let peer = request.peer_addr().map(|peer| peer.to_string());
    warn!(event = "request.refused", status = status.as_u16(), method = shown_method(request.method().as_str()),
        path = shown_path(request.path()), peer:serde = peer; "request refused: {}", cut(message, MAX_MESSAGE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_query_nor_parameters_of_a_path_are_shown() {
        for (path, shown) in [
            ("/ws/mcp", "/ws/mcp"),
            ("/", "/"),
            ("", ""),
            ("*", "*"),
            ("/ws/mcp;token=secret", "/ws/mcp"),
            ("/a;token=secret/b;c;d=1/", "/a/b/"),
            (";secret", ""),
            ("/ws/mcp?token=secret", "/ws/mcp"),
            ("/ws/mcp%3Ftoken=secret", "/ws/mcp"),
            ("/ws%3btoken=secret/mcp%3ftoken=secret", "/ws/mcp"),
            ("/grüße%3b%2/%", "/grüße/%"),
            ("/a%23b", "/a"),
            ("/ws/mcp#token=secret/b", "/ws/mcp"),
            ("/executions//x", "/executions//x"),
        ] {
            assert_eq!(shown_path(path), shown, "{path}");
        }
    }

    #[test]
    fn long_paths_and_methods_are_cut_at_a_character() {
        let exact = format!("/{}", "a".repeat(MAX_PATH - 1));
        assert_eq!(shown_path(&exact), exact);
        assert_eq!(shown_path(&format!("{exact}b")), format!("{exact}…"));
        // The 200th byte is the first of a character of two.
        assert_eq!(shown_path(&format!("/{}", "ü".repeat(30_000))), format!("/{}…", "ü".repeat(99)));
        assert!(shown_path(&format!("/a;{}/b", "x".repeat(60_000))).ends_with("/a/b"));
        assert_eq!(
            (shown_method("GET"), shown_method(&"A".repeat(50))),
            ("GET".to_owned(), format!("{}…", "A".repeat(20)))
        );
    }
}
