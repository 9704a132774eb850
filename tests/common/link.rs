//! A link between two network namespaces, in which a test can shape or cut what passes.

use std::{
    ffi::OsStr,
    process::{Command, Output},
};

use super::{left_out, network_namespace_option};

/// Makes the link. What follows runs at its near end, `$near`; `$there COMMAND` runs at its far end, `$far`. The script
/// and all that it has started end together.
const SCRIPT: &str = r#"
set -eu
unshare -n sleep 120 >/dev/null 2>&1 & holder=$!  # a process that survives this script must not hold its output open
trap 'kill $(jobs -p) 2>/dev/null' EXIT
until [ "$(readlink /proc/$holder/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do :; done
there="nsenter -t $holder -n"
ip link set lo up
ip link add near type veth peer name far netns $holder
ip addr add $near/24 dev near
ip link set near up
$there ip link set lo up
$there ip addr add $far/24 dev far
$there ip link set far up
"#;

/// The address of the near end.
pub const NEAR: &str = "10.77.0.1";

/// The address of the far end.
pub const FAR: &str = "10.77.0.2";

/// Runs a script of bash with these arguments on a link, and returns its output. `None` where no link can be made; then
/// `what` is reported as left out.
pub fn run_on_link(what: &str, script: &str, arguments: &[&OsStr]) -> Option<Output> {
    let unshare = network_namespace_option().inspect_err(|missing| left_out(what, missing)).ok()?;
    let script = format!("near={NEAR} far={FAR}\n{SCRIPT}{script}");
    let mut command = Command::new("timeout");
    command.args(["90", "unshare", unshare, "bash", "-c", &script, "link"]).args(arguments);
    Some(command.output().expect("timeout starts"))
}
