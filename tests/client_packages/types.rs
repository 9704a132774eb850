//! The types are those of the service, they compile under the strictest settings, and the examples of the READMEs run.

use std::{fs, process::Command};

use serde_json::Value;

use super::in_both_languages;
use crate::common::{
    client_package::{ClientPackage, Language, succeed},
    http,
    service::{Service, run_to_exit},
    sources::root,
};

in_both_languages!(the_readme_example_has_five_lines_and_runs);

#[test]
fn schema_file_is_what_the_service_serves() {
    let service = Service::start();
    let stored = fs::read_to_string(root().join("deploy/clients/schema.json")).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(service.get("/schema.json"), stored, "run: curl URL/schema.json | deploy/clients/generate.py -");
}

#[test]
fn schema_needs_the_token() {
    let token = "0123456789abcdef0123456789abcdef";
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", token)]);
    let status = |headers: &[(&str, &str)]| http::exchange(service.address, "GET /schema.json", headers, "").status;
    assert_eq!(status(&[]), 401);
    assert_eq!(status(&[("Authorization", &format!("Bearer {token}"))]), 200);
}

#[test]
fn generated_types_are_those_of_the_schema() {
    succeed(Command::new("python3").arg(root().join("deploy/clients/generate.py")).arg("--check"));
}

#[test]
fn python_types_are_strict() {
    let Some(package) = Language::Python.package("client_packages::types::python_types_are_strict") else { return };
    let mut mypy = package.program("-m".as_ref(), &["mypy", "--strict", "--cache-dir", "/dev/null"]);
    succeed(mypy.arg(root().join("deploy/clients/python/cc_executor")));
    // With the installed package, as a user checks a program.
    let mut mypy = package.program("-m".as_ref(), &["mypy", "--strict", "--cache-dir", "/dev/null"]);
    succeed(mypy.arg(package.directory().join("scenario.py")).current_dir(std::env::temp_dir()));
}

fn the_readme_example_has_five_lines_and_runs(package: &ClientPackage) {
    let (readme, fence, name) = match package.language() {
        Language::Python => ("deploy/clients/python/README.md", "```python\n", "example.py"),
        Language::TypeScript => ("deploy/clients/typescript/README.md", "```ts\n", "example.mjs"),
    };
    let text = fs::read_to_string(root().join(readme)).unwrap();
    let example = text.split(fence).nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    assert!(example.lines().filter(|line| !line.is_empty()).count() <= 5, "{example}");
    assert!(example.contains("make test") && example.contains("timeout"), "{example}");
    let directory = match package.language() {
        Language::Python => crate::common::temp::directory("client-readme"),
        Language::TypeScript => package.directory().to_owned(),
    };
    let path = directory.join(name);
    fs::write(&path, example.replace("make test", "echo passed; exit 3")).unwrap();
    let service = Service::start();
    let mut command = package.program(&path, &[]);
    let (stdout, stderr, code) = run_to_exit(command.env("CC_EXECUTOR_URL", service.url()));
    assert_eq!((stdout.as_str(), code), ("3 passed\n\n", 0), "{stderr}");
}
