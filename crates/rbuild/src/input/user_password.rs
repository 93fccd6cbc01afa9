//! Credentials of the form USER:PASSWORD.

use crate::exit::Failure;

/// Returns the name of the setting that contains the credentials.
pub fn setting(by_flag: bool) -> &'static str {
    if by_flag { "--creds" } else { "RBUILD_CREDS" }
}

/// Splits credentials. `by_flag` is true if they come from the flag, false if from the variable.
///
/// # Errors
///
/// Fails if they are not of the form USER:PASSWORD.
pub fn user_and_password(pair: &str, by_flag: bool) -> Result<(&str, &str), Failure> {
    pair.split_once(':')
        .filter(|(user, password)| !user.is_empty() && !password.is_empty())
        .ok_or_else(|| Failure::usage(format!("{}: the value is not of the form USER:PASSWORD", setting(by_flag))))
}
