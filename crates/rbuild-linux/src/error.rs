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

    /// Of something that is read as a file and is none.
    pub(crate) fn not_a_file(call: &'static str, object: impl AsRef<Path>, noun: &str) -> Self {
        Error::new(call, object, io::Error::other(format!("it is {noun} and not a file")))
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

/// Characters of a path that are shown at each end of a longer one.
const SHOWN: usize = 100;

/// A path for a message; of a very long one both ends, and how deep it is.
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
