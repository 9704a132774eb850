//! The flags of `run` and `attach` about the user's terminal.

use std::time::Duration;

use clap::Args;

use super::{
    color::ColorChoice,
    escape::{DetachKeys, EscapeChar},
    session_loop::SessionKeys,
};
use crate::config::value::{checked, one_of};

/// The keys of a terminal session, and colors.
#[derive(Args, Clone, Debug)]
pub struct TerminalFlags {
    /// With -it: keys that leave the command running, such as ctrl-p,ctrl-q, or none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = checked(DetachKeys::read))]
    pub(super) detach_keys: DetachKeys,

    /// With -it: character that begins an escape, such as ~ (~? lists them), or none
    #[arg(long, value_name = "CHAR", default_value = "~", value_parser = checked(EscapeChar::read))]
    pub(super) escape_char: EscapeChar,

    /// Color of messages on standard error
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    #[arg(value_parser = one_of(&["auto", "always", "never"], ColorChoice::named))]
    pub(super) color: ColorChoice,
}

impl TerminalFlags {
    /// For how long a terminal session survives a broken connection, without --reconnect. It is short, because an
    /// execution whose client has died must not run for long.
    pub(super) const RECONNECT: Duration = Duration::from_secs(30);

    /// The keys of a terminal session.
    pub(super) fn keys(&self) -> SessionKeys {
        SessionKeys { detach: self.detach_keys.clone(), escape: self.escape_char }
    }
}
