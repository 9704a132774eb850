//! What backend and keeper say to each other: one JSON object a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the backend asks of a keeper.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Start this; the first order.
    Run(Run),
    /// Send a signal to the command's process group.
    Signal {
        /// Its number.
        number: i32,
    },
    /// Let the whole tree stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// End the tree: TERM now, KILL after the grace.
    End {
        /// Milliseconds between the two.
        grace_ms: u64,
    },
    /// The command itself has ended: end what it left behind, at once.
    Sweep,
}

/// What to start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The working directory; the backend's own if absent.
    pub cwd: Option<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The soft limit of open descriptors; the service's own if absent.
    pub descriptor_limit: Option<u64>,
    /// Where its standard input comes from.
    #[serde(default)]
    pub stdin: Stdin,
}

/// Where a command's standard input comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// It reads end-of-file.
    #[default]
    Null,
    /// From the pipe whose descriptor was sent along.
    Pipe,
    /// Like its output, from the terminal that is the keeper's standard output. The command gets a
    /// session of its own, with that terminal as the controlling one.
    Terminal,
}

/// What a keeper tells its backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The command runs.
    Started {
        /// Its process id, and its process group's.
        pid: i32,
    },
    /// The command could not be started. The last word.
    NotStarted {
        /// 127 if the program is missing, 126 for any other cause.
        exit_code: i32,
        /// What failed.
        message: String,
    },
    /// The command's own process ended. Others may be left.
    Exited(LeaderExit),
    /// The tree stands still.
    Paused,
    /// It goes on.
    Resumed,
    /// The tree is gone. The last word.
    Gone(Gone),
}

/// How the command's own process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaderExit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What is known about the end of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gone {
    /// Whether ECHILD was seen.
    pub verified: bool,
    /// Processes that could not be ended.
    pub survivors: u32,
    /// Processes that KILL was sent to.
    pub killed: u32,
    /// Whether KILL followed TERM.
    pub escalated: bool,
}
