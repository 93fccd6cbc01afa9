//! Options for packing layers.

use crate::compress::Compression;

/// Version of the layer encoding. It changes if, and only if, the same tree yields different bytes
/// in one of the forms.
pub const LAYER_FORMAT: u32 = 4;

/// The form that layers are written in. The default is gzip at its usual level, as in most images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerForm {
    /// A tar archive without compression.
    Uncompressed,
    /// Gzip (RFC 1952).
    Gzip(CompressionLevel<9>),
    /// Zstandard (RFC 8878).
    Zstd(CompressionLevel<22>),
}

/// A level from 0 to `MAX`, or the usual one of the compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CompressionLevel<const MAX: u8>(Option<u8>);

/// A level that a form does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{form} has no level {level}; the highest is {most}")]
pub struct LevelError {
    form: &'static str,
    level: i32,
    most: u8,
}

impl LevelError {
    /// Returns the name of the form.
    pub fn form(&self) -> &'static str {
        self.form
    }

    /// Returns the highest level of the form.
    pub fn most(&self) -> u8 {
        self.most
    }
}

impl<const MAX: u8> CompressionLevel<MAX> {
    /// The usual level.
    pub const USUAL: CompressionLevel<MAX> = CompressionLevel(None);

    fn new(form: &'static str, level: i32) -> Result<CompressionLevel<MAX>, LevelError> {
        let valid = u8::try_from(level).ok().filter(|level| *level <= MAX);
        let valid = valid.ok_or(LevelError { form, level, most: MAX })?;
        Ok(CompressionLevel(Some(valid)))
    }

    /// Returns the level, or else the usual one.
    pub(crate) fn or(self, usual: u8) -> u8 {
        self.0.unwrap_or(usual)
    }
}

impl Default for LayerForm {
    fn default() -> LayerForm {
        LayerForm::GZIP
    }
}

impl LayerForm {
    /// Gzip at its usual level.
    pub const GZIP: LayerForm = LayerForm::Gzip(CompressionLevel::USUAL);
    /// Zstandard at its usual level.
    pub const ZSTD: LayerForm = LayerForm::Zstd(CompressionLevel::USUAL);

    /// Returns the same form with a level. Without compression, the only level is 0.
    ///
    /// ```
    /// use rbuild_layer::LayerForm;
    ///
    /// assert_eq!(LayerForm::ZSTD.with_level(19).unwrap().name(), "zstd-19");
    /// let error = LayerForm::GZIP.with_level(10).unwrap_err();
    /// assert_eq!(error.to_string(), "gzip has no level 10; the highest is 9");
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the compression does not have that level.
    pub fn with_level(self, level: i32) -> Result<LayerForm, LevelError> {
        let form = self.compression().name();
        match self {
            LayerForm::Uncompressed => CompressionLevel::<0>::new(form, level).map(|_| LayerForm::Uncompressed),
            LayerForm::Gzip(_) => CompressionLevel::new(form, level).map(LayerForm::Gzip),
            LayerForm::Zstd(_) => CompressionLevel::new(form, level).map(LayerForm::Zstd),
        }
    }

    /// Returns the first version of the layer encoding since which the same tree yields the same
    /// bytes in this form.
    pub fn version(self) -> u32 {
        match self {
            LayerForm::Uncompressed | LayerForm::Gzip(_) => 2,
            LayerForm::Zstd(_) => 4,
        }
    }

    /// Returns the compression, as `detect` finds it in such a layer.
    pub fn compression(self) -> Compression {
        match self {
            LayerForm::Uncompressed => Compression::None,
            LayerForm::Gzip(_) => Compression::Gzip,
            LayerForm::Zstd(_) => Compression::Zstd,
        }
    }

    /// Returns a short name that is unique for every form, such as `gzip` or `zstd-19`.
    pub fn name(self) -> String {
        let level = match self {
            LayerForm::Uncompressed => None,
            LayerForm::Gzip(level) => level.0,
            LayerForm::Zstd(level) => level.0,
        };
        let level = level.map_or(String::new(), |level| format!("-{level}"));
        format!("{}{level}", self.compression().name())
    }
}

/// Handling of whiteouts, and of names that begin with `.wh.`, during packing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutEncoding {
    /// Encodes overlay whiteouts as `.wh.*` entries, as in image layers.
    Encode,
    /// The tree is a complete view without whiteouts and becomes a layer, so names that begin with
    /// `.wh.` are rejected.
    Reject,
    /// The tree is a complete view and becomes an archive of files, in which `.wh.*` names have no
    /// special meaning.
    Literal,
}

/// Handling of modification times during packing, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Times are kept.
    AsIs,
    /// Later times are set to this one.
    AtMost(i64),
    /// All times are set to this one.
    Always(i64),
}

impl Times {
    pub(crate) fn of(self, seconds: i64) -> i64 {
        match self {
            Times::AsIs => seconds,
            Times::AtMost(latest) => seconds.min(latest),
            Times::Always(time) => time,
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors =
            [LevelError { form: "gzip", level: 10, most: 9 }, LevelError { form: "zstd", level: -1, most: 22 }];
        assert_recorded!("LevelError", variants!(LevelError).table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn a_form_has_the_levels_of_its_compression() {
        let cases = [
            (LayerForm::Uncompressed, "uncompressed", 0, "uncompressed"),
            (LayerForm::GZIP, "gzip", 9, "gzip-9"),
            (LayerForm::ZSTD, "zstd", 22, "zstd-22"),
        ];
        for (form, usual, most, highest) in cases {
            assert_eq!(form.name(), usual);
            assert_eq!(form.with_level(most).unwrap().name(), highest);
            for level in [-1, most + 1, 256, i32::MAX] {
                let error = form.with_level(level).unwrap_err().to_string();
                assert_eq!(error, format!("{usual} has no level {level}; the highest is {most}"));
            }
        }
        assert_eq!(LayerForm::default(), LayerForm::GZIP);
        assert_ne!(LayerForm::GZIP.with_level(0).unwrap(), LayerForm::GZIP);
    }
}
