//! Events of a build.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};

use rbuild_dockerfile::Help;
use rbuild_image::human_size;
use rbuild_linux::parallel::locked;
pub use rbuild_remedy::Warning;
use rbuild_sandbox::Stream;
pub use rbuild_store::StepOutcome;

/// An event of a build. Events of one step arrive in order. Steps are identified by their vertex.
#[derive(Debug)]
pub enum Event {
    /// The isolation mode of commands; the first event of a build that runs any.
    Isolation {
        mode: &'static str,
    },
    /// The number of steps of all platforms, including the images that they start from. Sent once,
    /// before the steps of a build that runs any.
    Total {
        steps: usize,
    },
    /// A step waits for its `inputs`. Sent once per step, before the first step runs.
    Waiting {
        step: usize,
        label: String,
        text: String,
        inputs: Vec<usize>,
    },
    /// A step starts; `label` is like `builder 3/7`.
    Started {
        step: usize,
        label: String,
        text: String,
    },
    /// The reason why a step runs or is cached.
    Reason {
        step: usize,
        text: String,
    },
    Output {
        step: usize,
        stream: Stream,
        bytes: OutputChunk,
    },
    Done {
        step: usize,
        outcome: StepOutcome,
        seconds: f64,
    },
    /// A step that has started moves bytes.
    Moving {
        step: usize,
        meter: Meter,
    },
    /// The layers of an image are being downloaded: bytes that have arrived, and their total.
    Pulling {
        image: String,
        moved: u64,
        total: u64,
    },
    /// Work that is not a step of the Dockerfile begins; `text` is a short description.
    PhaseStarted {
        phase: usize,
        text: String,
        meter: Meter,
    },
    /// That work ends, after `seconds` if it was completed.
    PhaseEnded {
        phase: usize,
        seconds: Option<f64>,
    },
    /// Work that has ended, and whose beginning was not reported.
    Phase {
        text: String,
        seconds: f64,
    },
    Warning(Warning<Help>),
    /// The build has failed, and its error is about to be printed. Nothing is drawn after this
    /// event.
    Failed,
    /// The build was interrupted. Nothing is drawn after this event.
    Interrupted,
}

/// A counter of bytes that are unpacked, packed or written, and the number at its end if it is
/// known.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    pub moved: Arc<AtomicU64>,
    pub total: Option<u64>,
}

/// Work of a build that is not a step of the Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuildPhase {
    Layers,
    Files,
    Tar,
    Archive,
    /// Layers of caches are copied into the store.
    Import,
    Eviction {
        freed: u64,
    },
}

impl fmt::Display for BuildPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildPhase::Layers => f.write_str("packing layers"),
            BuildPhase::Files => f.write_str("writing files"),
            BuildPhase::Tar => f.write_str("writing the tar archive"),
            BuildPhase::Archive => f.write_str("writing the archive"),
            BuildPhase::Import => f.write_str("reading the cache"),
            BuildPhase::Eviction { freed } => write!(f, "cache limit reached: freed {}", human_size(*freed)),
        }
    }
}

/// A chunk of a command's output. It counts against `MAX_IN_FLIGHT` until it is dropped.
#[derive(Debug)]
pub struct OutputChunk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) in_flight: Option<Arc<OutputInFlight>>,
}

impl std::ops::Deref for OutputChunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<&str> for OutputChunk {
    fn from(text: &str) -> OutputChunk {
        OutputChunk { bytes: text.into(), in_flight: None }
    }
}

impl Drop for OutputChunk {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.in_flight {
            *locked(&in_flight.taken) -= self.bytes.len();
            in_flight.freed.notify_all();
        }
    }
}

/// Counter of output bytes that were sent but not yet drawn.
#[derive(Debug, Default)]
pub(crate) struct OutputInFlight {
    pub(crate) taken: Mutex<usize>,
    pub(crate) freed: Condvar,
}

/// Maximum number of output bytes in flight. A command that prints faster than the terminal can
/// draw must wait, as it would if it wrote to the terminal itself.
pub(crate) const MAX_IN_FLIGHT: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn phases_are_as_recorded() {
        let phases = [
            BuildPhase::Layers,
            BuildPhase::Files,
            BuildPhase::Tar,
            BuildPhase::Archive,
            BuildPhase::Import,
            BuildPhase::Eviction { freed: 3_000_000 },
        ];
        let variants = variants!(BuildPhase { Layers, Files, Tar, Archive, Import, Eviction });
        assert_recorded!("BuildPhase", variants.words(&phases, ToString::to_string));
    }
}
