//! Files that a build downloads (ADD of a URL). All of them are downloaded before any step is
//! looked up, because their content is part of keys.

use std::collections::HashMap;

use rbuild_image::Hasher;
use rbuild_plan::{BuildGraph, CopyItem, CopySource, CopyStep, KeyPartSink, Step, StepPart, UrlSource};
use rbuild_source::SelectionHash;
use rbuild_store::{Download, Store};

use crate::error::{BuildError, Result};
use crate::network_access::{NetworkAccess, reported};

/// The downloaded files of a build.
#[derive(Debug, Clone, Default)]
pub struct DownloadedFiles(HashMap<UrlSource, Download>);

impl DownloadedFiles {
    /// Downloads the files that the steps need. Stored files with a known checksum are not
    /// requested again. All failures are reported together.
    pub(crate) fn download(graph: &BuildGraph, store: &Store, network: &NetworkAccess<'_>) -> Result<DownloadedFiles> {
        let mut found = network.fetched.borrow_mut();
        let mut wanted: Vec<&CopySource> = Vec::new();
        for (source, file) in sources(graph) {
            if found.contains_key(file) || wanted.iter().any(|known| known.download() == Some(file)) {
                continue;
            }
            let stored = match &file.checksum {
                Some(checksum) => store.downloads().of_checksum(checksum, &file.url)?,
                None => None,
            };
            match stored {
                Some(stored) => drop(found.insert(file.clone(), stored)),
                None => wanted.push(source),
            }
        }
        if !wanted.is_empty() {
            let files: Vec<UrlSource> = wanted.iter().filter_map(|source| source.download().cloned()).collect();
            let mut failures = Vec::new();
            for ((source, file), outcome) in wanted.iter().zip(&files).zip(network.fetch(&files)?) {
                match outcome {
                    Ok(download) => drop(found.insert(file.clone(), download)),
                    Err(failure) => failures.push(reported(source.span, failure, str::to_string)),
                }
            }
            if !failures.is_empty() {
                return Err(BuildError::Unmet(failures));
            }
        }
        let own = sources(graph).filter_map(|(_, file)| Some((file.clone(), found.get(file)?.clone())));
        Ok(DownloadedFiles(own.collect()))
    }

    /// Returns the files of a graph, all with the same content.
    #[cfg(test)]
    pub(crate) fn of_graph(graph: &BuildGraph, download: &Download) -> DownloadedFiles {
        DownloadedFiles(sources(graph).map(|(_, file)| (file.clone(), download.clone())).collect())
    }

    pub(crate) fn get(&self, file: &UrlSource) -> Result<&Download> {
        self.0.get(file).ok_or_else(|| BuildError::other("a file of the plan was never downloaded"))
    }

    /// Passes to `add` the properties of the downloaded files of a copy on which its result
    /// depends.
    pub(crate) fn parts(&self, copy: &CopyStep, add: KeyPartSink<'_>) -> Result<()> {
        for (place, source) in copy.sources.iter().enumerate() {
            let CopyItem::Download { file, unpack } = &source.item else { continue };
            let UrlSource { url: _, name, checksum: _ } = file;
            let Download { digest, size: _, etag: _, modified } = self.get(file)?;
            // Later sources replace files of earlier ones.
            add(StepPart::Own("place of the download", place.to_string().as_bytes()));
            add(StepPart::Own("downloaded file", format!("{name} {digest}").as_bytes()));
            let modified = modified.map_or("unknown".to_string(), |seconds| seconds.to_string());
            add(StepPart::Own("modification time of the download", modified.as_bytes()));
            add(StepPart::Own("unpacks the download", if *unpack { b"yes" } else { b"no" }));
        }
        Ok(())
    }

    /// Returns the digest of the downloaded files of a copy; `None` if there are none.
    pub(crate) fn content(&self, copy: &CopyStep) -> Result<Option<SelectionHash>> {
        if copy.sources.iter().all(|source| source.download().is_none()) {
            return Ok(None);
        }
        let mut hasher = Hasher::new();
        hasher.field("downloads");
        self.parts(copy, &mut |part| {
            hasher.field(part.name()).field(&*part.value());
        })?;
        Ok(Some(hasher.finish()))
    }
}

/// Returns the sources of all steps that are downloaded, in the order of the graph.
fn sources(graph: &BuildGraph) -> impl Iterator<Item = (&CopySource, &UrlSource)> {
    let copies = graph.vertices.iter().filter_map(|vertex| match &vertex.step {
        Step::Copy(copy) => Some(copy),
        _ => None,
    });
    copies.flat_map(|copy| &copy.sources).filter_map(|source| Some((source, source.download()?)))
}

#[cfg(test)]
mod tests {
    use rbuild_image::{BlobDigest, SourceUrl};
    use rbuild_paths::SourcePattern;

    use super::*;

    fn file(url: &str, name: &str) -> UrlSource {
        UrlSource { url: SourceUrl::parse(url).unwrap(), name: name.into(), checksum: None }
    }

    fn content(items: Vec<CopyItem>, found: &[(UrlSource, Download)]) -> Option<String> {
        let files = DownloadedFiles(found.iter().cloned().collect());
        let sources = items.into_iter().map(|item| CopySource { item, span: Default::default() }).collect();
        let copy = CopyStep { sources, ..CopyStep::default() };
        files.content(&copy).unwrap().map(|hash| hash.hex())
    }

    #[test]
    fn name_content_time_and_place_of_downloads_are_in_the_key() {
        let download = Download { digest: BlobDigest::of(b"x"), size: 1, etag: None, modified: Some(7) };
        let one = |file: &UrlSource, unpack, download: &Download| {
            let item = CopyItem::Download { file: file.clone(), unpack };
            content(vec![item], &[(file.clone(), download.clone())]).unwrap()
        };
        let here = file("http://a.io/x", "x");
        let key = one(&here, false, &download);
        let tagged = Download { etag: Some("\"1\"".into()), ..download.clone() };
        assert_eq!(one(&file("http://b.io/d/x", "x"), false, &tagged), key, "from elsewhere");
        let changed = Download { digest: BlobDigest::of(b"y"), ..download.clone() };
        let undated = Download { modified: None, ..download.clone() };
        let differ = [
            one(&file("http://a.io/y", "y"), false, &download),
            one(&here, true, &download),
            one(&here, false, &changed),
            one(&here, false, &undated),
        ];
        assert!(differ.iter().all(|other| *other != key));
        let pattern = || CopyItem::Files(SourcePattern::literal("x"));
        let item = || CopyItem::Download { file: here.clone(), unpack: false };
        let found = [(here.clone(), download)];
        assert_eq!(content(vec![item(), pattern()], &found).as_ref(), Some(&key));
        assert_ne!(content(vec![pattern(), item()], &found).as_ref(), Some(&key));
        assert_eq!(content(vec![pattern()], &found), None);
        let missing = DownloadedFiles::default();
        assert!(missing.get(&here).is_err());
    }
}
