//! The pull of the image of a container that is about to start. A builder unpacks its layers while
//! a fetcher downloads them.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, channel};

use rbuild_engine::{BuildError, Event, Events, ImageRequest, unpack_arriving};
use rbuild_image::ManifestDigest;
use rbuild_linux::Timestamp;
use rbuild_linux::parallel::start;
use rbuild_remedy::ReportedError;
use rbuild_sandbox::{Builder, BuilderConfig, Cancel, SandboxError, enter};
use rbuild_store::{Image, Store};
use rbuild_transport::WantedImage;

use crate::args::RegistryFlags;
use crate::commands::fetcher::pulls::Pulls;
use crate::commands::fetcher::task::interrupted;
use crate::commands::in_builder::{killed, read_answer, store_config, store_in, unread};
use crate::commands::transfer::{TransferDisplay, shown_name};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::terminal;
use crate::ui::transfer_bar::TransferBar;

/// Pulls an image and unpacks it; returns its manifest, or the reason why it cannot be pulled. The
/// caller must have one thread.
///
/// # Errors
///
/// Fails if a signal interrupts the pull, if the flags are invalid, or if no builder can be
/// started.
pub fn pull(
    settings: &Settings,
    store: &Store,
    flags: &RegistryFlags,
    wanted: &WantedImage<'_>,
    display: TransferDisplay,
) -> Result<Result<ManifestDigest, ReportedError>, Failure> {
    let pulls = Pulls::new(store, flags, std::slice::from_ref(wanted.name), display).with_other_platforms(wanted.other);
    let request = ImageRequest { name: wanted.name.clone(), platform: wanted.platform.clone() };
    let begun = pulls.begin(&[request])?.pop();
    let image = match begun.ok_or_else(|| Failure::new("the fetcher ended without an answer"))? {
        Ok(Some(image)) => image,
        Ok(None) => {
            pulls.end(true);
            let stored = store.images().pulled_image(wanted.name, wanted.platform)?;
            let gone = || Failure::new(format!("`{}` was removed while it was pulled", wanted.name.familiar()));
            return Ok(Ok(stored.ok_or_else(gone)?.1.manifest_digest));
        }
        Err(e) => {
            pulls.end(true);
            return Ok(Err(e));
        }
    };
    let arrival = Arrival { store, pulls: &pulls, image: &image, doing: doing(wanted), display };
    let arrived = arrival.in_builder(settings);
    pulls.end(matches!(arrived, Ok(Ok(()))));
    Ok(arrived?.map(|()| image.manifest_digest))
}

fn doing(wanted: &WantedImage<'_>) -> String {
    format!("pulling {}", shown_name(wanted.name, wanted.platform))
}

/// The outcome in the builder: the failure of the download, or of the builder.
type Arrived = Result<Result<(), ReportedError>, Failure>;

/// An image whose layers are about to be ordered.
struct Arrival<'a> {
    store: &'a Store,
    pulls: &'a Pulls<'a>,
    image: &'a Image,
    doing: String,
    display: TransferDisplay,
}

impl Arrival<'_> {
    /// Orders the layers, and unpacks them in a builder process.
    fn in_builder(&self, settings: &Settings) -> Arrived {
        let config = BuilderConfig { expendable: self.pulls.processes(), ..store_config(self.store) };
        self.pulls.order(|_| true);
        let (answer, mut writer) = std::io::pipe().map_err(unread)?;
        let ended = enter(&config, settings.isolation, |builder| {
            let arrived: Arrived = self.unpack(builder);
            let _ = serde_json::to_writer(&mut writer, &arrived);
            i32::from(code::OK)
        })?;
        drop(writer);
        match ended.code {
            _ if ended.stopped => Err(interrupted()),
            signal if signal > 128 => Err(killed(signal - 128)),
            _ => read_answer::<Arrived>(answer)?,
        }
    }

    fn unpack(&self, builder: Result<Builder, SandboxError>) -> Arrived {
        let builder = builder?;
        let cancel = Cancel::default();
        let stop = cancel.clone();
        let stopped = move |_| {
            stop.cancel();
            ControlFlow::Break(())
        };
        builder.on_stop(stopped).map_err(BuildError::kernel("the builder"))?;
        let (sender, events) = channel();
        let sender = Events::new(sender);
        let (doing, display) = (self.doing.clone(), self.display);
        let showing = start(move || show(&events, &doing, display));
        let images = self.pulls.receive(&sender);
        let images = images.map_err(|e| Failure::caused("cannot receive the image", &e))?;
        let store = store_in(&builder, self.store)?.with_incoming(images.incoming.clone());
        let notices = sender.clone();
        let store = store
            .with_stop(move || cancel.is_canceled())
            .with_notices(move |text| notices.send(Event::Warning(text.into())));
        let arrived = unpack_arriving(&store, self.image, Timestamp::now().sec);
        images.end();
        drop((store, sender));
        showing.map(std::thread::JoinHandle::join).ok();
        Ok(arrived?)
    }
}

/// Shows the progress of a pull until all senders have been dropped.
fn show(events: &Receiver<Event>, doing: &str, display: TransferDisplay) {
    let mut bar: Option<TransferBar> = None;
    for event in events {
        match event {
            Event::Warning(warning) => terminal::warning(warning),
            Event::Pulling { moved, total, .. } if display == TransferDisplay::Bar => {
                let bar = bar.get_or_insert_with(|| TransferBar::start(doing, Some(total)));
                bar.moved().store(moved, std::sync::atomic::Ordering::Relaxed);
            }
            _ => {}
        }
    }
}
