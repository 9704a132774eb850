//! The containment of an execution's processes besides the process tree: none, a cgroup, or a PID namespace.

use std::io::{self, ErrorKind};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{CapabilitySet, capabilities},
};
use serde::{Deserialize, Serialize};

use super::cgroup::CgroupDirectories;

/// The operator's choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Containment {
    /// A cgroup if one can be made, else none.
    #[default]
    Auto,
    /// None: only the process tree is followed.
    None,
    /// A cgroup of version 2; a start without one fails.
    Cgroup,
    /// A PID namespace; a start without CAP_SYS_ADMIN fails.
    PidNamespace,
}

impl Containment {
    /// All names.
    pub const NAMES: [&str; 4] = ["auto", "none", "cgroup", "pid-namespace"];

    /// The containment with this name.
    pub fn named(name: &str) -> Option<Containment> {
        match name {
            "auto" => Some(Containment::Auto),
            "none" => Some(Containment::None),
            "cgroup" => Some(Containment::Cgroup),
            "pid-namespace" => Some(Containment::PidNamespace),
            _ => None,
        }
    }

    /// Prepares the chosen containment on this machine.
    ///
    /// # Errors
    ///
    /// This machine cannot provide it. The error names the missing part.
    pub fn resolve(self) -> io::Result<Contained> {
        match self {
            Containment::None => Ok(Contained::Tree),
            Containment::Auto => Ok(CgroupDirectories::make_base(false).map_or(Contained::Tree, Contained::Cgroup)),
            Containment::Cgroup => CgroupDirectories::make_base(true).map(Contained::Cgroup).map_err(|error| {
                let advice = "delegate one to this service (systemd: Delegate=yes), or use --containment auto";
                let message = format!("--containment cgroup: cannot make a cgroup: {error}; {advice}");
                io::Error::new(error.kind(), message)
            }),
            Containment::PidNamespace => {
                if capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN) {
                    Ok(Contained::PidNamespace)
                } else {
                    Err(io::Error::new(
                        ErrorKind::PermissionDenied,
                        "a PID namespace needs CAP_SYS_ADMIN: choose another --containment",
                    ))
                }
            }
        }
    }
}

/// The containment in use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contained {
    /// None: only the process tree is followed.
    Tree,
    /// Cgroups below these directories, which belong to one backend or subreaper.
    Cgroup(CgroupDirectories),
    /// PID namespaces.
    PidNamespace,
}

impl Contained {
    /// The name for the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Contained::Tree => "none",
            Contained::Cgroup(_) => "cgroup",
            Contained::PidNamespace => "pid-namespace",
        }
    }
}

/// Gives the first process of a new PID namespace a /proc of its own, so that `ps` and the shim see that namespace.
pub fn mount_proc() -> io::Result<()> {
    // So that the mounts below are not propagated to other namespaces.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None)?;
    Ok(())
}
