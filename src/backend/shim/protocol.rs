//! The messages between backend and shim: one JSON object a line.

use std::{collections::BTreeMap, fmt::Display};

use cc_executor_actors::{
    outcome::{Evidence, Usage},
    signal::Signal,
};
use serde::{Deserialize, Serialize};

/// A message with its number. The response or the acknowledgement repeats the number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// Increases by one with each message of a sender.
    pub number: u64,
    /// The message.
    pub message: T,
}

/// An order of the backend to a shim. Each control request that acts on the processes has its own order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Start the command. Always the first order.
    Run(Box<JobSpec>),
    /// Send a signal to the command's process group.
    Signal {
        /// The signal.
        signal: Signal,
    },
    /// Stop the whole tree.
    Pause,
    /// Continue the whole tree.
    Resume,
    /// Report whether all processes of the tree are stopped.
    Inspect,
    /// End the tree: TERM now, KILL after the grace.
    End {
        /// Milliseconds between the two.
        grace_ms: u64,
    },
    /// End the processes that the command has left behind, at once. The command itself has exited.
    Sweep,
}

/// The command to start.
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
    /// The source of its standard input.
    #[serde(default)]
    pub stdin: Stdin,
}

/// The source of a command's standard input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// The command reads end-of-file.
    #[default]
    Null,
    /// A pipe.
    Pipe,
    /// The terminal that is also its output. The command gets a session of its own, with that terminal as the
    /// controlling terminal.
    Terminal,
}

/// A report of the shim to its backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShimEvent {
    /// The shim has read the order with this number and is carrying it out.
    Accepted {
        /// The order's number.
        number: u64,
    },
    /// The command is being executed.
    Started {
        /// Its process id, which is also its process group's id.
        pid: i32,
    },
    /// The command could not be executed, and no code of it ran.
    NotStarted(StartError),
    /// The command's own process has ended. Other processes of the tree may be left.
    Exited(LeaderExit),
    /// The tree is stopped.
    Paused,
    /// The tree could not be stopped, so it was continued.
    NotPaused,
    /// The tree was continued.
    Resumed,
    /// The answer to an inspection.
    Inspected {
        /// Whether all processes of the tree are stopped. Others can stop them, too.
        stopped: bool,
    },
    /// The subreaper is gone. The shim is ending the tree, because nothing could end it after the shim.
    Unguarded,
    /// The tree is gone. The last event.
    Gone(TreeGone),
}

/// Why a command was not executed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StartError {
    /// 127 if the program is missing, 126 for any other cause, as in shells.
    pub exit_code: i32,
    /// The cause, for people.
    pub message: String,
}

impl StartError {
    /// The exit code for a program that does not exist.
    pub const NOT_FOUND: i32 = 127;

    /// An error with the exit code 126.
    pub fn new(message: String) -> StartError {
        StartError { exit_code: 126, message }
    }

    /// The service has no process, descriptor or memory left for another command.
    pub fn no_process(cause: impl Display) -> StartError {
        StartError::new(format!(
            "the backend cannot start another process: {cause}; try again when an execution has ended"
        ))
    }
}

/// How the command's own process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaderExit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// What is known about the end of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TreeGone {
    /// How it is known that no process is left.
    pub evidence: Evidence,
    /// Processes that could not be ended; `None` where they could not be counted.
    pub survivors: Option<u32>,
    /// Processes that KILL was sent to.
    pub killed: u32,
    /// What the processes used. `None` unless the shim itself has seen the last of them go.
    pub usage: Option<Usage>,
    /// The processes that the kernel killed because memory ran out.
    pub oom_kills: OomKills,
}

/// What is known of processes that the kernel killed because memory ran out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomKills {
    /// None was counted, or nothing counts them.
    #[default]
    NotCounted,
    /// The execution's own cgroup has counted this many. They were processes of the execution.
    Own(u64),
    /// The cgroup of the service, which all executions share, has counted some while the execution ran. They may have
    /// been processes of any execution.
    Shared,
}

impl TreeGone {
    /// It is not known whether processes are left.
    pub const UNKNOWN: TreeGone = TreeGone {
        evidence: Evidence::Unknown,
        survivors: None,
        killed: 0,
        usage: None,
        oom_kills: OomKills::NotCounted,
    };

    /// All processes are gone, as this evidence shows.
    pub fn proven(evidence: Evidence) -> TreeGone {
        TreeGone { evidence, survivors: Some(0), ..TreeGone::UNKNOWN }
    }
}
