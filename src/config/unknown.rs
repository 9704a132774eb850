//! Variables that look like settings and are none: most of them are mistyped, and would be ignored without a word. Pure.

/// The beginning of the names of all settings.
const PREFIX: &str = "CC_EXECUTOR_";

/// The settings of the containers on the host (deploy/compose.yaml), which the binary does not read.
const OF_COMPOSE: [&str; 5] = [
    "CC_EXECUTOR_PUBLISH",
    "CC_EXECUTOR_PORT",
    "CC_EXECUTOR_CLAUDE_HOME",
    "CC_EXECUTOR_WORKSPACE",
    "CC_EXECUTOR_STATE",
];

/// A warning for each of these variables that is no setting. It names the known one that is nearest.
pub fn unknown_variables(variables: impl IntoIterator<Item = (String, String)>, known: &[String]) -> Vec<String> {
    let is_known = |name: &str| known.iter().any(|known| known == name) || OF_COMPOSE.contains(&name);
    let mut names: Vec<_> = variables
        .into_iter()
        .filter(|(name, value)| name.starts_with(PREFIX) && !is_known(name) && !is_service_link(name, value))
        .map(|(name, _)| name)
        .collect();
    names.sort();
    let warning = |name: String| {
        let nearest = known
            .iter()
            .filter(|known| known.starts_with(PREFIX))
            .min_by_key(|known| strsim::damerau_levenshtein(known, &name));
        let advice = nearest.map(|nearest| format!("; the nearest one is {nearest}")).unwrap_or_default();
        format!("{name} is no setting of cc-executor and has no effect{advice}")
    };
    names.into_iter().map(warning).collect()
}

/// Whether Kubernetes or Docker has set a variable for a service whose name begins with `cc-executor`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_port = |text: &str| text.split_once('_').unwrap_or((text, "")).0.parse::<u16>().is_ok();
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split("_PORT_").skip(1).any(is_port)
        || (name.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_variable_is_named_with_the_nearest_setting() {
        let known = ["CC_EXECUTOR_TOKEN", "CC_EXECUTOR_TOKEN_FILE", "CC_EXECUTOR_URL", "LOG_FORMAT"].map(str::to_owned);
        let warnings = |names: &[&str]| {
            unknown_variables(names.iter().map(|name| ((*name).to_owned(), "tcp://10.0.0.1:8003".to_owned())), &known)
        };
        for (name, nearest) in [
            ("CC_EXECUTOR_TOKN", "CC_EXECUTOR_TOKEN"),
            ("CC_EXECUTOR_TOKEN_FLIE", "CC_EXECUTOR_TOKEN_FILE"),
            ("CC_EXECUTOR_ULR", "CC_EXECUTOR_URL"),
        ] {
            let [warning] = &warnings(&[name])[..] else { panic!("{name}") };
            assert_eq!(
                warning,
                &format!("{name} is no setting of cc-executor and has no effect; the nearest one is {nearest}")
            );
        }
        let fine = [
            "CC_EXECUTOR_TOKEN",
            "CC_EXECUTOR_PORT",
            "CC_EXECUTOR_STATE",
            "CC_EXECUTORS",
            "LOG_FORMATS",
            "CC_EXECUTOR_SERVICE_HOST",
            "CC_EXECUTOR_SERVICE_PORT",
            "CC_EXECUTOR_SERVICE_PORT_WS",
            "CC_EXECUTOR_PORT_8003_TCP",
            "CC_EXECUTOR_PORT_8003_TCP_PROTO",
            "CC_EXECUTOR_PORT_8003_TCP_PORT",
            "CC_EXECUTOR_PORT_8003_TCP_ADDR",
            "CC_EXECUTOR_MCP_PORT",
        ];
        assert!(warnings(&fine).is_empty(), "{:?}", warnings(&fine));
    }
}
