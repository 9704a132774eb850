//! The Python and TypeScript packages of `deploy/clients`, installed as a user installs them. `make clients` has installed
//! what they depend on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use serde_json::{Value, json};

use super::{
    client_process::ClientProcess,
    left_out,
    service::{binary_under, output_of},
    sources::root,
};

/// A language that has a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    Python,
    TypeScript,
}

/// The directory that `make clients` fills.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below target").join("clients")
}

impl Language {
    /// Installs the package and compiles the scenarios, once. `None` if its dependencies are missing: then the test is
    /// reported as left out.
    pub fn package(self, test: &str) -> Option<ClientPackage> {
        static PACKAGES: [OnceLock<Option<PathBuf>>; 2] = [OnceLock::new(), OnceLock::new()];
        let scenario = PACKAGES[self as usize].get_or_init(|| match self {
            Language::Python => install_python(),
            Language::TypeScript => install_typescript(),
        });
        if scenario.is_none() {
            left_out(test, &format!("the dependencies of the {self:?} client are not installed (make clients)"));
        }
        scenario.clone().map(|scenario| ClientPackage { language: self, scenario })
    }
}

/// An installed package, with a program that runs scenarios with it.
pub struct ClientPackage {
    language: Language,
    scenario: PathBuf,
}

impl ClientPackage {
    /// The language.
    pub fn language(&self) -> Language {
        self.language
    }

    /// A program of this language, with arguments.
    pub fn program(&self, path: &Path, arguments: &[&str]) -> Command {
        let mut command = match self.language {
            Language::Python => binary_under(installed().join("python/bin/python")),
            Language::TypeScript => binary_under("node"),
        };
        command.arg(path).args(arguments);
        command
    }

    /// The directory in which programs of this language find the package.
    pub fn directory(&self) -> &Path {
        self.scenario.parent().expect("in a directory")
    }

    /// The command that runs a scenario.
    pub fn command(&self, scenario: &Value) -> Command {
        self.program(&self.scenario, &[&scenario.to_string()])
    }

    /// Runs a scenario to its end, and returns the report.
    pub fn run(&self, scenario: &Value) -> Value {
        let output = output_of(&mut self.command(scenario));
        let stdout = String::from_utf8_lossy(&output.stdout);
        let last = stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{scenario}: {error}: {}", shown(&output)))
    }

    /// Starts a scenario, and returns its process with the first line of its report.
    pub fn start(&self, scenario: &Value) -> (ClientProcess, Value) {
        let mut process = ClientProcess::start(&mut self.command(scenario));
        let line = process.read_line();
        let first = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{scenario}: {error}: {line}"));
        (process, first)
    }
}

/// The last line of the report of a process that has exited.
pub fn last_report((stdout, stderr, _): &(String, String, i32)) -> Value {
    let last = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {stdout}\n{stderr}"))
}

fn install_python() -> Option<PathBuf> {
    let python = installed().join("python/bin/python");
    if !python.is_file() {
        return None;
    }
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall", "--no-deps"]);
    succeed(install.args(["--no-index", "--no-build-isolation"]).arg(root().join("deploy/clients/python")));
    Some(root().join("tests/client_packages/scenario.py"))
}

fn install_typescript() -> Option<PathBuf> {
    let (package, consumer) = (installed().join("typescript"), installed().join("consumer"));
    if !package.join("node_modules/ws").is_dir() {
        return None;
    }
    let source = root().join("deploy/clients/typescript");
    for old in [package.join("src"), package.join("dist"), consumer.clone()] {
        let _ = fs::remove_dir_all(old);
    }
    copy(&source, &package, &["package.json", "tsconfig.json"]);
    let sources: Vec<String> = fs::read_dir(source.join("src"))
        .expect("the sources")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    copy(&source.join("src"), &package.join("src"), &sources.iter().map(String::as_str).collect::<Vec<_>>());
    succeed(Command::new("npm").args(["run", "--silent", "prepare"]).current_dir(&package));

    copy(&root().join("tests/client_packages"), &consumer, &["scenario.ts", "tsconfig.json"]);
    let manifest = json!({ "name": "consumer", "private": true, "type": "module" });
    fs::write(consumer.join("package.json"), manifest.to_string()).expect("a manifest");
    let mut install = Command::new("npm");
    install.args(["install", "--offline", "--no-audit", "--no-fund", "--silent", "../typescript"]);
    succeed(install.current_dir(&consumer));
    std::os::unix::fs::symlink(package.join("node_modules/@types"), consumer.join("node_modules/@types"))
        .expect("a link to the types of node");
    // With `strict`, so this is also the test that the types are usable.
    succeed(Command::new(package.join("node_modules/.bin/tsc")).current_dir(&consumer));
    Some(consumer.join("scenario.js"))
}

fn copy(from: &Path, to: &Path, names: &[&str]) {
    fs::create_dir_all(to).expect("a directory");
    for name in names {
        fs::copy(from.join(name), to.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) {
    let name = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(output.status.success(), "{name}: {}", shown(&output));
}

fn shown(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{stdout}\n{stderr}", output.status)
}
