//! Module names in log filters. Operators write `realign::api`; the code is in the crate
//! `realign_server`, and the crates' layout may change without breaking anyone's filter.

/// Modules by the names in operators' filters, and the paths of their code.
const MODULES: [(&str, &str); 15] = [
    ("realign::adapter", "realign_engine::adapter"),
    ("realign::api", "realign_server::api"),
    ("realign::config", "realign_server::config"),
    ("realign::control", "realign_server::control"),
    ("realign::engine", "realign_engine"),
    ("realign::gate", "realign_align::gate"),
    ("realign::impact", "realign_align::impact"),
    ("realign::model", "realign_model"),
    ("realign::oracle", "realign_align::oracle"),
    ("realign::policy", "realign_align::policy"),
    ("realign::preferences", "realign_align::preferences"),
    ("realign::server", "realign_server::serve"),
    ("realign::state", "realign_server::state"),
    ("realign::telemetry", "realign_server::telemetry"),
    ("realign::train", "realign_align::train"),
];

/// A filter with operators' names replaced by paths of the code.
pub(super) fn resolved(filter: &str) -> String {
    replaced(filter, |(public, code)| (public, code))
}

/// A filter with paths of the code replaced by operators' names.
pub(super) fn shown(filter: &str) -> String {
    replaced(filter, |(public, code)| (code, public))
}

fn replaced(
    filter: &str,
    direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> String {
    let part = |part: &str| {
        let found = MODULES.iter().find_map(|names| {
            let (from, to) = direction(*names);
            let rest = part.trim_start().strip_prefix(from)?;
            let whole_name = rest.is_empty() || rest.starts_with(['=', ':', '[']);
            whole_name.then(|| format!("{to}{rest}"))
        });
        found.unwrap_or_else(|| part.to_string())
    };
    filter.split(',').map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_names_reach_the_code_and_come_back() {
        for (written, code) in [
            ("info,realign::api=debug", "info,realign_server::api=debug"),
            (
                "realign::engine::runner=trace",
                "realign_engine::runner=trace",
            ),
            ("realign::apis=debug", "realign::apis=debug"),
            ("realign=debug", "realign=debug"),
        ] {
            assert_eq!(resolved(written), code);
            assert_eq!(shown(code), written);
        }
    }
}
