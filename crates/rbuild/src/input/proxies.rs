//! The proxies of docker's `config.json`, for commands.

use rbuild_registry::ProcessEnvironment;

use crate::exit::Failure;

/// Returns the proxies as variables, each in both cases as docker does, except those that `given`
/// sets.
pub fn beside(given: &[(String, String)]) -> Result<Vec<(String, String)>, Failure> {
    let proxies = rbuild_registry::proxies(&ProcessEnvironment::of_process())?;
    let is_given = |name: &str| given.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    let new = proxies.into_iter().filter(|(name, _)| !is_given(name));
    let both = |(name, value): (&str, String)| [(name.to_string(), value.clone()), (name.to_lowercase(), value)];
    Ok(new.flat_map(both).collect())
}

/// Adds the proxies to `given`.
pub fn with(given: Vec<(String, String)>) -> Result<Vec<(String, String)>, Failure> {
    let proxies = beside(&given)?;
    Ok([given, proxies].concat())
}
