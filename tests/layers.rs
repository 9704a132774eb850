//! The layers of the workspace, read from its `use` lines and paths: no cycle, no wrong direction, no type name twice.
//!
//! Start with the tables. A new module must be added to [`LAYERS`]. A new direction needs a reason that a reviewer accepts.

mod graph;
mod source;

use std::collections::BTreeMap;

use self::{
    graph::ModuleGraph,
    source::{tokens, type_names},
};
use crate::common::sources::{SourceFile, read_sources};

/// Modules at the bottom, which every other module may use.
const BASE: &[&str] = &[
    "actors::activity",
    "actors::client",
    "actors::clock",
    "actors::close",
    "actors::excerpt",
    "actors::id",
    "actors::name",
    "actors::outcome",
    "actors::peer",
    "actors::share",
    "actors::signal",
    "actors::stream",
];

/// The modules that each module may use beside [`BASE`]. `actors` and `src` are the two crates. A test fails on a pair that
/// nothing uses.
const LAYERS: &[(&str, &[&str])] = &[
    ("actors::activity", &[]),
    ("actors::client", &[]),
    ("actors::clock", &[]),
    ("actors::close", &[]),
    ("actors::excerpt", &[]),
    ("actors::id", &[]),
    ("actors::name", &[]),
    ("actors::outcome", &[]),
    ("actors::peer", &[]),
    ("actors::share", &[]),
    ("actors::signal", &[]),
    ("actors::stream", &[]),
    ("actors::rpc", &[]),
    ("actors::protocol", &["actors::rpc"]),
    ("actors::output", &["actors::protocol"]),
    ("actors::agent", &["actors::output", "actors::protocol"]),
    ("actors::ws", &["actors::output"]),
    ("actors::backend_api", &["actors::protocol", "actors::rpc"]),
    ("actors::dial", &[]),
    ("actors::backend_client", &["actors::backend_api", "actors::dial", "actors::protocol", "actors::rpc"]),
    (
        "actors::execution",
        &[
            "actors::backend_client",
            "actors::backend_api",
            "actors::output",
            "actors::agent",
            "actors::protocol",
            "actors::rpc",
        ],
    ),
    ("actors::supervisor", &["actors::execution", "actors::protocol", "actors::rpc"]),
    (
        "actors::session",
        &[
            "actors::supervisor",
            "actors::execution",
            "actors::backend_client",
            "actors::backend_api",
            "actors::agent",
            "actors::ws",
            "actors::protocol",
            "actors::rpc",
        ],
    ),
    ("src::syscall", &[]),
    ("src::console", &[]),
    ("src::logging", &["src::console"]),
    ("src::server", &["src::syscall", "actors::backend_api", "actors::rpc"]),
    (
        "src::backend",
        &[
            "src::server",
            "src::syscall",
            "actors::agent",
            "actors::output",
            "actors::backend_api",
            "actors::protocol",
            "actors::rpc",
        ],
    ),
    (
        "src::gateway",
        &[
            "src::server",
            "src::syscall",
            "actors::session",
            "actors::supervisor",
            "actors::backend_client",
            "actors::dial",
            "actors::protocol",
            "actors::rpc",
        ],
    ),
    ("src::outgoing", &["actors::dial"]),
    (
        "src::config",
        &[
            "src::backend",
            "src::gateway",
            "src::outgoing",
            "src::server",
            "src::logging",
            "actors::supervisor",
            "actors::agent",
            "actors::dial",
            "actors::protocol",
        ],
    ),
    (
        "src::cli",
        &[
            "src::config",
            "src::console",
            "src::outgoing",
            "src::syscall",
            "actors::agent",
            "actors::backend_api",
            "actors::dial",
            "actors::protocol",
            "actors::rpc",
        ],
    ),
    (
        "src::roles",
        &["src::config", "src::gateway", "src::backend", "src::server", "src::logging", "src::console", "actors::dial"],
    ),
    // `roles` is a submodule of `main`, which is the root of the binary.
    ("src::main", &["src::cli", "src::backend", "src::console"]),
];

/// Parents whose items their own submodules use, each with its reason. Everywhere else a parent uses its children only.
const USED_BY_CHILDREN: &[(&str, &str)] = &[
    ("actors::agent", "each agent implements the traits that the parent declares"),
    ("actors::execution", "control holds a part of the handlers of the actor Execution"),
    ("actors::output", "the splitter and its messages implement the traits that the parent declares"),
    ("actors::protocol", "the limits and defaults bound the parameters of the methods"),
    ("actors::rpc", "a parameter that cannot be read is answered with an ErrorObject"),
    (
        "actors::session::phase",
        "an open session takes the events and returns the messages and effects that the parent declares",
    ),
    ("src::backend::agent", "each launcher implements the trait that the parent declares"),
    ("src::backend::job::running", "its three submodules hold parts of the handlers of RunningJob"),
    ("src::cli", "all commands share ClientError, the exit codes and the options"),
    ("src::cli::session_loop::state", "its submodules hold parts of the transitions of LoopState"),
    ("src::cli::logs", "the options and counts are those of all ways to read a log"),
    ("src::config", "validate makes the settings of both roles, and reports the problems that the parent declares"),
];

#[test]
fn modules_have_no_cycles() {
    let cycles = ModuleGraph::read(&read_sources(&["src", "actors/src"])).cycles();
    assert!(cycles.is_empty(), "{}", cycles.join("\n"));
}

#[test]
fn modules_use_only_allowed_layers() {
    let graph = ModuleGraph::read(&read_sources(&["src", "actors/src"]));
    let wrong = [graph.wrong_directions(BASE, LAYERS), graph.unused_directions(LAYERS)].concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn submodules_do_not_use_their_parents() {
    let graph = ModuleGraph::read(&read_sources(&["src", "actors/src"]));
    let wrong = [graph.upward_uses(USED_BY_CHILDREN), graph.unused_parents(USED_BY_CHILDREN)].concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn type_names_are_unique() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, text) in read_sources(&["src", "actors/src", "benches", "tests"]) {
        for found in type_names(&tokens(&text)) {
            places.entry(found.to_owned()).or_default().push(name.clone());
        }
    }
    for (name, files) in places {
        assert!(files.len() == 1, "{name} is defined in {}", files.join(" and in "));
    }
}

#[test]
fn graph_finds_cycles_wrong_directions_and_upward_uses() {
    let source = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let read = |files: &[SourceFile]| ModuleGraph::read(files);
    let cycle = read(&[
        source("actors/src/rpc.rs", "use crate::{id::{self, Id as Other}, protocol::Method};"),
        source("actors/src/protocol.rs", "fn f() -> crate::rpc::Response { todo!() }"),
        source("actors/src/id.rs", "//! See [`crate::rpc`].\n#[cfg(test)]\nmod tests { use crate::rpc; }"),
    ]);
    assert_eq!(
        cycle.cycles(),
        [
            "the workspace has a cycle: actors::protocol uses actors::rpc in actors/src/protocol.rs",
            "the workspace has a cycle: actors::rpc uses actors::protocol in actors/src/rpc.rs"
        ],
        "tests and comments do not count"
    );
    assert_eq!(
        cycle.wrong_directions(BASE, LAYERS),
        ["actors::rpc may not use actors::protocol, but does in actors/src/rpc.rs"]
    );

    let nested = read(&[
        source("src/backend.rs", "pub mod job; use self::job::Job;"),
        source("src/backend/job.rs", "mod life; use super::{BackendConfig, registry::Slot};"),
        source("src/backend/job/life.rs", "use super::super::registry::Slot; use crate::backend::job::Job;"),
        source("src/backend/job/outcome.rs", "pub(in crate::backend::job) const NOT_FOUND: i32 = 127;"),
        source("src/backend/registry.rs", "const TEXT: &str = r#\"\"#; use crate::backend::job::{life::Life};"),
    ]);
    assert_eq!(
        nested.cycles(),
        [
            "src::backend has a cycle: job uses registry in src/backend/job.rs",
            "src::backend has a cycle: registry uses job in src/backend/registry.rs"
        ]
    );
    assert_eq!(
        nested.upward_uses(USED_BY_CHILDREN),
        [
            "src/backend/job.rs uses an item of src::backend",
            "src/backend/job/life.rs uses an item of src::backend::job"
        ]
    );

    assert_eq!(
        cycle.unused_directions(&[("actors::rpc", &["actors::protocol", "actors::ws"])]),
        ["actors::rpc does not use actors::ws: remove it from LAYERS"]
    );
    assert_eq!(
        nested.unused_parents(&[("src::backend", ""), ("src::cli", "")]),
        ["no child uses src::cli: remove it from USED_BY_CHILDREN"]
    );

    let gateway = read(&[
        source("src/gateway.rs", ""),
        source("src/gateway/routes.rs", "use crate::backend::{routes::{Body, refuse}};"),
        source("src/backend.rs", ""),
        source("src/backend/routes.rs", ""),
    ]);
    assert_eq!(
        gateway.wrong_directions(BASE, LAYERS),
        ["src::gateway may not use src::backend, but does in src/gateway/routes.rs"]
    );
}

#[test]
fn type_names_are_found_in_source() {
    let text = "struct A<'a>(&'a str); impl Iterator for A<'_> { type Item = u8; } type B = u8; trait C { type D; } // enum E\n";
    assert_eq!(type_names(&tokens(text)), ["A", "B", "C"]);
}
