use std::fmt;
use std::io;
use std::path::Path;

/// A failed system call: its name, its object, and the kernel's error.
#[derive(Debug)]
pub struct Error {
    call: &'static str,
    object: String,
    source: io::Error,
    /// The cause and a remedy in one sentence, if known.
    hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(call: &'static str, object: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Error { call, object: object.as_ref().to_string_lossy().into_owned(), source: source.into(), hint: None }
    }

    /// Returns the error for an object that is read as a file but has another type.
    pub(crate) fn not_a_file(call: &'static str, object: impl AsRef<Path>, noun: &str) -> Self {
        Error::new(call, object, io::Error::other(format!("it is {noun} and not a file")))
    }

    pub(crate) fn with_hint(self, hint: Option<String>) -> Self {
        Error { hint, ..self }
    }

    /// Returns the cause and a remedy, if known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns the raw `errno`, if the kernel reported the failure.
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

    /// Returns true if the file system is full or the quota is exhausted.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOSPC) | Some(libc::EDQUOT))
    }
}

/// Number of characters shown at each end of a shortened path.
const SHOWN: usize = 100;

/// Formats a path for a message. A very long path is shortened to both ends and its depth.
pub fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    let length = text.chars().count();
    if length <= 3 * SHOWN {
        return text.into_owned();
    }
    let (start, end): (String, String) =
        (text.chars().take(SHOWN).collect(), text.chars().skip(length - SHOWN).collect());
    format!("{start}…{end} ({} directories deep)", path.components().count())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = shown_path(Path::new(&self.object));
        match self.errno() {
            Some(libc::ELOOP) => write!(
                f,
                "{object:?} leads round in a circle by symbolic links; remove the link that leads to itself, or have it \
                 lead elsewhere"
            )?,
            Some(libc::ENAMETOOLONG) => {
                write!(f, "{object:?} has a longer name than the file system takes (255 bytes, as a rule); shorten it")?
            }
            Some(libc::EMFILE) => write!(
                f,
                "{object:?} cannot be opened, as this process may open no more files; raise the limit (ulimit -n)"
            )?,
            _ => write!(f, "{}({object:?}): {}", self.call, self.source)?,
        }
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
