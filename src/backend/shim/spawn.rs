//! How a shim starts the command: a fork that becomes it, with pipes or on a terminal of its own.
//!
//! Between fork and exec the child may hang for as long as a dead file system does. So the shim does not
//! wait for it: the child reports a failure on a pipe, which a successful exec closes.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{self, Command},
};

use rustix::{
    process::{DumpableBehavior, Pid, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    cgroup::Cgroup,
    oom_score,
    protocol::{JobSpec, ShimEvent, Stdin},
};
use crate::syscall::{SingleThread, keep_only, reset_all_signals};

/// The exit code of a child that did not become the command. Nobody sees it: the report comes first.
const NOT_EXECUTED: i32 = 126;

/// The ends that the command gets.
#[derive(Debug)]
pub struct CommandEnds {
    /// Standard output; a terminal, if it runs on one.
    pub stdout: OwnedFd,
    /// Standard error; the same terminal.
    pub stderr: OwnedFd,
    /// Standard input, where it is a pipe.
    pub stdin: Option<OwnedFd>,
}

/// The child that is to become the command, and the pipe on which it reports a failure.
pub(super) struct StartingChild {
    pub(super) leader: Pid,
    report: File,
}

/// What the report came to.
pub(super) enum ExecReport {
    /// The child has become the command.
    Executed,
    /// It could not.
    Failed(ShimEvent),
}

impl StartingChild {
    /// Where the report arrives: readable once it is there.
    pub(super) fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Reads the report, once it is readable. A child that was ended before its exec has become no command
    /// either: its own end tells that.
    pub(super) fn read(mut self) -> ExecReport {
        let mut text = Vec::new();
        // The child writes it in one piece, or closes the pipe.
        let _ = self.report.read_to_end(&mut text);
        match serde_json::from_slice(&text) {
            Ok(fact) => ExecReport::Failed(fact),
            Err(_) => ExecReport::Executed,
        }
    }
}

/// Forks the child. It holds nothing of the shim but its report: a shim that is killed closes its socket, however
/// long an exec takes. The ends are given up here.
pub(super) fn start(
    single: &SingleThread,
    spec: &JobSpec,
    ends: CommandEnds,
    cgroup: Option<&Cgroup>,
) -> io::Result<StartingChild> {
    let (report, their_report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let forked = match cgroup {
        // Where the call is not there or filtered, the child enters it by itself.
        Some(cgroup) => single.fork_into(cgroup.place()).or_else(|_| single.fork())?,
        None => single.fork()?,
    };
    if let Some(leader) = forked {
        return Ok(StartingChild { leader, report: File::from(report) });
    }
    let (fact, their_report) = become_command(spec, &ends, cgroup, their_report);
    // The shim is the only one that could be told of a failure to tell.
    let _ = File::from(their_report).write_all(&serde_json::to_vec(&fact).unwrap_or_default());
    process::exit(NOT_EXECUTED)
}

/// Makes this process the command. Returns only if that failed, with the fact to report and where.
fn become_command(
    spec: &JobSpec,
    ends: &CommandEnds,
    cgroup: Option<&Cgroup>,
    report: OwnedFd,
) -> (ShimEvent, OwnedFd) {
    let failed = |error: io::Error, report| (not_started(format!("cannot prepare its process: {error}")), report);
    if let Err(error) = prepare(spec, ends, cgroup) {
        return failed(error, report);
    }
    let report = match keep_only(report) {
        Ok(report) => report,
        Err((error, report)) => return failed(error, report),
    };
    reset_all_signals();
    if let Some(cwd) = &spec.cwd
        && let Err(error) = std::env::set_current_dir(cwd)
    {
        return (not_started(format!("cannot use the working directory {cwd:?}: {error}")), report);
    }
    let [program, arguments @ ..] = spec.argv.as_slice() else {
        return (not_started("the executor names no program".to_owned()), report);
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&spec.env);
    (could_not_execute(program, &command.exec()), report)
}

fn prepare(spec: &JobSpec, ends: &CommandEnds, cgroup: Option<&Cgroup>) -> io::Result<()> {
    // From here on it is as open to its user as the command will be; only then may it write its own score.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    oom_score::raise();
    if let Some(cgroup) = cgroup {
        cgroup.enter()?;
    }
    if spec.stdin == Stdin::Terminal {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(&ends.stdout)?;
    } else {
        rustix::process::setpgid(None, None)?;
    }
    match spec.stdin {
        Stdin::Terminal => dup2_stdin(&ends.stdout)?,
        Stdin::Pipe => match &ends.stdin {
            Some(pipe) => dup2_stdin(pipe)?,
            None => return Err(io::Error::other("the pipe of its standard input did not arrive")),
        },
        Stdin::Null => dup2_stdin(&File::open("/dev/null")?)?,
    }
    dup2_stdout(&ends.stdout)?;
    dup2_stderr(&ends.stderr)?;
    if let Some(soft) = spec.descriptor_limit {
        // The service raised its own; a program that closes all it might have would take long.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..limit })?;
    }
    Ok(())
}

fn could_not_execute(program: &str, error: &io::Error) -> ShimEvent {
    if error.kind() == ErrorKind::NotFound {
        let message = format!("there is no program {program:?} here: install it, or name another executor");
        return ShimEvent::NotStarted { exit_code: 127, message };
    }
    not_started(format!("cannot start {program:?}: {error}"))
}

fn not_started(message: String) -> ShimEvent {
    ShimEvent::NotStarted { exit_code: 126, message }
}
