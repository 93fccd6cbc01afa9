use std::fmt;
use std::io;
use std::path::Path;

/// A system call that failed: its name, what it was asked about, and the kernel's answer.
#[derive(Debug)]
pub struct Error {
    call: &'static str,
    object: String,
    source: io::Error,
    /// Why, in a sentence that says what can be done, where that is known.
    hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(call: &'static str, object: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Error { call, object: object.as_ref().to_string_lossy().into_owned(), source: source.into(), hint: None }
    }

    pub(crate) fn with_hint(self, hint: Option<String>) -> Self {
        Error { hint, ..self }
    }

    /// Why it failed and what can be done, if that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The raw `errno`, if the failure came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    pub fn call(&self) -> &'static str {
        self.call
    }

    pub fn object(&self) -> &str {
        &self.object
    }

    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }

    /// No space or no quota left where the object lives.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOSPC) | Some(libc::EDQUOT))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:?}): {}", self.call, self.object, self.source)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> io::Error {
        io::Error::new(e.kind(), e)
    }
}
