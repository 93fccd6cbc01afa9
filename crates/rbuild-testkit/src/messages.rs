//! Tables of the messages of error types, which tests compare with recorded ones.

use std::error::Error;
use std::fmt::Debug;

/// The variants of an enum; see [`variants!`](crate::variants).
pub struct Variants<K> {
    names: &'static [&'static str],
    name_of: fn(&K) -> &'static str,
}

impl<K> Variants<K> {
    /// Lists variants by name. `name_of` returns one of the names.
    pub fn new(names: &'static [&'static str], name_of: fn(&K) -> &'static str) -> Variants<K> {
        Variants { names, name_of }
    }

    /// Formats errors as a table: variant, message, causes and remedy of each. `kind` returns the
    /// part of an error that has the variants.
    ///
    /// # Panics
    ///
    /// Panics if there is no error of a variant, or if a message repeats that of its cause.
    pub fn table<E: Error, R: Debug>(
        &self,
        errors: &[E],
        kind: impl Fn(&E) -> &K,
        remedy: impl Fn(&E) -> Option<R>,
    ) -> String {
        let name = |error: &E| (self.name_of)(kind(error));
        let found: Vec<&str> = errors.iter().map(name).collect();
        let missing: Vec<_> = self.names.iter().filter(|name| !found.contains(name)).collect();
        assert!(missing.is_empty(), "no errors of the variants {missing:?}");
        let rows = errors.iter().zip(found).map(|(error, name)| message_row(name, error, remedy(error)));
        rows.collect()
    }
}

impl<K: Debug> Variants<K> {
    /// Formats values as a table: each value and its words.
    ///
    /// # Panics
    ///
    /// Panics if there is no value of a variant.
    pub fn words(&self, values: &[K], words: impl Fn(&K) -> String) -> String {
        let found: Vec<&str> = values.iter().map(self.name_of).collect();
        let missing: Vec<_> = self.names.iter().filter(|name| !found.contains(name)).collect();
        assert!(missing.is_empty(), "no values of the variants {missing:?}");
        values.iter().map(|value| format!("{value:?}\n  {}\n", words(value))).collect()
    }
}

/// Formats an error as a row of a table: name, message, causes and remedy.
///
/// # Panics
///
/// Panics if a message repeats that of its cause.
pub fn message_row<R: Debug>(name: &str, error: &dyn Error, remedy: Option<R>) -> String {
    let remedy = remedy.map_or(String::new(), |remedy| format!("  remedy: {remedy:?}\n"));
    format!("{name}: {}{remedy}", chain(error))
}

/// Formats a message and those of its causes, one a line.
fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut text = format!("{message}\n");
    let mut next = error.source();
    while let Some(cause) = next {
        let of_cause = cause.to_string();
        assert!(!message.contains(&of_cause), "`{message}` repeats its cause `{of_cause}`");
        text += &format!("  cause: {of_cause}\n");
        message = of_cause;
        next = cause.source();
    }
    text
}

/// The remedy of errors that have none, for [`Variants::table`].
pub fn no_remedy<E>(_: &E) -> Option<()> {
    None
}

/// Lists the variants of an enum, or names a type without variants:
/// `variants!(MyError { NotFound, Denied })`, `variants!(MyError)`. A variant that is missing in
/// the list is a compile error.
#[macro_export]
macro_rules! variants {
    ($type:ident { $($variant:ident),+ $(,)? }) => {
        $crate::Variants::new(&[$(stringify!($variant)),+], |error: &$type| match error {
            $($type::$variant { .. } => stringify!($variant),)+
        })
    };
    ($type:ident) => {
        $crate::Variants::new(&[stringify!($type)], |_: &$type| stringify!($type))
    };
}

/// Compares a table of messages with the one recorded in `tests/messages/NAME.snap` of the calling
/// crate.
#[macro_export]
macro_rules! assert_recorded {
    ($name:expr, $table:expr $(,)?) => {{
        let mut settings = $crate::insta::Settings::clone_current();
        settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/messages"));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| $crate::insta::assert_snapshot!($name, $table));
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum Sample {
        Plain,
        Caused(std::io::Error),
    }

    impl std::fmt::Display for Sample {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self {
                Sample::Plain => f.write_str("plain"),
                Sample::Caused(e) if e.kind() == std::io::ErrorKind::Other => write!(f, "caused by {e}"),
                Sample::Caused(_) => f.write_str("caused"),
            }
        }
    }

    impl Error for Sample {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            match self {
                Sample::Plain => None,
                Sample::Caused(e) => Some(e),
            }
        }
    }

    fn table(errors: &[Sample]) -> String {
        let remedy = |error: &Sample| matches!(error, Sample::Plain).then_some("decorate it");
        crate::variants!(Sample { Plain, Caused }).table(errors, |error| error, remedy)
    }

    #[test]
    #[should_panic(expected = "no values of the variants [\"Caused\"]")]
    fn words_of_a_variant_that_is_missing_are_noticed() {
        crate::variants!(Sample { Plain, Caused }).words(&[Sample::Plain], |_| String::new());
    }

    #[test]
    fn a_table_has_messages_causes_and_remedies() {
        let caused = Sample::Caused(std::io::ErrorKind::NotFound.into());
        let text = "Plain: plain\n  remedy: \"decorate it\"\nCaused: caused\n  cause: entity not found\n";
        assert_eq!(table(&[Sample::Plain, caused]), text);
    }

    #[test]
    #[should_panic(expected = "no errors of the variants [\"Caused\"]")]
    fn every_variant_is_required() {
        table(&[Sample::Plain]);
    }

    #[test]
    #[should_panic(expected = "`caused by x` repeats its cause `x`")]
    fn repeated_causes_are_refused() {
        table(&[Sample::Plain, Sample::Caused(std::io::Error::other("x"))]);
    }
}
