//! Command lines, and their help texts and tables in the README.

use clap::Command;

use super::*;
use crate::config::{BackendLocation, variables::without_environment};

const README: &str = include_str!("../../../README.md");

fn no_variables() -> RoleVariables {
    variables::parse(without_environment(variables::definition::<RoleVariables>()), Vec::new())
}

fn typed_words(words: &[&str]) -> Result<Invocation, UsageError> {
    let definition = definition().mut_subcommands(without_environment);
    let words = std::iter::once("cc-executor").chain(words.iter().copied());
    interpret(definition, words.map(Into::into), no_variables)
}

fn typed(line: &str) -> Result<Invocation, UsageError> {
    typed_words(&line.split(' ').skip(1).collect::<Vec<_>>())
}

fn problems(line: &str) -> Vec<String> {
    match typed(line) {
        Err(UsageError::Values(Problems(lines))) => lines,
        other => panic!("{line}: {other:?}"),
    }
}

/// Every command with a help text of its own.
fn subcommands() -> Vec<Command> {
    let mut definition = definition();
    definition.build();
    definition.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect()
}

#[test]
fn the_definition_is_consistent() {
    definition().debug_assert();
}

#[test]
fn flags_have_the_names_of_their_settings() {
    for role in subcommands().iter().filter(|role| matches!(role.get_name(), "serve" | "backend")) {
        for arg in role.get_arguments().filter(|arg| arg.get_long() != Some("help")) {
            let (long, env) = (arg.get_long().unwrap(), arg.get_env().unwrap().to_str().unwrap());
            let of_flag = long.replace('-', "_").to_uppercase();
            assert!(env == of_flag || env == format!("CC_EXECUTOR_{of_flag}"), "--{long} is not {env}");
        }
    }
    let line = "cc-executor serve --max-sessions 7 --claude-api-url http://x --insecure-no-auth --bind 0.0.0.0:1";
    let Ok(Invocation::Serve(settings)) = typed(line) else { panic!("is a serve") };
    assert_eq!((settings.sessions.sessions, settings.bind.port()), (7, 1));
    assert!(matches!(settings.backend, BackendLocation::Remote(backend) if backend.url == "http://x"));
}

#[test]
fn a_wrong_use_is_an_error_and_help_is_not() {
    for line in [
        "cc-executor",
        "cc-executor nope",
        "cc-executor backend --max-sessions 7",
        "cc-executor serve --token x",
        "cc-executor run",
        "cc-executor run --timeout soon x",
        "cc-executor attach x/y",
        "cc-executor run --detach --reconnect x",
        "cc-executor attach -i 00000000-0000-4000-8000-000000000000",
        "cc-executor run --detach-keys ctrl- x",
        "cc-executor cancel",
        "cc-executor completions cmd",
    ] {
        match typed(line).unwrap_err() {
            UsageError::Clap(error) => assert!(error.use_stderr(), "{line}"),
            UsageError::Values(Problems(lines)) => assert!(!lines.is_empty(), "{line}"),
        }
    }
    for line in [
        "cc-executor --help",
        "cc-executor --version",
        "cc-executor help",
        "cc-executor help --help",
        "cc-executor help -h",
        "cc-executor help run",
        "cc-executor ps -h",
    ] {
        let UsageError::Clap(error) = typed(line).unwrap_err() else { panic!("clap prints {line}") };
        assert!(!error.use_stderr(), "{line}");
    }
}

#[test]
fn the_flags_of_a_command_are_left_to_it() {
    let line = "cc-executor run --timeout 0.5 -- ls -la --json";
    let Ok(Invocation::Client(command)) = typed(line) else { panic!("is a client command") };
    let ClientCommand::Run(options) = *command else { panic!("is a run") };
    let params = options.execute_params().unwrap();
    assert_eq!((params.run.command.to_text().as_ref(), params.run.timeout_ms), ("ls -la --json", Some(500)));
}

#[test]
fn all_problems_of_a_client_are_reported_together() {
    let lines = problems("cc-executor run --url ftp://h --timeout soon --heartbeat=-1s --max-turns x -- true");
    for (line, part) in lines.iter().zip(["--url must", "--timeout must", "--heartbeat must", "--max-turns must"]) {
        assert!(line.starts_with(part), "{line}");
    }
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(problems("cc-executor attach x/y").len(), 1);
    assert!(matches!(typed_words(&["ps", "--url", ""]), Err(UsageError::Values(_))), "an empty URL is a wrong one");
}

#[test]
fn help_fits_eighty_columns_and_names_every_variable() {
    let help_of = |words: &[&str]| match interpret(definition(), words.iter().map(Into::into), no_variables) {
        Err(UsageError::Clap(error)) => error.render().to_string(),
        other => panic!("{words:?}: {other:?}"),
    };
    let fits = |help: &str| help.lines().all(|line| line.chars().count() <= HELP_WIDTH);
    assert!(fits(&help_of(&["cc-executor", "--help"])));
    for command in subcommands() {
        let name = command.get_name();
        let help = help_of(&["cc-executor", name, "--help"]);
        assert!(fits(&help), "{help}");
        assert_eq!(help, help_of(&["cc-executor", name, "-h"]), "the short help of {name}");
        for variable in command.get_arguments().filter_map(Arg::get_env) {
            assert!(help.contains(&format!("[env: {}]", variable.display())), "{help}");
        }
    }
}

#[test]
fn each_command_has_a_manual_page() {
    for command in subcommands().iter().map(Command::get_name) {
        let Ok(Invocation::Print(page)) = typed(&format!("cc-executor man {command}")) else { panic!("prints a page") };
        assert!(page.contains(&format!(".TH cc-executor-{command} 1")) && page.contains(".SH OPTIONS"), "{page}");
    }
    let Ok(Invocation::Print(overview)) = typed("cc-executor man") else { panic!("prints a page") };
    assert!(overview.contains("cc\\-executor\\-run(1)"), "{overview}");
    assert!(problems("cc-executor man nope")[0].contains("not \"nope\""));
}

#[test]
fn completions_are_scripts_that_ask_the_binary() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let Ok(Invocation::Print(script)) = typed(&format!("cc-executor completions {shell}")) else {
            panic!("prints a script")
        };
        assert!(script.contains(completions::VARIABLE), "{shell}: the script asks the binary: {script}");
    }
}

/// The README's table of settings, made from the definition.
fn settings_table() -> String {
    let commands = subcommands();
    let of = |name: &str| commands.iter().find(|command| command.get_name() == name).unwrap();
    let (serve, backend) = (of("serve"), of("backend"));
    let default = |arg: &Arg| match arg.get_default_values().first() {
        Some(value) if arg.get_action().takes_values() => format!("`{}`", value.display()),
        _ => String::new(),
    };
    let mut table = "| flag | default | |\n|---|---|---|\n".to_owned();
    // Rows are in the order of the help text.
    let mut headings = Vec::new();
    for heading in serve.get_arguments().map(Arg::get_help_heading) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let rows =
        headings.iter().flat_map(|heading| serve.get_arguments().filter(|arg| arg.get_help_heading() == *heading));
    for arg in rows.filter(|arg| arg.get_env().is_some()) {
        let (long, env) = (arg.get_long().unwrap(), arg.get_env().unwrap().to_str().unwrap());
        let mut flag = format!("`--{long}`");
        if env != format!("CC_EXECUTOR_{}", long.replace('-', "_").to_uppercase()) {
            flag.push_str(&format!(", `{env}`"));
        }
        let mut text = arg.get_help().unwrap().to_string().trim_end().to_owned();
        if let (Some(from), Some(to)) = (text.find('{'), text.rfind('}')) {
            let json = format!("`{}`", &text[from..=to]);
            text.replace_range(from..=to, &json);
        }
        let names: Vec<_> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
        if arg.get_action().takes_values() && !names.is_empty() {
            text.push_str(&format!(": {}", names.join(", ")));
        }
        let mut value = default(arg);
        match backend.get_arguments().find(|other| other.get_id() == arg.get_id()) {
            None => text.push_str("; `serve` only"),
            Some(other) if default(other) != value => value.push_str(&format!(", `backend`: {}", default(other))),
            Some(_) => {}
        }
        table.push_str(&format!("| {flag} | {value} | {text} |\n"));
    }
    table
}

/// The README's table of variables without a flag.
fn variables_table() -> String {
    let definition = variables::definition::<RoleVariables>();
    let rows = definition
        .get_arguments()
        .map(|arg| format!("| `{}` | {} |\n", arg.get_env().unwrap().display(), arg.get_help().unwrap()));
    format!("| variable | |\n|---|---|\n{}", rows.collect::<String>())
}

#[test]
fn the_readme_has_the_tables_of_the_definition() {
    for table in [settings_table(), variables_table()] {
        assert!(README.contains(&format!("\n\n{table}\n")), "the README needs this table:\n{table}");
    }
}
