//! The file that receives the ID of a container.

use std::path::PathBuf;

use rbuild_linux::quoted;
use rbuild_store::ContainerId;

use crate::exit::Failure;
use crate::input::output;
use crate::ui::hints::OutputRemedy;

/// The file that receives the ID of a container, `--cidfile`.
pub struct IdFile {
    path: PathBuf,
    file: rbuild_linux::Destination,
}

impl IdFile {
    /// Opens the file, which must not exist.
    ///
    /// # Errors
    ///
    /// Fails if it exists or cannot be created.
    pub fn open(path: &PathBuf) -> Result<IdFile, Failure> {
        if path.exists() {
            let failure = Failure::new(format!("--cidfile {}: the file exists", quoted(path)));
            return Err(failure.help(OutputRemedy::RemoveIdFile));
        }
        Ok(IdFile { path: path.clone(), file: output::file("the file for the ID", path)? })
    }

    /// Writes the ID.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written.
    pub fn write(&self, id: &ContainerId) -> Result<(), Failure> {
        let written = self.file.write(id.hex().as_bytes());
        written.map_err(|e| output::unwritten("the file for the ID", &self.path, e))
    }
}
