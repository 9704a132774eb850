//! The variables of a command: `--env` and `--env-file`, in the form that Docker made common.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use crate::cli::{ClientError, exit};

/// A variable as it was given: `NAME=VALUE`, or `NAME` to pass the client's own on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct GivenVariable {
    name: String,
    value: Option<String>,
}

/// Reads `NAME[=VALUE]`.
pub(super) fn read_variable(text: &str) -> Result<GivenVariable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        // Not the text itself, because its value may be a secret.
        return Err(format!("must be NAME=VALUE, or NAME to pass it on; {name:?} is not a name"));
    }
    Ok(GivenVariable { name: name.to_owned(), value })
}

/// All variables: those of the files, then those of the flags, of which the last one counts.
///
/// # Errors
///
/// A file cannot be read, or has a line that is not a variable; a variable that is passed on is not text.
pub(super) fn read(files: &[PathBuf], flags: &[GivenVariable]) -> Result<BTreeMap<String, String>, ClientError> {
    let mut variables = BTreeMap::new();
    for file in files {
        let refused = |why: String| ClientError::new(exit::USAGE, format!("--env-file {}: {why}", file.display()));
        let text = fs::read_to_string(file).map_err(|error| refused(format!("cannot be read: {error}")))?;
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let variable = read_variable(line).map_err(|why| refused(format!("line {} {why}", at + 1)))?;
            add(&mut variables, &variable)?;
        }
    }
    for variable in flags {
        add(&mut variables, variable)?;
    }
    Ok(variables)
}

fn add(to: &mut BTreeMap<String, String>, GivenVariable { name, value }: &GivenVariable) -> Result<(), ClientError> {
    let value = match value {
        Some(value) => Some(value.clone()),
        None => env::var_os(name).map(|value| value.into_string()).transpose().map_err(|_| {
            let message = format!("--env {name}: its value is not UTF-8, which the protocol cannot carry; encode it");
            ClientError::new(exit::USAGE, message)
        })?,
    };
    to.extend(value.map(|value| (name.clone(), value)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn flags_outrank_files_and_a_variable_without_a_value_is_passed_on() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"# comment\n\nA=file\n  B=a b \nPATH\nCC_NOT_SET_HERE\nC==\"x\"\n").unwrap();
        let flags = ["A=flag", "A=last", "D="].map(|text| read_variable(text).unwrap());
        let read = read(&[file.path().to_owned()], &flags).unwrap();
        let expected = [("A", "last"), ("B", "a b "), ("C", "=\"x\""), ("D", "")];
        let mut expected: BTreeMap<_, _> = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        expected.insert("PATH".to_owned(), env::var("PATH").unwrap());
        assert_eq!(read, expected);
    }

    #[test]
    fn an_error_names_the_line_and_not_the_value() {
        for wrong in ["", "=secret", "a b=secret"] {
            let error = read_variable(wrong).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"A=1\n=secret\n").unwrap();
        let error = read(&[file.path().to_owned()], &[]).unwrap_err();
        assert!(
            error.message.contains(": line 2 must be NAME=VALUE") && !error.message.contains("secret"),
            "{error:?}"
        );
        let missing = read(&["/nonexistent/env".into()], &[]).unwrap_err();
        assert!(missing.message.starts_with("--env-file /nonexistent/env: cannot be read: "), "{missing:?}");
    }
}
