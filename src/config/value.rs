//! Value parsers for clap that let it report all problems together.
//!
//! clap stops at the first value that its parser refuses. Inside [`collect`] the parsers here refuse no value: for a
//! wrong one they record the problem and return a placeholder. `collect` returns the problems; a caller that gets any
//! must not use the values. Outside `collect` they refuse wrong values as usual. Start reading at [`Checker`].

use std::{
    cell::RefCell,
    collections::BTreeMap,
    env,
    ffi::OsStr,
    net::{SocketAddr, ToSocketAddrs},
    ops::RangeInclusive,
    sync::Arc,
};

use clap::{
    Arg, Command,
    builder::{PossibleValue, TypedValueParser},
    error::ErrorKind,
    parser::ValueSource,
};

use super::Problems;
use crate::outgoing::url::ServiceUrl;

thread_local! {
    /// The problems of the values that clap has parsed inside [`collect`]; `None` outside. They are not a field of
    /// [`Checker`], because clap's derive gives the parsers no common context.
    static FOUND: RefCell<Option<Problems>> = const { RefCell::new(None) };
}

/// Runs clap, and returns its result with the problems of the parsed values.
pub fn collect<T>(parse: impl FnOnce() -> T) -> (T, Problems) {
    let outer = FOUND.replace(Some(Problems::default()));
    let parsed = parse();
    (parsed, FOUND.replace(outer).unwrap_or_default())
}

/// Help texts leave out bounds from here up, because no sensible value comes near them.
const UNBOUNDED: u64 = 1 << 32;

type CheckText<T> = Arc<dyn Fn(&str) -> Result<T, String> + Send + Sync>;

/// A value parser that records a problem if its check fails. The error of the check is the rest
/// of a sentence that begins with the name of the flag or the variable: `must be true or false, not "x"`.
#[derive(Clone)]
pub struct Checker<T> {
    check: CheckText<T>,
    placeholder: fn() -> T,
    possible: &'static [&'static str],
    empty_flag_is_unset: bool,
}

impl<T> Checker<T> {
    /// The parser of a client's flag, with the value to return for a wrong text. An empty flag is checked like any
    /// other value, because a script whose URL variable is empty must not reach the default service.
    pub fn new(check: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static, placeholder: fn() -> T) -> Self {
        Checker { check: Arc::new(check), placeholder, possible: &[], empty_flag_is_unset: false }
    }
}

/// The parser of a client's flag, see [`Checker::new`].
pub fn checked<T: Default>(check: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static) -> Checker<T> {
    Checker::new(check, T::default)
}

/// The parser of a setting: an empty flag counts as not given, as an empty variable does.
pub fn setting<T: Default>(check: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static) -> Checker<T> {
    Checker { empty_flag_is_unset: true, ..checked(check) }
}

/// The parser of a setting that has one of these names.
pub fn one_of<T: Default + 'static>(names: &'static [&'static str], named: fn(&str) -> Option<T>) -> Checker<T> {
    let check =
        move |text: &str| named(text).ok_or_else(|| format!("must be one of {}, not {text:?}", names.join(", ")));
    Checker { possible: names, ..setting(check) }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Checker<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        self.parse_ref_(command, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<T, clap::Error> {
        let default = || arg.and_then(|arg| arg.get_default_values().first()?.to_str()).unwrap_or_default().to_owned();
        let (text, source) = match (source, value.to_str()) {
            (ValueSource::EnvVariable, None | Some("")) => (default(), source),
            (ValueSource::CommandLine, Some("")) if self.empty_flag_is_unset => match arg.and_then(variable) {
                Some(text) => (text, ValueSource::EnvVariable),
                None => (default(), source),
            },
            (_, Some(text)) => (text.to_owned(), source),
            (_, None) => return Err(clap::Error::new(ErrorKind::InvalidUtf8).with_cmd(command)),
        };
        (self.check)(&text).or_else(|problem| {
            let name = arg.map(|arg| name(arg, source)).unwrap_or_default();
            FOUND.with_borrow_mut(|found| match found {
                Some(found) => {
                    found.add(&name, problem);
                    Ok((self.placeholder)())
                }
                None => Err(clap::Error::raw(ErrorKind::ValueValidation, format!("{name} {problem}\n"))),
            })
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        (!self.possible.is_empty()).then(|| Box::new(self.possible.iter().map(PossibleValue::new)) as _)
    }
}

/// The value of a client's flag or of its variable, and which of them gave it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// Whether it comes from the flag.
    pub is_flag: bool,
}

/// What [`GivenParser`] returns: `None` for an empty variable, which counts as unset.
pub type MaybeGiven<T> = Option<Given<T>>;

/// Adds to a parser which source its value comes from. See [`given`].
#[derive(Clone)]
pub struct GivenParser<T>(Checker<T>);

/// The parser of a flag whose value counts before those of other settings, but the value of its variable does not.
pub fn given<T>(checker: Checker<T>) -> GivenParser<T> {
    GivenParser(checker)
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for GivenParser<T> {
    type Value = MaybeGiven<T>;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<MaybeGiven<T>, clap::Error> {
        self.parse_ref_(command, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<MaybeGiven<T>, clap::Error> {
        if source == ValueSource::EnvVariable && value.to_str().is_none_or(str::is_empty) {
            return Ok(None);
        }
        let value = self.0.parse_ref_(command, arg, value, source)?;
        Ok(Some(Given { value, is_flag: source == ValueSource::CommandLine }))
    }
}

/// How a problem names an argument: by its variable if the value came from there, otherwise by its flag.
pub(super) fn name(arg: &Arg, source: ValueSource) -> String {
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

/// Declares the range of a whole number, for the check and for the help text.
pub trait RangeExt {
    /// As an attribute of clap's derive: `#[arg(long, range = 1..=64)]` on a `u64`.
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
        // With negative numbers a problem names the flag and its range. Otherwise clap takes `-1` for an unknown flag.
        self.help(help).allow_negative_numbers(true).value_parser(setting(move |text| match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {low} to {high}, not {text:?}")),
        }))
    }
}

/// Reads a whole number.
///
/// # Errors
/// The text is not a number, or does not fit into 64 bits.
pub fn whole_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("must be a whole number, not {text:?}"))
}

/// Reads a switch, which a variable may also turn off.
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

/// A list with commas. clap would take a plain `Vec` for a flag that may be repeated.
pub type CommaSeparated = Vec<String>;

/// Reads a list with commas. Blanks around its items and empty items are ignored.
///
/// # Errors
/// None: every text is a list.
pub fn comma_separated(text: &str) -> Result<CommaSeparated, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Ok(items.map(str::to_owned).collect())
}

/// Resolves the address to listen on.
fn read_address(text: &str) -> Result<SocketAddr, String> {
    // The syntax first, because the resolver's error for a text without a port does not say so.
    let has_port = text.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
    if !has_port {
        return Err(format!("must be an address and a port such as 127.0.0.1:8003, not {text:?}"));
    }
    match text.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(format!("names {text:?}, which has no address; use an address of this machine")),
        Err(error) => Err(format!("names {text:?}, which cannot be resolved: {error}; use an address of this machine")),
    }
}

/// The parser of the address to listen on.
pub(super) fn address() -> Checker<SocketAddr> {
    let placeholder = || SocketAddr::from(([127, 0, 0, 1], 0));
    Checker { empty_flag_is_unset: true, ..Checker::new(read_address, placeholder) }
}

/// The parser of a backend's URL. The placeholder is a URL, so that settings that cannot be combined with a remote
/// backend are still reported when its URL is wrong.
pub(super) fn backend_url() -> Checker<BackendUrl> {
    let placeholder = || ServiceUrl::parse("http://placeholder").ok();
    Checker { empty_flag_is_unset: true, ..Checker::new(read_backend_url, placeholder) }
}

/// The URL of a backend. `None` is an empty text, which counts as not given.
pub(super) type BackendUrl = Option<ServiceUrl>;

/// Reads the URL of a backend.
fn read_backend_url(text: &str) -> Result<BackendUrl, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let is_http = text.starts_with("http://") || text.starts_with("https://");
    match ServiceUrl::parse(text) {
        Ok(url) if is_http => Ok(Some(url)),
        _ if text.contains('@') => Err("must be http[s]://HOST[:PORT][/PATH] without a user name".to_owned()),
        _ => Err(format!("must be http[s]://HOST[:PORT][/PATH], not {text:?}")),
    }
}

/// Reads executors that the operator adds.
pub(super) fn executors(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(text).map_err(|error| {
        format!(
            "must be a JSON object of argument lists, such as {{\"node\":[\"node\",\"-e\",\"{{command}}\"]}}: {error}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64, clap::Error> {
        checked(whole_number).parse_ref(&Command::new("test"), Some(&Arg::new("n").long("number")), OsStr::new(text))
    }

    #[test]
    fn an_address_that_cannot_be_resolved_is_told_from_a_wrong_text() {
        for (text, problem) in [
            ("127.0.0.1", "must be an address and a port"),
            (":8003", "must be an address and a port"),
            ("host:http", "must be an address and a port"),
            ("no-such-host.invalid:1", "names \"no-such-host.invalid:1\", which cannot be resolved: "),
        ] {
            let refused = read_address(text).unwrap_err();
            assert!(refused.starts_with(problem), "{refused}");
        }
        assert_eq!(read_address("[::1]:7"), Ok("[::1]:7".parse().unwrap()));
    }

    #[test]
    fn wrong_values_are_collected_in_their_own_scope_and_refused_outside() {
        let refused = parse("x").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ValueValidation);
        assert!(refused.to_string().contains("--number must be a whole number, not \"x\""), "{refused}");
        let lines = |problems: Problems| problems.0.len();
        let (inner, outer) = collect(|| {
            parse("x").unwrap();
            let inner = collect(|| [parse("y").unwrap(), parse("z").unwrap(), parse("7").unwrap()]);
            parse("x").unwrap();
            inner
        });
        assert_eq!((inner.0, lines(inner.1), lines(outer)), ([0, 0, 7], 2, 2));
        assert!(parse("x").is_err(), "the scope has ended");
    }
}
