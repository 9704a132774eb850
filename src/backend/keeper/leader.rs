//! How a keeper starts the command: with pipes, or on a terminal of its own.
//!
//! A session and its controlling terminal can only be made between fork and exec. So for a terminal
//! this binary is started once more; it makes both and becomes the command. It reports a failure on its
//! standard error, which is a pipe until then and is closed by a successful exec.

use std::{
    ffi::OsString,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use rustix::process::Pid;

use super::talk::{Fact, Run, Stdin};
use crate::backend::THIS_BINARY;

/// The first argument that makes the binary the leader of a terminal's session.
pub const ARGUMENT: &str = "keeper-leader";

/// Starts the command, in a process group of its own. `pipe` is what it reads, if it reads one. The
/// error is the fact that it did not start.
pub(super) fn start(run: &Run, pipe: Option<OwnedFd>) -> Result<Pid, Fact> {
    if let Some(cwd) = &run.cwd
        && let Err(error) = Path::new(cwd)
            .metadata()
            .and_then(|found| if found.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) })
    {
        return Err(not_started(126, format!("cannot use the working directory {cwd:?}: {error}")));
    }
    let [program, arguments @ ..] = run.argv.as_slice() else {
        return Err(not_started(126, "the executor names no program".to_owned()));
    };
    match run.stdin {
        Stdin::Null => with_pipes(run, program, arguments, Stdio::null()),
        Stdin::Pipe => match pipe {
            Some(pipe) => with_pipes(run, program, arguments, Stdio::from(pipe)),
            None => Err(not_started(126, "the pipe of its standard input did not arrive".to_owned())),
        },
        Stdin::Terminal => on_terminal(run)
            .unwrap_or_else(|error| Err(not_started(126, format!("cannot start {program:?} on a terminal: {error}")))),
    }
}

fn with_pipes(run: &Run, program: &str, arguments: &[String], stdin: Stdio) -> Result<Pid, Fact> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(stdin).process_group(0);
    match prepared(&mut command, run).spawn() {
        Ok(child) => Ok(Pid::from_child(&child)),
        Err(error) => Err(could_not_start(program, &error)),
    }
}

fn prepared<'a>(command: &'a mut Command, run: &Run) -> &'a mut Command {
    command.env_clear().envs(&run.env);
    if let Some(cwd) = &run.cwd {
        command.current_dir(cwd);
    }
    command
}

/// Starts the binary as the leader of the terminal's session, and waits until it has become the
/// command, or says why not.
fn on_terminal(run: &Run) -> io::Result<Result<Pid, Fact>> {
    let terminal = io::stdout().as_fd().try_clone_to_owned()?;
    let (mut report, theirs) = UnixStream::pair()?;
    let mut command = Command::new(THIS_BINARY);
    command
        .arg(ARGUMENT)
        .args(&run.argv)
        .stdin(Stdio::from(terminal.try_clone()?))
        .stdout(Stdio::from(terminal))
        .stderr(Stdio::from(OwnedFd::from(theirs)));
    let child = prepared(&mut command, run).spawn()?;
    // It holds our copy of the other end: without this the report would never end.
    drop(command);
    let mut said = Vec::new();
    report.read_to_end(&mut said)?;
    match serde_json::from_slice(&said) {
        Ok(fact) => {
            let mut child = child;
            child.wait()?;
            Ok(Err(fact))
        }
        Err(_) => Ok(Ok(Pid::from_child(&child))),
    }
}

/// Becomes the command that the arguments name, on the terminal that is the standard input.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let fact = match become_leader(arguments) {
        Ok(never) => match never {},
        Err(fact) => fact,
    };
    let (fact, mut report) = fact;
    // Nobody else would hear of a failure here.
    let _ = report.write_all(&serde_json::to_vec(&fact).unwrap_or_default());
    ExitCode::FAILURE
}

fn become_leader(
    mut arguments: impl Iterator<Item = OsString>,
) -> Result<std::convert::Infallible, (Fact, Box<dyn Write>)> {
    let failed = |error: io::Error| -> (Fact, Box<dyn Write>) {
        (not_started(126, format!("cannot make a terminal of its own: {error}")), Box::new(io::stderr()))
    };
    let stdin = io::stdin();
    rustix::process::setsid().map_err(|error| failed(error.into()))?;
    rustix::process::ioctl_tiocsctty(&stdin).map_err(|error| failed(error.into()))?;
    // A duplicate is closed by exec, which says that it worked.
    let report = io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
    rustix::stdio::dup2_stderr(&stdin).map_err(|error| failed(error.into()))?;
    let program = arguments.next().unwrap_or_default();
    let error = Command::new(&program).args(arguments).exec();
    let fact = could_not_start(&program.to_string_lossy(), &error);
    Err((fact, Box::new(std::fs::File::from(report))))
}

fn could_not_start(program: &str, error: &io::Error) -> Fact {
    if error.kind() == ErrorKind::NotFound {
        return not_started(127, format!("there is no program {program:?} here: install it, or name another executor"));
    }
    not_started(126, format!("cannot start {program:?}: {error}"))
}

fn not_started(exit_code: i32, message: String) -> Fact {
    Fact::NotStarted { exit_code, message }
}
