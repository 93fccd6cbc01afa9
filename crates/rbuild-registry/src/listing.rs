//! Lists of a repository: its tags, and the manifests that refer to another one.

use rbuild_image::BlobDigest;
use rbuild_remedy::sentence;
use serde_json::Value;

use crate::client::Repository;
use crate::endpoint_modes::EndpointRole;
use crate::error::{ConnectionFailure, RegistryProblem, RemoteAction, RemoteObject, Result};
use crate::http::HttpReply;
use crate::interruption::Interruption;
use crate::manifest;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::repeated;
use crate::session::{ApiRequest, Body, EndpointSession, Repetition};
use crate::stall::read_document;
use crate::url;

/// Maximum size of a page in bytes.
const MAX_PAGE: u64 = 4 << 20;
/// Maximum number of pages of a list.
const MAX_PAGES: usize = 1000;

/// Returns the tags of a repository, in the order of its registry. Mirrors are not asked, because
/// they may have some of the tags only.
///
/// # Errors
///
/// Fails if the registry has no such repository, or does not list its tags.
pub fn tags(repository: &Repository) -> Result<Vec<String>> {
    repository.first(|endpoint| endpoint.role == EndpointRole::Registry, tags_at)
}

/// Returns the entries of the manifests that refer to `subject`: those that the registry lists, or
/// else those under the tag that the distribution specification defines. Mirrors are not asked.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
pub fn referrers(repository: &Repository, subject: &BlobDigest) -> Result<Vec<Value>> {
    repository.first(|endpoint| endpoint.role == EndpointRole::Registry, |session| referrers_at(session, subject))
}

fn tags_at(session: &EndpointSession) -> std::result::Result<Vec<String>, RegistryProblem> {
    let mut all = Vec::new();
    each_page(session, "/tags/list?n=1000", RequestName::Tags, |page| {
        match &page["tags"] {
            // A repository without tags.
            Value::Null => {}
            tags => {
                for tag in tags.as_array()? {
                    all.push(tag.as_str()?.to_string());
                }
            }
        }
        Some(())
    })?;
    Ok(all)
}

fn referrers_at(session: &EndpointSession, subject: &BlobDigest) -> std::result::Result<Vec<Value>, RegistryProblem> {
    let mut all = Vec::new();
    let mut add = |page: &Value| {
        all.extend(page["manifests"].as_array()?.iter().cloned());
        Some(())
    };
    let request = RequestName::Referrers { subject: *subject };
    match each_page(session, &format!("/referrers/{subject}"), request, &mut add) {
        Err(RegistryProblem::Missing { .. }) => {}
        listed => return listed.map(|()| all),
    }
    match manifest::find(session, &subject.to_string().replace(':', "-")) {
        Err(RegistryProblem::Missing { .. }) => return Ok(Vec::new()),
        other => drop(other?),
    }
    let found = manifest::get(session, &subject.to_string().replace(':', "-"), None)?;
    let index = serde_json::from_slice(&found.bytes).ok();
    index.as_ref().and_then(&mut add).ok_or_else(|| session.invalid(ReplyFault::InvalidList(request)))?;
    Ok(all)
}

/// Passes each page of a list to `add`, which returns `None` if the page is invalid.
fn each_page(
    session: &EndpointSession,
    first: &str,
    request: RequestName<'_>,
    mut add: impl FnMut(&Value) -> Option<()>,
) -> std::result::Result<(), RegistryProblem> {
    let mut to = first.to_string();
    for _ in 0..MAX_PAGES {
        let Page { bytes, next } = page(session, &to, request)?;
        let parsed: Option<Value> = serde_json::from_slice(&bytes).ok();
        parsed.as_ref().and_then(&mut add).ok_or_else(|| session.invalid(ReplyFault::InvalidList(request)))?;
        match next {
            Some(next) => to = next,
            None => return Ok(()),
        }
    }
    Err(session.invalid(ReplyFault::LongList { request, pages: MAX_PAGES }))
}

struct Page {
    bytes: Vec<u8>,
    /// URL of the next page.
    next: Option<String>,
}

fn page(session: &EndpointSession, to: &str, request: RequestName<'_>) -> std::result::Result<Page, RegistryProblem> {
    let shared = session.shared();
    let mut attempts = shared.attempts(session.endpoint.role);
    loop {
        let reply = session.call(&ApiRequest {
            method: "GET",
            to,
            headers: &[("accept", "application/vnd.oci.image.index.v1+json, application/json".to_string())],
            body: Body::None,
            scopes: &[session.scope("pull")],
            repetition: Repetition::Repeated,
        })?;
        if reply.status() != 200 {
            return Err(session.refused(reply, request, RemoteObject::Repository, RemoteAction::Pull));
        }
        let next = next_page(session, &reply)?;
        let read = read_document(reply.response.into_body().into_reader(), MAX_PAGE, shared.http.retry_policy());
        let problem = match read {
            Ok(bytes) if bytes.len() as u64 > MAX_PAGE => {
                return Err(session.invalid(ReplyFault::PageTooLarge { request, mebibytes: MAX_PAGE >> 20 }));
            }
            Ok(bytes) => return Ok(Page { bytes, next }),
            Err(e) => RegistryProblem::Connection {
                host: session.endpoint.host.clone(),
                request: request.to_string(),
                kind: ConnectionFailure::Transport,
                source: Interruption::of_read(e, Interruption::BrokenOff).into(),
            },
        };
        match attempts.next(None) {
            Some(wait) => shared.wait(&session.endpoint.host, sentence(&problem), wait),
            None => return Err(repeated(problem)),
        }
    }
}

/// Returns the URL of the next page that a reply names.
fn next_page(session: &EndpointSession, reply: &HttpReply) -> std::result::Result<Option<String>, RegistryProblem> {
    let links = reply.response.headers().get_all("link");
    let target = links.iter().filter_map(|link| link.to_str().ok()).find_map(next_link);
    let next = target.map(|target| session.next(&reply.url, target)).transpose()?;
    Ok(next.map(|next| match &session.endpoint.namespace {
        Some(registry) if !next.contains("ns=") => url::with_parameter(&next, "ns", registry),
        _ => next,
    }))
}

/// Returns the target of the first link of a `Link` header (RFC 8288) whose relation is `next`.
fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (target, after) = rest.split_once('<')?.1.split_once('>')?;
        let end = after.find(",").filter(|_| after.contains('<')).unwrap_or(after.len());
        let is_next = |parameter: &str| {
            let (name, value) = parameter.split_once('=')?;
            let mut relations = value.trim().trim_matches('"').split_whitespace();
            (name.trim().eq_ignore_ascii_case("rel") && relations.any(|rel| rel.eq_ignore_ascii_case("next")))
                .then_some(())
        };
        if after[..end].split(';').any(|parameter| is_next(parameter).is_some()) {
            return Some(target);
        }
        rest = &after[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_the_link_with_that_relation() {
        for (header, want) in [
            (r#"</v2/a/tags/list?last=b&n=1>; rel="next""#, Some("/v2/a/tags/list?last=b&n=1")),
            ("<https://r.io/x>;rel=next", Some("https://r.io/x")),
            (r#"<a>; rel="first", <b>; title="x; y"; REL="last next""#, Some("b")),
            (r#"<a>; rel="prev""#, None),
            (r#"<a>; rel="prev", <b>; rel=last,"#, None),
            ("a; rel=next", None),
            ("<a", None),
            ("", None),
        ] {
            assert_eq!(next_link(header), want, "{header}");
        }
    }
}
