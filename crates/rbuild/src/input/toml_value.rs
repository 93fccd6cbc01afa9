//! Values of the configuration file.

use std::path::PathBuf;

use toml::Value;

use crate::input::value::BadValue;
use crate::ui::hints::ValueRemedy;

pub fn text(value: &Value) -> Result<&str, BadValue> {
    let bad = || BadValue { problem: "not a string".into(), hint: ValueRemedy::QuoteString.into() };
    value.as_str().ok_or_else(bad)
}

pub fn number(value: &Value) -> Result<i64, BadValue> {
    let bad = || BadValue { problem: "not a whole number".into(), hint: ValueRemedy::UnquoteNumber.into() };
    value.as_integer().ok_or_else(bad)
}

pub fn list(value: &Value) -> Result<&[Value], BadValue> {
    let bad = || BadValue { problem: "not a list".into(), hint: ValueRemedy::BracketList.into() };
    Ok(value.as_array().ok_or_else(bad)?)
}

pub fn absolute_path(text: &str) -> Result<PathBuf, BadValue> {
    let path = PathBuf::from(text);
    let bad = || BadValue { problem: "not an absolute path".into(), hint: ValueRemedy::AbsolutePath.into() };
    if path.is_absolute() { Ok(path) } else { Err(bad()) }
}
