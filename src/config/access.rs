//! The settings that decide who may call a service: tokens and their files, and local users. The settings of clients
//! have a token, too.

use std::{ffi::OsString, net::SocketAddr, path::Path, sync::Arc};

use clap::ArgMatches;

use super::{
    Problems,
    settings::{AccessArgs, name_of},
    users::AllowedUsers,
    variables::{BACKEND_TOKEN, ClientVariables, TOKEN},
};
use crate::server::{
    auth::Access,
    authentication::Authentication,
    local_users::LocalUsers,
    secret::{Fingerprint, Secret},
    secret_file::{self, SecretKind},
    tokens::{Tokens, file::TokensFile},
};

/// The shortest token that a role accepts, in characters: nobody can guess 32 random ones.
const MIN_TOKEN: usize = 32;

/// The token that a client sends: from the environment, or from the file that it names.
///
/// # Errors
/// Both are set, the file cannot be read or is not private, or the token has characters that are not allowed.
pub fn client_token(variables: &ClientVariables) -> Result<Option<Secret>, Problems> {
    let mut problems = Problems::default();
    // A client does not warn of a file that its group may read, because its standard error is the command's.
    let secret = problems.secret(TOKEN, variables, &mut Vec::new());
    problems.finish(secret)
}

/// The text of a file with a token.
///
/// # Errors
/// The rest of a sentence that begins with the name of the file: it cannot be read or is not private.
pub fn read_token_file(path: &Path) -> Result<String, impl std::fmt::Display> {
    secret_file::read(path, SecretKind::Token).map(|found| found.text)
}

/// The variable that gives the token that a client sends, if one does.
pub fn token_variable(variables: &ClientVariables) -> Option<String> {
    given_variable(TOKEN, variables)
}

/// The variable of a secret that is set: its own, or the one of its file.
pub(super) fn given_variable(name: &str, variables: &ClientVariables) -> Option<String> {
    match (set(variables.token.as_ref()), set(variables.token_file.as_ref())) {
        (Some(_), _) => Some(name.to_owned()),
        (None, Some(_)) => Some(format!("{name}_FILE")),
        (None, None) => None,
    }
}

/// A setting of tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TokenSetting<T> {
    /// It is not set.
    Unset,
    /// It cannot be used, and its problem is reported.
    Rejected,
    /// It is set to this.
    Set(T),
}

impl<T> TokenSetting<T> {
    /// The setting, or the other one if it is not set.
    pub(super) fn or(self, other: Self) -> Self {
        if matches!(self, TokenSetting::Unset) { other } else { self }
    }

    fn value(self) -> Option<T> {
        match self {
            TokenSetting::Set(value) => Some(value),
            TokenSetting::Unset | TokenSetting::Rejected => None,
        }
    }

    fn is_rejected(&self) -> bool {
        matches!(self, TokenSetting::Rejected)
    }
}

impl Problems {
    /// Who may call the service: with a token, a tokens file, or as a local user. Warns of a tokens file that its group may
    /// write.
    pub(super) fn access(
        &mut self,
        bind: SocketAddr,
        args: AccessArgs,
        token: TokenSetting<Fingerprint>,
        matches: &ArgMatches,
        warnings: &mut Vec<String>,
    ) -> Access {
        let file = match args.tokens_file.filter(|path| !path.is_empty()) {
            None => TokenSetting::Unset,
            Some(path) => match TokensFile::load(Path::new(&path), token.value()) {
                Ok((file, warning)) => {
                    warnings.extend(warning.map(|text| format!("{} {text}", name_of("tokens_file", matches))));
                    TokenSetting::Set(Arc::new(file))
                }
                Err(lines) => {
                    lines.iter().for_each(|line| self.add(&name_of("tokens_file", matches), line));
                    TokenSetting::Rejected
                }
            },
        };
        let is_rejected = token.is_rejected() || file.is_rejected();
        Access {
            authentication: match Tokens::new(token.value(), file.value()) {
                Some(tokens) => Authentication::Tokens(tokens),
                // The service does not start anyway, so it does not also report that a token is missing.
                None if is_rejected => Authentication::Nothing,
                None => self.without_token(bind, args.allow_local_users, args.insecure_no_auth, matches),
            },
            allowed_hosts: args.allowed_hosts.unwrap_or_default(),
            allowed_origins: args.allowed_origins.unwrap_or_default(),
            port: bind.port(),
            serves_gateways: false,
        }
    }

    /// How callers are known without a token.
    fn without_token(
        &mut self,
        bind: SocketAddr,
        allowed: Option<AllowedUsers>,
        insecure: bool,
        matches: &ArgMatches,
    ) -> Authentication {
        if !bind.ip().to_canonical().is_loopback() {
            if !insecure {
                self.add(
                    &name_of("bind", matches),
                    format!("is {bind}, which other machines can reach, and there is no token; set {BACKEND_TOKEN} (role backend) or {TOKEN}, or the variable with _FILE, or pass --tokens-file or --insecure-no-auth"),
                );
            }
            return Authentication::Nothing;
        }
        match allowed.unwrap_or_default() {
            AllowedUsers::All => Authentication::Nothing,
            AllowedUsers::Only(users) => {
                Authentication::LocalUsers(LocalUsers::new(rustix::process::geteuid().as_raw(), users))
            }
        }
    }

    /// Reads a secret from its variable, or from the file that `…_FILE` names. Warns of a file that its group may read.
    pub(super) fn secret(
        &mut self,
        name: &str,
        variables: &ClientVariables,
        warnings: &mut Vec<String>,
    ) -> Option<Secret> {
        let file = format!("{name}_FILE");
        let text = match (set(variables.token.as_ref()), set(variables.token_file.as_ref())) {
            (Some(_), Some(_)) => {
                self.add(name, format!("and {file} are both set; unset one of them"));
                return None;
            }
            (Some(text), None) => text.to_owned(),
            (None, Some(path)) => match secret_file::read(Path::new(path), SecretKind::Token) {
                Ok(found) => {
                    warnings.extend(found.warning.map(|warning| format!("{file} names {path:?}, which {warning}")));
                    match found.text.trim_end_matches(['\r', '\n']) {
                        "" => {
                            self.add(&file, format!("names {path:?}, which is empty; write the token into it"));
                            return None;
                        }
                        text => text.to_owned(),
                    }
                }
                Err(error) => {
                    self.add(&file, format!("names {path:?}, which {error}"));
                    return None;
                }
            },
            (None, None) => return None,
        };
        let variable = given_variable(name, variables).unwrap_or_else(|| name.to_owned());
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.add(&variable, "must contain a token of printable ASCII characters without spaces");
            return None;
        }
        Some(Secret::new(text))
    }

    /// The fingerprint of the secret that a role demands, from the secret or from its SHA-256. The SHA-256 is not
    /// secret: where another process of the same user has the service's environment, such as a container's init,
    /// commands can read it.
    pub(super) fn fingerprint(
        &mut self,
        name: &str,
        variables: &ClientVariables,
        sha256: Option<OsString>,
        allow_short: bool,
        warnings: &mut Vec<String>,
    ) -> TokenSetting<Fingerprint> {
        let hashed = format!("{name}_SHA256");
        let given = given_variable(name, variables);
        let secret = self.secret(name, variables, warnings);
        let variable = given.as_deref().unwrap_or(name);
        match (secret, set(sha256.as_ref())) {
            (Some(_), Some(_)) => {
                self.add(variable, format!("and {hashed} are both set; unset one of them"));
                TokenSetting::Rejected
            }
            (Some(secret), None) => {
                match secret.reveal().len() {
                    MIN_TOKEN.. => {}
                    length if allow_short => warnings.push(format!("{variable} has a token of {length} characters, which can be guessed; {MIN_TOKEN} are safe")),
                    length => self.add(
                        variable,
                        format!("has a token of {length} characters, which can be guessed; set one of at least {MIN_TOKEN}, such as `cc-executor token new NAME` prints, or pass --insecure-short-token"),
                    ),
                }
                TokenSetting::Set(secret.fingerprint())
            }
            (None, Some(text)) => match Fingerprint::from_hex(text) {
                Some(fingerprint) => TokenSetting::Set(fingerprint),
                None => {
                    self.add(&hashed, "must be the SHA-256 of a token, in 64 hexadecimal digits");
                    TokenSetting::Rejected
                }
            },
            (None, None) if given.is_some() => TokenSetting::Rejected,
            (None, None) => TokenSetting::Unset,
        }
    }
}

/// Whether clients have tokens of their own.
pub(super) fn has_tokens_file(access: &Access) -> bool {
    matches!(&access.authentication, Authentication::Tokens(tokens) if tokens.file().is_some())
}

/// The value of a variable. An empty value, or one that is not UTF-8, counts as unset.
fn set(value: Option<&OsString>) -> Option<&str> {
    value?.to_str().filter(|text| !text.is_empty())
}
