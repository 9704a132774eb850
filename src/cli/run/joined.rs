//! The hint that several words became one text for a shell.

use crate::{cli::color::ErrorStyle, console};

/// The characters that a shell does not take literally.
const SHELL_CHARACTERS: &str = " \t\n*?[]{}()<>|&;$`\\\"'#~!";

/// On a terminal, says how the words were joined if the shell may read them otherwise than they were written.
pub(super) fn hint(words: &[String], style: ErrorStyle) {
    if style.is_terminal && may_change(words) {
        console::report_line(&style.dimmed(&hint_for(words)));
    }
}

fn hint_for(words: &[String]) -> String {
    format!("the shell gets one line: {}; --exec runs the words as they are", console::visible(&words.join(" ")))
}

/// Whether several words were given, and one is empty or has a character that a shell reads in its own way.
fn may_change(words: &[String]) -> bool {
    words.len() > 1 && words.iter().any(|word| word.is_empty() || word.contains(|c| SHELL_CHARACTERS.contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_a_shell_reads_otherwise_are_hinted_at() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (given, expected) in [
            (vec!["echo a b"], false),
            (vec!["ls", "-la", "--color=auto"], false),
            (vec!["echo", "a b"], true),
            (vec!["echo", ""], true),
            (vec!["echo", "$HOME"], true),
            (vec!["make", "&&", "ls"], true),
        ] {
            assert_eq!(may_change(&words(&given)), expected, "{given:?}");
        }
        let hint = hint_for(&words(&["echo", "a b"]));
        assert_eq!(hint, "the shell gets one line: echo a b; --exec runs the words as they are");
    }
}
