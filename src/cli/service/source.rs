//! Which of flags, variables and profiles names the service. Pure.
//!
//! The URL and the token come from one source: `--url` and `CC_EXECUTOR_URL` go with the token of the environment, a
//! profile with its own.

use std::fmt;

use crate::{config::value::Given, outgoing::url::ServiceUrl};

/// The URL of a service if nothing names another one.
const DEFAULT_URL: &str = "ws://127.0.0.1:8003/ws/mcp";

/// Where the URL of a service comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum UrlSource {
    /// A word of the command line.
    Flag,
    /// `CC_EXECUTOR_URL`.
    Variable,
    /// The profile of this name.
    Profile(String),
    /// Nothing names a service.
    Default,
}

impl UrlSource {
    /// The URL if nothing names a service.
    pub(super) fn default_url() -> ServiceUrl {
        ServiceUrl::parse(DEFAULT_URL).expect("it is a URL")
    }
}

/// As it is added to a URL in errors.
impl fmt::Display for UrlSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UrlSource::Flag | UrlSource::Default => Ok(()),
            UrlSource::Variable => f.write_str(" (CC_EXECUTOR_URL)"),
            UrlSource::Profile(name) => write!(f, " (profile {name})"),
        }
    }
}

/// The choice between the sources.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ServiceChoice {
    /// This URL, with the token of the environment.
    Url(ServiceUrl, UrlSource),
    /// The profile of this name.
    Profile(String),
    /// The default profile, or without one the default URL with the token of the environment.
    DefaultProfile,
}

/// Chooses: a flag before a variable, and the URL before the profile.
///
/// # Errors
/// Two flags name a service.
pub(super) fn choose(
    url: Option<&Given<ServiceUrl>>,
    profile: Option<&Given<String>>,
) -> Result<ServiceChoice, String> {
    let name = |profile: &Given<String>| ServiceChoice::Profile(profile.value.clone());
    let service = |url: &Given<ServiceUrl>, source| ServiceChoice::Url(url.value.clone(), source);
    match (url, profile) {
        (Some(url), Some(profile)) if url.is_flag && profile.is_flag => {
            Err("--url and --profile both name a service; give one of them".to_owned())
        }
        (Some(url), _) if url.is_flag => Ok(service(url, UrlSource::Flag)),
        (_, Some(profile)) if profile.is_flag => Ok(name(profile)),
        (Some(url), _) => Ok(service(url, UrlSource::Variable)),
        (None, Some(profile)) => Ok(name(profile)),
        (None, None) => Ok(ServiceChoice::DefaultProfile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_comes_before_a_variable_and_the_url_before_the_profile() {
        let url = |is_flag| Given { value: ServiceUrl::parse("h:1").unwrap(), is_flag };
        let profile = |is_flag| Given { value: "work".to_owned(), is_flag };
        let of_url = |source| ServiceChoice::Url(url(true).value, source);
        let of_profile = ServiceChoice::Profile("work".to_owned());
        for (given_url, given_profile, choice) in [
            (Some(true), None, of_url(UrlSource::Flag)),
            (Some(true), Some(false), of_url(UrlSource::Flag)),
            (Some(false), Some(true), of_profile.clone()),
            (None, Some(true), of_profile.clone()),
            (Some(false), Some(false), of_url(UrlSource::Variable)),
            (Some(false), None, of_url(UrlSource::Variable)),
            (None, Some(false), of_profile),
            (None, None, ServiceChoice::DefaultProfile),
        ] {
            let (url, profile) = (given_url.map(url), given_profile.map(profile));
            assert_eq!(choose(url.as_ref(), profile.as_ref()), Ok(choice));
        }
        assert!(choose(Some(&url(true)), Some(&profile(true))).is_err());
        assert_eq!(UrlSource::default_url().session(), DEFAULT_URL);
    }
}
