//! `download`: a file from a URL into the store.

use std::fs::File;
use std::io;

use rbuild_image::{Checksum, ChecksumAlgorithm, SourceUrl};
use rbuild_layer::Decoder;
use rbuild_registry::{Client, DownloadError, FileAnswer, FileEncoding, FileRequest, FileSink, Secret, Validators};
use rbuild_remedy::{ImageRemedy, Remedy, counted};
use rbuild_store::{Download, IncomingFile, Lock, Once, ReceivedFile, Store, StoreError, Workspace};

use crate::blobs::{BlobOrigin, TransferProgress};
use crate::error::{Result, TransportError};

/// A file to download.
#[derive(Debug, Clone)]
pub struct DownloadRequest<'a> {
    /// The URL.
    pub url: &'a SourceUrl,
    /// The checksum that the file must have. A stored file that has it is used without a request.
    pub checksum: Option<&'a Checksum>,
    /// Value of the `Authorization` header for the URL's own server.
    pub authorization: Option<Secret>,
}

/// Downloads a file into the store. A stored version is used if the server has no other version.
/// If several processes need the same file, one downloads it.
///
/// # Errors
///
/// Fails if the server does not send the file, if the file has another checksum or is too large, or
/// if the store cannot be written.
#[tracing::instrument(target = "transport", name = "download", level = "debug", skip_all, fields(url = %request.url))]
pub fn download(
    store: &Store,
    client: &Client,
    request: &DownloadRequest<'_>,
    progress: &TransferProgress<'_>,
) -> Result<Download> {
    let find = || match request.checksum {
        Some(checksum) => Ok(store.downloads().of_checksum(checksum, request.url)?),
        None => Ok::<_, TransportError>(None),
    };
    let make = || fetch(store, client, request, progress);
    store.once(Lock::pull(&format!("file {}", request.url.target())), find, make).map(Once::into_inner)
}

fn fetch(
    store: &Store,
    client: &Client,
    request: &DownloadRequest<'_>,
    progress: &TransferProgress<'_>,
) -> Result<Download> {
    let url = request.url;
    let stored = store.downloads().of_url(url)?;
    let validators = stored
        .as_ref()
        .map(|Download { etag, modified, digest: _, size: _ }| Validators { etag: etag.clone(), modified: *modified });
    let work = Workspace::open(store)?;
    let (validators, received) = match (receive(store, client, &work, request, validators, progress)?, stored) {
        (Some(received), _) => received,
        (None, Some(stored)) => {
            let checksums = checked(store, request, &stored)?;
            store.downloads().note(url, &checksums, &stored)?;
            return Ok(stored);
        }
        (None, None) => return Err(not_stored(url)),
    };
    let own = Checksum::from(received.digest);
    compare(request, received.checksum.as_ref().unwrap_or(&own))?;
    let (digest, size) = (received.digest, received.size);
    let checksums: Vec<Checksum> = std::iter::once(own).chain(received.checksum.clone()).collect();
    received.publish()?;
    let download = Download { digest, size, etag: validators.etag, modified: validators.modified };
    store.downloads().note(url, &checksums, &download)?;
    (progress.done)(&digest, size, BlobOrigin::Source);
    Ok(download)
}

/// Downloads a file that is used once. It takes space in the store as long as it is open.
///
/// # Errors
///
/// Fails if the server does not send the file, if the file is too large, or if the store cannot be
/// written.
pub fn download_once(store: &Store, client: &Client, url: &SourceUrl, progress: &TransferProgress<'_>) -> Result<File> {
    let work = Workspace::open(store)?;
    let request = DownloadRequest { url, checksum: None, authorization: None };
    let (_, received) = receive(store, client, &work, &request, None, progress)?.ok_or_else(|| not_stored(url))?;
    Ok(received.open()?)
}

fn not_stored(url: &SourceUrl) -> TransportError {
    TransportError::other(format!("{url} is unchanged, according to its server, but the store has no version of it"))
}

/// Receives a file, without the encoding of the transfer. Returns `None` if the version that
/// `stored` identifies is current.
fn receive<'s, 'w>(
    store: &'s Store,
    client: &Client,
    work: &'w Workspace,
    request: &DownloadRequest<'_>,
    stored: Option<Validators>,
    progress: &TransferProgress<'_>,
) -> Result<Option<(Validators, ReceivedFile<'s, 'w>)>> {
    let DownloadRequest { url, checksum, authorization } = request;
    let other = checksum.map(Checksum::algorithm).filter(|algorithm| *algorithm != ChecksumAlgorithm::Sha256);
    let hasher = move || other.map(ChecksumAlgorithm::hasher);
    let (downloads, limit) = (store.downloads(), store.limits().bytes);
    let file = downloads.receive(work, hasher)?;
    let mut sink = StoreSink { file, received: 0, limit, is_too_large: false, progress };
    let request = FileRequest { url, authorization: authorization.clone(), stored };
    let answer = client.download(&request, &mut sink);
    match answer.map_err(|e| if sink.is_too_large { too_large(url, limit) } else { e.into() })? {
        FileAnswer::Unchanged => Ok(None),
        FileAnswer::Received { validators, encoding: FileEncoding::Identity } => {
            Ok(Some((validators, sink.file.finish()?)))
        }
        FileAnswer::Received { validators, encoding: FileEncoding::Gzip } => {
            let plain = decoded(sink.file.finish()?, downloads.receive(work, hasher)?, url, limit)?;
            Ok(Some((validators, plain)))
        }
    }
}

/// Decompresses content that a server compressed although the request did not permit it.
fn decoded<'s, 'w>(
    packed: ReceivedFile<'s, 'w>,
    mut file: IncomingFile<'s, 'w>,
    url: &SourceUrl,
    limit: u64,
) -> Result<ReceivedFile<'s, 'w>> {
    let reading = || TransportError::io(format!("cannot decompress {url}"));
    let mut content = Decoder::new(packed.open()?).map_err(reading())?;
    let (mut chunk, mut size) = (vec![0; 256 << 10], 0);
    loop {
        match io::Read::read(&mut content, &mut chunk) {
            Ok(0) => return Ok(file.finish()?),
            Ok(n) => {
                size += n as u64;
                if size > limit {
                    return Err(too_large(url, limit));
                }
                file.add(&chunk[..n]).map_err(|source| DownloadError::Sink { url: Box::new(url.clone()), source })?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(reading()(e)),
        }
    }
}

/// Compares a stored file with the requested checksum. Returns the checksum.
fn checked(store: &Store, request: &DownloadRequest<'_>, stored: &Download) -> Result<Vec<Checksum>> {
    let Some(checksum) = request.checksum else { return Ok(Vec::new()) };
    let mut hasher = checksum.algorithm().hasher();
    store.blobs().read_blob::<StoreError>(&stored.digest, |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    compare(request, &hasher.finish())?;
    Ok(vec![checksum.clone()])
}

/// Fails if the file has another checksum than the requested one, of the same algorithm.
fn compare(request: &DownloadRequest<'_>, found: &Checksum) -> Result<()> {
    match request.checksum {
        Some(wanted) if wanted != found => Err(TransportError::Other {
            message: format!("{} has the checksum {found}, not {wanted}", request.url),
            help: Some(ImageRemedy::CheckSource.into()),
        }),
        _ => Ok(()),
    }
}

fn too_large(url: &SourceUrl, limit: u64) -> TransportError {
    TransportError::Other {
        message: format!("{url} has more than {}, the limit on files", counted(limit, "byte")),
        help: Some(Remedy::Image(ImageRemedy::RaiseLimit { name: "bytes".into() })),
    }
}

/// Receives a file in the store.
struct StoreSink<'a, 's, 'w> {
    file: IncomingFile<'s, 'w>,
    received: u64,
    limit: u64,
    is_too_large: bool,
    progress: &'a TransferProgress<'a>,
}

impl StoreSink<'_, '_, '_> {
    fn check(&mut self, size: u64) -> io::Result<()> {
        self.is_too_large = size > self.limit;
        if self.is_too_large { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
    }
}

impl FileSink for StoreSink<'_, '_, '_> {
    fn start(&mut self, size: Option<u64>) -> io::Result<()> {
        self.check(size.unwrap_or(0))?;
        if self.received > 0 {
            self.file.restart().map_err(io::Error::other)?;
        }
        self.progress.moved.fetch_sub(self.received, std::sync::atomic::Ordering::Relaxed);
        self.received = 0;
        size.into_iter().for_each(|size| (self.progress.total)(size));
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.received += bytes.len() as u64;
        self.check(self.received)?;
        self.file.add(bytes)?;
        self.progress.moved.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{Scratch, assert_recorded, message_row, variants};

    use super::*;
    use crate::fixture::store_in;

    #[test]
    fn unwanted_files_are_refused_as_recorded() {
        let url = SourceUrl::parse("https://joe:secret@a.io/x?token=secret").unwrap();
        let checksum = |digit: &str| format!("sha256:{}", digit.repeat(64)).parse::<Checksum>().unwrap();
        let wanted = checksum("1");
        let request = DownloadRequest { url: &url, checksum: Some(&wanted), authorization: None };
        assert!(compare(&request, &checksum("1")).is_ok());
        let errors = [compare(&request, &checksum("2")).unwrap_err(), too_large(&url, 1), too_large(&url, 2000)];
        let table = variants!(TransportError).table(&errors, |e| e, TransportError::help);
        assert!(!table.contains("secret"), "{table}");
        assert_recorded!("download", table);
    }

    #[test]
    fn failed_downloads_are_worded_as_recorded() {
        let scratch = Scratch::new();
        let store = store_in(&scratch, "store");
        let work = Workspace::open(&store).unwrap();
        let url = SourceUrl::parse("https://a.io/x").unwrap();
        let receive = || store.downloads().receive(&work, || None).unwrap();
        let received = |bytes: &[u8]| {
            let mut file = receive();
            file.add(bytes).unwrap();
            file.finish().unwrap()
        };
        let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03+I\xad(\x01\x00\xc7\xa7\x8b;\x04\x00\x00\x00";
        let failed = |bytes: &[u8], limit| decoded(received(bytes), receive(), &url, limit).map(drop).unwrap_err();
        let errors = [failed(&gzip[..20], 4), failed(gzip, 3), not_stored(&url)];
        let table: String = errors.iter().map(|e| message_row("download", e, e.help())).collect();
        assert_recorded!("failed-downloads", table);
    }
}
