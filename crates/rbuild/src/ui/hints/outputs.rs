//! Words of hints about outputs of builds and other files that are written.

use std::borrow::Cow;

use crate::ui::hints::hint::Hint;

/// A correction of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputRemedy {
    /// Add the type of an output.
    AddType,
    /// Use the form of an output.
    OutputForm,
    /// Use a level that the compression has.
    LevelRange { form: &'static str, most: u8 },
    /// Use a number as the level of compression.
    NumericLevel,
    /// Name the image instead of a destination.
    NameImage,
    /// Name the image that is pushed.
    AddName,
    /// Add the directory of a layout.
    AddDirectory,
    /// Add the directory of an output.
    AddDestination,
    /// Write an archive instead of a directory.
    WriteTar,
    /// Write to a file.
    LeaveTerminal,
    /// Create the parent directory.
    CreateParent,
    /// Create the directory.
    CreateFirst,
    /// Pass the path of a file.
    PassFile,
    /// Remove the file with the ID of a container, or choose another path.
    RemoveIdFile,
    /// Pass the path of a directory.
    PassDirectory,
    /// Use a path that this user can write.
    OtherPath,
    /// Use a path that can be written.
    WritablePath,
    /// Open the descriptor for writing.
    OpenForWriting,
    /// Pass something else than a socket.
    ReplaceSocket,
    /// Remove a loop of symlinks.
    RemoveLinkLoop,
}

impl From<OutputRemedy> for Hint {
    fn from(remedy: OutputRemedy) -> Hint {
        Hint(remedy.words())
    }
}

impl OutputRemedy {
    fn words(&self) -> Cow<'static, str> {
        match self {
            OutputRemedy::AddType => "add type=local, tar, oci or docker".into(),
            OutputRemedy::OutputForm => "pass a directory, or a form such as type=tar,dest=FILE".into(),
            OutputRemedy::LevelRange { form, most: 0 } => format!("omit the level; {form} has none").into(),
            OutputRemedy::LevelRange { form, most } => format!("use a level of {form} from 0 to {most}").into(),
            OutputRemedy::NumericLevel => "use a number, for example compression-level=9".into(),
            OutputRemedy::NameImage => "pass its name with name=NAME or -t NAME".into(),
            OutputRemedy::AddName => "add -t REGISTRY/NAME:TAG".into(),
            OutputRemedy::AddDirectory => "add -o DIR".into(),
            OutputRemedy::AddDestination => "add the path of a directory, for example dest=out".into(),
            OutputRemedy::WriteTar => "use type=tar,dest=-".into(),
            OutputRemedy::LeaveTerminal => "pass a file, or redirect standard output".into(),
            OutputRemedy::CreateParent => "create that directory, or choose another path".into(),
            OutputRemedy::CreateFirst => "create it first".into(),
            OutputRemedy::RemoveIdFile => {
                "remove it if that container is no longer needed, or choose another path".into()
            }
            OutputRemedy::PassFile => "pass the path of a file".into(),
            OutputRemedy::PassDirectory => "pass the path of a directory, existing or new".into(),
            OutputRemedy::OtherPath => "choose another path, or change the owner or mode of the directory".into(),
            OutputRemedy::WritablePath => "pass a writable path".into(),
            OutputRemedy::OpenForWriting => "open the descriptor for writing".into(),
            OutputRemedy::ReplaceSocket => "pass a file, a FIFO or a device".into(),
            OutputRemedy::RemoveLinkLoop => "remove the loop of symbolic links, or pass another path".into(),
        }
    }
}
