//! What backend and shim say to each other: one JSON object a line.

use std::collections::BTreeMap;

use cc_executor_actors::{outcome::Evidence, protocol::control::ControlRequest};
use serde::{Deserialize, Serialize};

/// An order with its number, which the shim's acknowledgement repeats.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NumberedOrder {
    /// Numbers grow by one.
    pub number: u64,
    /// What is to be done.
    pub order: Order,
}

/// What the backend orders a shim to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Start this; the first order.
    Run(Box<JobSpec>),
    /// Do this to the command's processes: PAUSE, RESUME and SIGNAL. The backend itself has the terminal and standard
    /// input, and turns a cancellation into an end.
    Control(ControlRequest),
    /// Tell whether all processes of the tree are stopped.
    Inspect,
    /// End the tree: TERM now, KILL after the grace.
    End {
        /// Milliseconds between the two.
        grace_ms: u64,
    },
    /// The command itself has exited: end what it left behind, at once.
    Sweep,
}

/// What to start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobSpec {
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
    /// From a pipe.
    Pipe,
    /// Like its output, from a terminal. The command gets a session of its own, with that terminal as the
    /// controlling one.
    Terminal,
}

/// What a shim tells its backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShimEvent {
    /// The order of this number was read, and is being carried out.
    Accepted {
        /// The order's number.
        number: u64,
    },
    /// The command was executed.
    Started {
        /// Its process id, and its process group's.
        pid: i32,
    },
    /// The command could not be executed, and nothing of it ran.
    NotStarted {
        /// 127 if the program is missing, 126 for any other cause.
        exit_code: i32,
        /// What failed.
        message: String,
    },
    /// The command's own process ended. Others may be left.
    Exited(LeaderExit),
    /// The tree is stopped.
    Paused,
    /// The tree could not be stopped, and runs.
    NotPaused,
    /// The tree was continued.
    Resumed,
    /// Whether all processes of the tree are stopped, by whomever.
    Inspected {
        /// They all are.
        stopped: bool,
    },
    /// The subreaper was ended by somebody else: the tree is being ended, since nobody could end it after this shim.
    Unguarded,
    /// The tree is gone. The last fact.
    Gone(TreeGone),
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

/// What is known about the end of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TreeGone {
    /// How it is known that nothing is left.
    pub evidence: Evidence,
    /// Processes that could not be ended; `None` where they could not be counted.
    pub survivors: Option<u32>,
    /// Processes that KILL was sent to.
    pub killed: u32,
}

impl TreeGone {
    /// Nothing is known of what is left.
    pub const UNKNOWN: TreeGone = TreeGone { evidence: Evidence::Unknown, survivors: None, killed: 0 };

    /// All processes are gone, and this shows it.
    pub fn proven(evidence: Evidence) -> TreeGone {
        TreeGone { evidence, survivors: Some(0), killed: 0 }
    }
}
