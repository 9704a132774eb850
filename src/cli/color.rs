//! Whether messages on standard error are dim, and whether a line there may be replaced.

use std::io::{IsTerminal, stderr};

/// The value of `--color`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` or `TERM=dumb` is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// What standard error can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ErrorStyle {
    /// Whether secondary text is dim.
    pub(super) dims: bool,
    /// Whether a line can be replaced by the next, which needs a terminal that obeys escape sequences.
    pub(super) replaces_lines: bool,
    /// Whether it is a terminal at all.
    pub(super) is_terminal: bool,
}

impl ColorChoice {
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(ColorChoice::Auto),
            "always" => Some(ColorChoice::Always),
            "never" => Some(ColorChoice::Never),
            _ => None,
        }
    }

    /// The style of this process's standard error.
    pub(super) fn style(self) -> ErrorStyle {
        let variable = |name| std::env::var(name).unwrap_or_default();
        self.style_of(stderr().is_terminal(), &variable("NO_COLOR"), &variable("TERM"))
    }

    fn style_of(self, is_terminal: bool, no_color: &str, term: &str) -> ErrorStyle {
        let replaces_lines = is_terminal && term != "dumb";
        let dims = match self {
            ColorChoice::Auto => replaces_lines && no_color.is_empty(),
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        };
        ErrorStyle { dims, replaces_lines, is_terminal }
    }
}

impl ErrorStyle {
    /// A text as it looks beside output.
    pub(super) fn dimmed(self, text: &str) -> String {
        if self.dims { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides_unless_a_flag_does() {
        for (choice, is_terminal, no_color, term, dims, replaces_lines) in [
            (ColorChoice::Auto, true, "", "xterm", true, true),
            (ColorChoice::Auto, true, "", "", true, true),
            (ColorChoice::Auto, true, "1", "xterm", false, true),
            (ColorChoice::Auto, true, "", "dumb", false, false),
            (ColorChoice::Auto, false, "", "xterm", false, false),
            (ColorChoice::Always, true, "1", "dumb", true, false),
            (ColorChoice::Always, false, "", "xterm", true, false),
            (ColorChoice::Never, true, "", "xterm", false, true),
        ] {
            let style = choice.style_of(is_terminal, no_color, term);
            assert_eq!(
                style,
                ErrorStyle { dims, replaces_lines, is_terminal },
                "{choice:?} {is_terminal} {no_color:?} {term:?}"
            );
        }
    }
}
