//! The layers of the workspace, read from its `use` lines and paths: no cycle, no wrong direction, no type name twice.
//!
//! Start with the tables. A new module must be added to [`LAYERS`]; a new direction is an argument to have there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Modules that stand below all others of their crate, and may be used by each of them.
const BASE: &[&str] = &[
    "actors::activity",
    "actors::clock",
    "actors::close",
    "actors::id",
    "actors::outcome",
    "actors::signal",
    "actors::stream",
];

/// What each module may use beside [`BASE`]. Modules of a crate are named by their crate: `actors` or `src`.
const LAYERS: &[(&str, &[&str])] = &[
    ("actors::activity", &[]),
    ("actors::clock", &[]),
    ("actors::close", &[]),
    ("actors::id", &[]),
    ("actors::outcome", &[]),
    ("actors::signal", &[]),
    ("actors::stream", &[]),
    ("actors::rpc", &[]),
    ("actors::protocol", &["actors::rpc"]),
    ("actors::output", &["actors::protocol"]),
    ("actors::agent", &["actors::output", "actors::protocol"]),
    ("actors::ws", &["actors::output", "actors::protocol", "actors::rpc"]),
    ("actors::backend_api", &["actors::protocol", "actors::rpc"]),
    ("actors::backend_client", &["actors::backend_api", "actors::protocol", "actors::rpc"]),
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
            "actors::output",
            "actors::agent",
            "actors::ws",
            "actors::protocol",
            "actors::rpc",
        ],
    ),
    ("src::syscall", &[]),
    ("src::console", &[]),
    ("src::logging", &[]),
    ("src::server", &["src::syscall", "actors::rpc"]),
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
            "actors::session",
            "actors::supervisor",
            "actors::backend_client",
            "actors::protocol",
            "actors::rpc",
        ],
    ),
    (
        "src::config",
        &[
            "src::backend",
            "src::gateway",
            "src::server",
            "src::logging",
            "actors::supervisor",
            "actors::agent",
            "actors::protocol",
        ],
    ),
    (
        "src::cli",
        &["src::config", "src::console", "actors::agent", "actors::backend_api", "actors::protocol", "actors::rpc"],
    ),
    ("src::roles", &["src::config", "src::gateway", "src::backend", "src::server", "src::logging", "src::console"]),
    ("src::main", &["src::roles", "src::cli", "src::config", "src::backend", "src::console"]),
];

/// Directions that the table above does not allow, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Parents whose items their own submodules use, each with its reason. Everywhere else a parent uses its children only.
const USED_BY_CHILDREN: &[(&str, &str)] = &[
    ("actors::agent", "each agent implements the traits that the parent declares"),
    ("actors::agent::claude", "the splitter of lines and the progress are made of the events that the parent reads"),
    ("actors::execution", "control holds a part of the handlers of the actor Execution"),
    ("actors::output", "the splitter and its messages implement the traits that the parent declares"),
    ("actors::protocol", "the limits and defaults bound the parameters of the methods"),
    ("actors::rpc", "a parameter that cannot be read is answered with an ErrorObject"),
    ("actors::session::phase", "Open is the largest state of Phase, and takes its events and gives its effects"),
    ("src::backend::agent", "each launcher implements the trait that the parent declares"),
    ("src::backend::job::running", "its three submodules hold parts of the handlers of RunningJob"),
    (
        "src::backend::subreaper::handle",
        "the thread and the adoption of a lost subreaper's children share the state of the handle",
    ),
    ("src::cli", "all commands share ClientError, the exit codes and the options"),
    ("src::cli::session_loop::state", "its submodules hold parts of the transitions of LoopState"),
    ("src::cli::logs", "the options and counts are those of all ways to read a log"),
    ("src::config", "validate makes the settings of both roles, and reports the problems that the parent declares"),
];

/// Type names that exist more than once, each with its reason.
const SAME_NAMES: &[(&str, &str)] = &[];

/// One source file: its path from the root, and its text.
type SourceFile = (String, String);

/// A module: its crate, then its path in the crate.
type ModulePath = Vec<String>;

/// Reads every Rust file below these directories.
fn read_sources(directories: &[&str]) -> Vec<SourceFile> {
    fn collect(directory: &Path, root: &Path, found: &mut Vec<SourceFile>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    directories.iter().for_each(|directory| collect(&root.join(directory), root, &mut found));
    found.sort();
    assert!(found.len() > 30, "the sources are found");
    found
}

/// Splits Rust source into identifiers, `::` and single characters. Comments, strings, characters and lifetimes are
/// left out, because none of them refers to a module.
fn tokens(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_hashes = rest.strip_prefix('r').map(|raw| raw.trim_start_matches('#'));
        let n = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(raw) = after_hashes.filter(|raw| raw.starts_with('"')) {
            let opening = rest.len() - raw.len();
            let closing = format!("\"{}", "#".repeat(opening - 1));
            raw[1..].find(&closing).map_or(rest.len(), |at| opening + 1 + at + closing.len())
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |at| at + 2)
        } else if first == '\'' {
            let mut inner = rest[1..].chars();
            match (inner.next(), inner.next()) {
                (Some('\\'), Some(escaped)) => {
                    let skipped = 2 + escaped.len_utf8();
                    rest[skipped..].find('\'').map_or(rest.len(), |at| skipped + at + 1)
                }
                (Some(c), Some('\'')) => c.len_utf8() + 2,
                _ => 1,
            }
        } else if is_word(first) {
            let n = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            found.push(&rest[..n]);
            n
        } else if rest.starts_with("::") {
            found.push("::");
            2
        } else {
            let n = first.len_utf8();
            if !first.is_whitespace() {
                found.push(&rest[..n]);
            }
            n
        };
        rest = &rest[n..];
    }
    found
}

/// The tokens without the items that only tests have.
fn without_tests<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"]) {
            let mut depth = 0;
            while at < tokens.len() {
                match tokens[at] {
                    "{" | "(" | "[" => depth += 1,
                    ")" | "]" => depth -= 1,
                    "}" => {
                        depth -= 1;
                        if depth == 0 {
                            break;
                        }
                    }
                    ";" if depth == 0 => break,
                    _ => {}
                }
                at += 1;
            }
        } else {
            kept.push(tokens[at]);
        }
        at += 1;
    }
    kept
}

/// Every path that a `use` line names, and every other path that begins at a crate's root or at a module.
fn paths<'a>(tokens: &[&'a str]) -> Vec<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&["pub", "(", "in"]) {
            // The path says who may use the item, not what the item uses.
            while at < tokens.len() && tokens[at] != ")" {
                at += 1;
            }
            continue;
        }
        if tokens[at] == "use" {
            at += 1;
            use_tree(tokens, &mut at, &[], &mut found);
            continue;
        }
        let begins = matches!(tokens[at], "crate" | "super" | "self" | "cc_executor_actors" | "cc_executor");
        if begins && tokens.get(at + 1) == Some(&"::") && (at == 0 || tokens[at - 1] != "::") {
            let mut path = vec![tokens[at]];
            while tokens.get(at + 1) == Some(&"::") && at + 2 < tokens.len() {
                path.push(tokens[at + 2]);
                at += 2;
            }
            found.push(path);
        }
        at += 1;
    }
    found
}

/// Reads one tree of a `use` line, up to the `,`, `}` or `;` after it. `prefix` is what stands before the tree.
fn use_tree<'a>(tokens: &[&'a str], at: &mut usize, prefix: &[&'a str], found: &mut Vec<Vec<&'a str>>) {
    let mut path = prefix.to_vec();
    while let Some(&token) = tokens.get(*at) {
        match token {
            "," | "}" | ";" => break,
            "::" => *at += 1,
            "as" => *at += 2,
            "{" => {
                while tokens.get(*at).is_some_and(|token| *token != "}") {
                    *at += 1;
                    use_tree(tokens, at, &path, found);
                }
                *at += 1;
                return;
            }
            name => {
                path.push(name);
                *at += 1;
            }
        }
    }
    if path.len() > prefix.len() {
        found.push(path);
    }
}

/// The module of a source file.
fn module_of(name: &str) -> Option<ModulePath> {
    let (krate, path) = match name.strip_prefix("actors/src/") {
        Some(path) => ("actors", path),
        None => ("src", name.strip_prefix("src/")?),
    };
    let path = path.strip_suffix(".rs")?;
    let parts = if path == "lib" { Vec::new() } else { path.split('/').collect() };
    Some([krate].into_iter().chain(parts).map(str::to_owned).collect())
}

/// The module to which a path of this module leads; `None` if it is of another package.
fn resolve(module: &ModulePath, path: &[&str], modules: &BTreeSet<ModulePath>) -> Option<ModulePath> {
    let supers = path.iter().take_while(|part| **part == "super").count();
    let (start, rest) = match path[0] {
        "crate" => (vec![module[0].clone()], &path[1..]),
        "cc_executor_actors" => (vec!["actors".to_owned()], &path[1..]),
        "cc_executor" => (vec!["src".to_owned()], &path[1..]),
        "self" => (module.clone(), &path[1..]),
        "super" => (module[..module.len().checked_sub(supers)?].to_vec(), &path[supers..]),
        _ => return None,
    };
    let full: ModulePath = start.into_iter().chain(rest.iter().map(|part| (*part).to_owned())).collect();
    (1..=full.len()).rev().map(|n| full[..n].to_vec()).find(|prefix| modules.contains(prefix))
}

/// The dependencies of all modules on one another.
#[derive(Default)]
struct ModuleGraph {
    /// For each parent, which of its children uses which other one, and the file that says so. The root's children
    /// are the modules of both crates.
    siblings: BTreeMap<ModulePath, BTreeMap<String, BTreeMap<String, String>>>,
    /// Modules that use an item of a module above them.
    upward: BTreeSet<(ModulePath, String)>,
}

impl ModuleGraph {
    fn read(sources: &[SourceFile]) -> ModuleGraph {
        let modules: BTreeSet<ModulePath> = sources.iter().filter_map(|(name, _)| module_of(name)).collect();
        let mut graph = ModuleGraph::default();
        for (name, text) in sources.iter().filter(|(name, _)| !name.ends_with("tests.rs")) {
            let Some(module) = module_of(name) else { continue };
            for path in paths(&without_tests(&tokens(text))) {
                if let Some(used) = resolve(&module, &path, &modules) {
                    graph.add(name, &module, &used);
                }
            }
        }
        graph
    }

    fn add(&mut self, name: &str, module: &ModulePath, used: &ModulePath) {
        if module.starts_with(used) {
            if module.len() > used.len() {
                self.upward.insert((used.clone(), name.to_owned()));
            }
            return;
        }
        if used.starts_with(module) {
            return;
        }
        // The modules of both crates are one level: "actors::session", "src::cli".
        let node = |path: &ModulePath, depth: usize| match depth {
            0 | 1 => (Vec::new(), path[..path.len().min(2)].join("::")),
            _ => (path[..depth].to_vec(), path[depth].clone()),
        };
        let depth = module.iter().zip(used).take_while(|(own, other)| own == other).count();
        let ((parent, from), (_, to)) = (node(module, depth), node(used, depth));
        let edges = self.siblings.entry(parent).or_default().entry(from).or_default();
        edges.entry(to).or_insert_with(|| name.to_owned());
    }

    /// The cycles between the children of one parent: all edges between modules that reach each other.
    fn cycles(&self) -> Vec<String> {
        let mut cycles = Vec::new();
        for (parent, edges) in &self.siblings {
            let reached: BTreeMap<_, _> = edges.keys().map(|from| (from, reachable(edges, from))).collect();
            for (from, uses) in edges {
                for (to, file) in uses {
                    if reached.get(to).is_some_and(|back| back.contains(from)) {
                        cycles.push(format!("{} has a cycle: {from} uses {to} in {file}", name_of(parent)));
                    }
                }
            }
        }
        cycles
    }

    /// Directions between the modules of the crates that the tables do not allow.
    fn wrong_directions(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (from, uses) in self.siblings.get(&Vec::new()).into_iter().flatten() {
            let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| layer == from) else {
                wrong.push(format!("{from} is in no layer: add it to LAYERS"));
                continue;
            };
            for (to, file) in uses {
                let is_base = BASE.contains(&to.as_str());
                let excepted = EXCEPTIONS.iter().any(|(excepted, used, _)| excepted == from && used == to);
                if !is_base && !allowed.contains(&to.as_str()) && !excepted {
                    wrong.push(format!("{from} may not use {to}, but does in {file}"));
                }
            }
        }
        wrong
    }

    /// Modules that use an item of a module above them, where no table allows that.
    fn upward_uses(&self) -> Vec<String> {
        let wrong = self.upward.iter().filter(|(parent, _)| {
            let parent = parent.join("::");
            !USED_BY_CHILDREN.iter().any(|(allowed, _)| *allowed == parent)
        });
        wrong.map(|(parent, file)| format!("{file} uses an item of {}", parent.join("::"))).collect()
    }
}

fn name_of(parent: &ModulePath) -> String {
    if parent.is_empty() { "the workspace".to_owned() } else { parent.join("::") }
}

/// What can be reached from a node, the node itself only if it is on a cycle.
fn reachable(edges: &BTreeMap<String, BTreeMap<String, String>>, start: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![start.to_owned()];
    while let Some(node) = open.pop() {
        for to in edges.get(&node).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(to.clone()) {
                open.push(to.clone());
            }
        }
    }
    found
}

/// The names of the types that this source defines, associated types apart.
fn type_names<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let mut names = Vec::new();
    let mut blocks = Vec::new();
    let mut is_associated = false;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "impl" => is_associated = true,
            "trait" => {
                is_associated = true;
                names.push(tokens[at + 1]);
            }
            "struct" | "enum" | "union" => {
                names.extend(tokens.get(at + 1).filter(|name| name.starts_with(char::is_uppercase)))
            }
            "type" if blocks.last() != Some(&true) => {
                names.extend(tokens.get(at + 1).filter(|name| name.starts_with(char::is_uppercase)))
            }
            "{" => {
                blocks.push(is_associated);
                is_associated = false;
            }
            "}" => drop(blocks.pop()),
            ";" => is_associated = false,
            _ => {}
        }
    }
    names
}

#[test]
fn no_module_is_part_of_a_cycle() {
    let cycles = ModuleGraph::read(&read_sources(&["src", "actors/src"])).cycles();
    assert!(cycles.is_empty(), "{}", cycles.join("\n"));
}

#[test]
fn every_module_uses_only_the_layers_below_it() {
    let graph = ModuleGraph::read(&read_sources(&["src", "actors/src"]));
    let wrong = graph.wrong_directions();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (from, to, _) in EXCEPTIONS {
        let uses = graph.siblings.get(&Vec::new()).and_then(|edges| edges.get(*from));
        assert!(uses.is_some_and(|uses| uses.contains_key(*to)), "{from} does not use {to}: it need not be listed");
    }
}

#[test]
fn no_submodule_uses_an_item_of_its_parent() {
    let graph = ModuleGraph::read(&read_sources(&["src", "actors/src"]));
    let wrong = graph.upward_uses();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (parent, _) in USED_BY_CHILDREN {
        assert!(graph.upward.iter().any(|(used, _)| used.join("::") == *parent), "{parent} need not be listed");
    }
}

#[test]
fn no_type_name_exists_twice() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, text) in read_sources(&["src", "actors/src", "benches", "tests"]) {
        for found in type_names(&tokens(&text)) {
            places.entry(found.to_owned()).or_default().push(name.clone());
        }
    }
    let twice: Vec<_> = places.iter().filter(|(_, files)| files.len() > 1).collect();
    for (name, files) in &twice {
        assert!(SAME_NAMES.iter().any(|(same, _)| same == name), "{name} is defined in {}", files.join(" and in "));
    }
    for (name, _) in SAME_NAMES {
        assert!(twice.iter().any(|(found, _)| found == name), "{name} exists once: it need not be listed");
    }
}

#[test]
fn a_cycle_a_wrong_direction_and_an_upward_use_are_found() {
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
    assert_eq!(cycle.wrong_directions(), ["actors::rpc may not use actors::protocol, but does in actors/src/rpc.rs"]);

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
        nested.upward_uses(),
        [
            "src/backend/job.rs uses an item of src::backend",
            "src/backend/job/life.rs uses an item of src::backend::job"
        ]
    );

    let gateway = read(&[
        source("src/gateway.rs", ""),
        source("src/gateway/routes.rs", "use crate::backend::{routes::{Body, refuse}};"),
        source("src/backend.rs", ""),
        source("src/backend/routes.rs", ""),
    ]);
    assert_eq!(
        gateway.wrong_directions(),
        ["src::gateway may not use src::backend, but does in src/gateway/routes.rs"]
    );
}

#[test]
fn types_are_found_by_their_names() {
    let text = "struct A<'a>(&'a str); impl Iterator for A<'_> { type Item = u8; } type B = u8; trait C { type D; } // enum E\n";
    assert_eq!(type_names(&tokens(text)), ["A", "B", "C"]);
}
