//! Value parsers for clap that never fail.
//!
//! clap stops at the first value that its parser refuses. The parsers here refuse none: they store the problem in place
//! of the value, so that `validate` can report all problems together. Start reading at [`Checker`].

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    net::{SocketAddr, ToSocketAddrs},
    ops::RangeInclusive,
    sync::Arc,
};

use clap::{
    Arg, Command,
    builder::{PossibleValue, TypedValueParser, ValueParserFactory},
    error::ErrorKind,
    parser::ValueSource,
};

/// A valid value, or one line that names the flag or the variable and says what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked<T>(pub Result<T, String>);

/// Help texts leave out bounds from here up, because no sensible value comes near them.
const UNBOUNDED: u64 = 1 << 32;

type CheckText<T> = Arc<dyn Fn(&str) -> Result<T, String> + Send + Sync>;

/// A value parser that accepts every text and checks it.
#[derive(Clone)]
pub struct Checker<T> {
    check: CheckText<T>,
    possible: &'static [&'static str],
    empty_flag_is_unset: bool,
}

/// The parser of a setting: an empty flag counts as not given, as an empty variable does. The error of `check` is the
/// rest of a sentence that begins with the setting's name: `must be true or false, not "x"`.
pub fn setting<T>(check: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static) -> Checker<T> {
    Checker { check: Arc::new(check), possible: &[], empty_flag_is_unset: true }
}

/// The parser of a client's flag: an empty one is not ignored, because a script that loses a URL must not reach
/// another service.
pub fn checked<T>(check: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static) -> Checker<T> {
    Checker { empty_flag_is_unset: false, ..setting(check) }
}

/// The parser of a setting that has one of these names.
pub fn one_of<T>(names: &'static [&'static str], named: fn(&str) -> Option<T>) -> Checker<T>
where
    T: 'static,
{
    let check =
        move |text: &str| named(text).ok_or_else(|| format!("must be one of {}, not {text:?}", names.join(", ")));
    Checker { possible: names, ..setting(check) }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Checker<T> {
    type Value = Checked<T>;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Checked<T>, clap::Error> {
        self.parse_ref_(command, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<Checked<T>, clap::Error> {
        let default = || arg.and_then(|arg| arg.get_default_values().first()?.to_str()).unwrap_or_default().to_owned();
        let text = match (source, value.to_str()) {
            (ValueSource::EnvVariable, None | Some("")) => default(),
            (ValueSource::CommandLine, Some("")) if self.empty_flag_is_unset => {
                arg.and_then(variable).unwrap_or_else(default)
            }
            (_, Some(text)) => text.to_owned(),
            (_, None) => return Err(clap::Error::new(ErrorKind::InvalidUtf8).with_cmd(command)),
        };
        let named = |problem| format!("{} {problem}", arg.map(|arg| name(arg, source)).unwrap_or_default());
        Ok(Checked((self.check)(&text).map_err(named)))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        (!self.possible.is_empty()).then(|| Box::new(self.possible.iter().map(PossibleValue::new)) as _)
    }
}

/// The name that the user gave an argument: of the flag, or of the variable.
fn name(arg: &Arg, source: ValueSource) -> String {
    let flag = arg.get_long().map(|long| format!("--{long}"));
    match (source, arg.get_env()) {
        (ValueSource::CommandLine, _) | (_, None) => flag.unwrap_or_else(|| arg.to_string()),
        (_, Some(variable)) => variable.to_string_lossy().into_owned(),
    }
}

/// The value of an argument's variable, if that is set, is text and is not empty.
pub fn variable(arg: &Arg) -> Option<String> {
    env::var(arg.get_env()?).ok().filter(|value| !value.is_empty())
}

/// The parser of a number without a range, because clap's derive asks for one before it sees the range.
impl ValueParserFactory for Checked<u64> {
    type Parser = Checker<u64>;

    fn value_parser() -> Checker<u64> {
        setting(|text| text.parse().map_err(|_| format!("must be a whole number, not {text:?}")))
    }
}

/// Declares the range of a whole number, for the check and for the help text.
pub trait RangeExt {
    /// As an attribute of clap's derive: `#[arg(long, range = 1..=64)]` on a `Checked<u64>`.
    #[must_use]
    fn range(self, range: RangeInclusive<u64>) -> Self;
}

impl RangeExt for Arg {
    fn range(self, range: RangeInclusive<u64>) -> Arg {
        let (low, high) = (*range.start(), *range.end());
        let help = self.get_help().map(ToString::to_string).unwrap_or_default();
        let help = match (low, high) {
            (0 | 1, UNBOUNDED..) => help,
            (low, UNBOUNDED..) => format!("{help} (at least {low})"),
            (low, high) => format!("{help} ({low} to {high})"),
        };
        self.help(help).value_parser(setting(move |text| match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {low} to {high}, not {text:?}")),
        }))
    }
}

/// Reads a switch, which a variable may turn off, too.
///
/// # Errors
/// It is neither true nor false.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        _ => Err(format!("must be true or false, not {text:?}")),
    }
}

/// A list as it was given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CommaSeparated(pub Vec<String>);

/// Reads a list with commas. Blanks around its items and empty items are ignored.
///
/// # Errors
/// None: every text is a list.
pub fn comma_separated(text: &str) -> Result<CommaSeparated, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Ok(CommaSeparated(items.map(str::to_owned).collect()))
}

/// Accepts any text.
///
/// # Errors
/// None.
pub fn any_text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Resolves the address to listen on.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| format!("must be an address and a port such as 127.0.0.1:8003, not {text:?}"))
}

/// Reads the URL of a backend, without the slash at its end.
pub(super) fn backend_url(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    let is_plain = |authority: &str| !authority.is_empty() && !authority.contains(['/', '@', '?', '#', ' ']);
    match url.strip_prefix("http://") {
        Some(authority) if is_plain(authority) => Ok(url.to_owned()),
        None if text.is_empty() => Ok(String::new()),
        _ => Err(format!("must be like http://claude-api:8000, not {text:?}")),
    }
}

/// Reads executors that the operator adds.
pub(super) fn executors(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(text).map_err(|error| format!("must be a JSON object of argument lists: {error}"))
}
