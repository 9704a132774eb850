//! Processes of other users of this machine.

use std::{os::unix::process::CommandExt, process::Command};

use super::{
    containment::{NOBODY, reachable_binary},
    left_out,
};

/// A user that neither runs a service nor is root.
pub const STRANGER: u32 = 4_242;

/// Whether tests can start processes of other users. If not, `what` is reported as left out.
pub fn can_switch_user(what: &str) -> bool {
    let can =
        rustix::process::geteuid().is_root() && reachable_binary().uid(STRANGER).arg("--version").output().is_ok();
    if !can {
        left_out(what, "becoming another user needs root, and a binary that others may execute");
    }
    can
}

/// Makes this the command of another user.
pub fn of_user(command: &mut Command, uid: u32) -> &mut Command {
    command.uid(uid).gid(NOBODY).current_dir("/").env("HOME", "/")
}

/// A script of bash as another user. bash opens `/dev/tcp/HOST/PORT` itself.
pub fn bash_of_user(uid: u32, script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    of_user(&mut command, uid);
    command
}
