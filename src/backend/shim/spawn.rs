//! Starts the command: a fork that executes it, with pipes or on a terminal of its own.
//!
//! Between fork and exec the child may hang for as long as a dead file system does. So the shim does not
//! wait for it: the child reports a failure on a pipe, which a successful exec closes.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{self, Command},
};

use cc_executor_actors::excerpt::Quoted;
use rustix::{
    process::{DumpableBehavior, Pid, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    cgroup::{Cgroup, memory::MemoryAccount},
    protocol::{JobSpec, StartError, Stdin},
};
use crate::syscall::{SingleThread, keep_only, reset_all_signals};

/// The value of `oom_score_adj` for commands, in thousandths of all memory (proc(5)).
const OOM_SCORE: i32 = 500;

/// The exit code of a child that failed to execute the command. The exec report arrives before it and replaces it.
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

/// The cgroups that the command gets.
pub(super) type CommandPlace<'a> = (Option<&'a Cgroup>, &'a MemoryAccount);

/// The child that is going to execute the command, and the pipe on which it reports a failure.
pub(super) struct StartingChild {
    pub(super) leader: Pid,
    report: File,
}

impl StartingChild {
    /// The reading end of the report's pipe.
    pub(super) fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Reads the report. Call it when the pipe is readable. A child that was killed before its exec closes the pipe,
    /// too; its exit status tells it apart.
    pub(super) fn read(mut self) -> Result<(), StartError> {
        let mut text = Vec::new();
        // The child writes it in one piece, or closes the pipe.
        let _ = self.report.read_to_end(&mut text);
        serde_json::from_slice(&text).map_or(Ok(()), Err)
    }
}

/// Forks the child and closes the command's ends here. The child keeps no descriptor of the shim but the report's
/// pipe, so that the shim's socket closes when the shim is killed, even while an exec hangs.
pub(super) fn start(
    single: &SingleThread,
    spec: &JobSpec,
    ends: CommandEnds,
    place: CommandPlace<'_>,
) -> io::Result<StartingChild> {
    let (report, their_report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let forked = match place.0 {
        // If clone3 is missing or filtered, the child moves itself into the cgroup.
        Some(cgroup) => single.fork_into(cgroup.place()).or_else(|_| single.fork())?,
        None => single.fork()?,
    };
    if let Some(leader) = forked {
        return Ok(StartingChild { leader, report: File::from(report) });
    }
    let (error, their_report) = become_command(spec, &ends, place, their_report);
    // Ignored, because there is no other way to report.
    let _ = File::from(their_report).write_all(&serde_json::to_vec(&error).unwrap_or_default());
    process::exit(NOT_EXECUTED)
}

/// Executes the command in this process. Returns only if that failed, with the error to report and the pipe for it.
fn become_command(
    spec: &JobSpec,
    ends: &CommandEnds,
    place: CommandPlace<'_>,
    report: OwnedFd,
) -> (StartError, OwnedFd) {
    let failed =
        |error: io::Error, report| (StartError::new(format!("cannot set up the command's process: {error}")), report);
    if let Err(error) = prepare(spec, ends, place) {
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
        return (StartError::new(format!("cannot use the working directory {}: {error}", Quoted(cwd))), report);
    }
    let [program, arguments @ ..] = spec.argv.as_slice() else {
        return (StartError::new("the executor names no program".to_owned()), report);
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&spec.env);
    (could_not_execute(program, &command.exec()), report)
}

fn prepare(spec: &JobSpec, ends: &CommandEnds, (cgroup, memory): CommandPlace<'_>) -> io::Result<()> {
    // Dumpable again, as the command will be, because only a dumpable process may write its own oom_score_adj.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    raise_oom_score();
    if let Some(cgroup) = cgroup {
        cgroup.enter()?;
    }
    memory.enter();
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
        // The service has raised its own limit, and a program that closes all descriptors up to the limit would take
        // long.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..limit })?;
    }
    Ok(())
}

/// Makes the kernel end the command, and not the service, when memory runs out: raises the score of this process, which
/// an exec keeps and children inherit. If that is not allowed, the command keeps the default score.
fn raise_oom_score() {
    const PATH: &str = "/proc/self/oom_score_adj";
    let own = fs::read_to_string(PATH).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if own.is_some_and(|own| own < OOM_SCORE) {
        let _ = fs::write(PATH, OOM_SCORE.to_string());
    }
}

fn could_not_execute(program: &str, error: &io::Error) -> StartError {
    if error.kind() == ErrorKind::NotFound {
        let message = format!(
            "program {program:?} is missing on the backend's machine: install it there, or use another executor"
        );
        return StartError { exit_code: StartError::NOT_FOUND, message };
    }
    StartError::new(format!("cannot start {program:?}: {error}"))
}
