//! `cc-executor`: the binary of all roles and commands.
#![forbid(unsafe_code)]

mod roles;

use std::{env, ffi::OsStr, process::ExitCode};

use cc_executor::{
    backend::subreaper,
    cli::{
        self,
        args::{self, Invocation},
    },
    console,
};

fn main() -> ExitCode {
    // Before anything else: a subreaper is small and has no runtime.
    if env::args_os().nth(1).as_deref() == Some(OsStr::new(subreaper::ARGUMENT)) {
        return subreaper::main(env::args_os().nth(2).as_deref().and_then(OsStr::to_str));
    }
    match args::complete() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(problem) => {
            console::report_line(&problem);
            return ExitCode::from(console::EX_USAGE);
        }
    }
    match args::parse(env::args_os()) {
        Ok(invocation) => dispatch(invocation),
        Err(problems) => {
            console::report_line(&problems);
            ExitCode::from(console::EX_USAGE)
        }
    }
}

fn dispatch(invocation: Invocation) -> ExitCode {
    match invocation {
        Invocation::Serve(settings) => {
            roles::run(settings.log_format, &args::unknown_variables(), roles::serve(*settings))
        }
        Invocation::Backend(settings) => {
            roles::run(settings.log_format, &args::unknown_variables(), roles::backend(*settings))
        }
        Invocation::Client(command) => {
            for warning in args::unknown_variables() {
                console::report(format_args!("warning: {warning}"));
            }
            run_system(cli::execute(*command))
        }
        Invocation::Print(text) => match console::print(&text) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                console::report(error);
                ExitCode::from(console::EX_IOERR)
            }
        },
    }
}

fn run_system(future: impl Future<Output = ExitCode>) -> ExitCode {
    let system = actix::System::new();
    let code = system.block_on(future);
    // Not dropped, because the drop waits for a write to standard output that its reader may never read.
    std::mem::forget(system);
    code
}
