//! The uses between modules: cycles, wrong directions, and uses of a parent by its children.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{paths, tokens, without_tests};
use crate::common::sources::SourceFile;

/// A module: its crate, then its path in the crate.
type ModulePath = Vec<String>;

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

/// The module to which a path in this module leads; `None` if it is of another package.
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
pub struct ModuleGraph {
    /// For each parent, its children, the siblings that each uses, and a file with that use. The children of the root are
    /// the modules of both crates.
    siblings: BTreeMap<ModulePath, BTreeMap<String, BTreeMap<String, String>>>,
    /// Modules that use an item of a module above them.
    upward: BTreeSet<(ModulePath, String)>,
}

impl ModuleGraph {
    pub fn read(sources: &[SourceFile]) -> ModuleGraph {
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
    pub fn cycles(&self) -> Vec<String> {
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

    /// Uses between the modules of the crates that `layers` does not allow. Each module may use those of `base`.
    pub fn wrong_directions(&self, base: &[&str], layers: &[(&str, &[&str])]) -> Vec<String> {
        let mut wrong = Vec::new();
        for (from, uses) in self.siblings.get(&Vec::new()).into_iter().flatten() {
            let Some((_, allowed)) = layers.iter().find(|(layer, _)| layer == from) else {
                wrong.push(format!("{from} is in no layer: add it to LAYERS"));
                continue;
            };
            for (to, file) in uses {
                if !base.contains(&to.as_str()) && !allowed.contains(&to.as_str()) {
                    wrong.push(format!("{from} may not use {to}, but does in {file}"));
                }
            }
        }
        wrong
    }

    /// Uses that `layers` allows and that do not exist.
    pub fn unused_directions(&self, layers: &[(&str, &[&str])]) -> Vec<String> {
        let uses = |from: &str, to: &str| {
            let edges = self.siblings.get(&Vec::new()).and_then(|edges| edges.get(from));
            edges.is_some_and(|used| used.contains_key(to))
        };
        let pairs = layers.iter().flat_map(|(from, allowed)| allowed.iter().map(move |to| (*from, *to)));
        let unused = pairs.filter(|(from, to)| !uses(from, to));
        unused.map(|(from, to)| format!("{from} does not use {to}: remove it from LAYERS")).collect()
    }

    /// Modules that use an item of a module above them which is not in `allowed`.
    pub fn upward_uses(&self, allowed: &[(&str, &str)]) -> Vec<String> {
        let wrong = self.upward.iter().filter(|(parent, _)| {
            let parent = parent.join("::");
            !allowed.iter().any(|(name, _)| *name == parent)
        });
        wrong.map(|(parent, file)| format!("{file} uses an item of {}", parent.join("::"))).collect()
    }

    /// Parents in `allowed` whose items no child uses.
    pub fn unused_parents(&self, allowed: &[(&str, &str)]) -> Vec<String> {
        let is_used = |name: &str| self.upward.iter().any(|(used, _)| used.join("::") == name);
        let unused = allowed.iter().filter(|(name, _)| !is_used(name));
        unused.map(|(name, _)| format!("no child uses {name}: remove it from USED_BY_CHILDREN")).collect()
    }
}

fn name_of(parent: &ModulePath) -> String {
    if parent.is_empty() { "the workspace".to_owned() } else { parent.join("::") }
}

/// The nodes that can be reached from a node. The node itself is among them only if it is on a cycle.
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
