//! The well-behaved part: answers of the distribution protocol.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rbuild_image::BlobDigest;

use super::{Access, Registry, Request, Response};

impl Registry {
    pub(super) fn respond(&self, request: &Request, no_range: bool) -> Response {
        if request.path == "/token" {
            return self.token(request);
        }
        if let Some(refusal) = self.refusal(request) {
            return refusal;
        }
        let Some(rest) = request.path.strip_prefix("/v2/") else { return Response::error(404, "NO_SUCH_PATH") };
        if rest.is_empty() {
            return Response::new(200).body("{}");
        }
        if let Some((repository, reference)) = rest.split_once("/manifests/") {
            return self.manifest(request, repository, reference);
        }
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return self.tags(request, repository);
        }
        if let Some((repository, subject)) = rest.split_once("/referrers/") {
            return self.referrers(repository, subject);
        }
        if let Some((repository, id)) = rest.split_once("/blobs/uploads/") {
            return self.upload(request, repository, id);
        }
        if let Some((repository, digest)) = rest.split_once("/blobs/") {
            return self.blob(request, repository, digest, no_range);
        }
        Response::error(404, "NO_SUCH_PATH")
    }

    /// Returns a 401 unless the request may pass.
    fn refusal(&self, request: &Request) -> Option<Response> {
        let sent = request.headers.get("authorization");
        match &self.access {
            Access::Open => None,
            Access::Basic(user, password) => {
                let wanted = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
                let refusal = Response::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"test\"");
                (sent != Some(&wanted)).then_some(refusal)
            }
            Access::Token(..) => {
                let repository = request.path.trim_start_matches("/v2/");
                let end = ["/manifests/", "/blobs/", "/tags/list", "/referrers/"].map(|part| repository.find(part));
                let repository = end.into_iter().flatten().min().map_or(repository, |end| &repository[..end]);
                let action = match request.method.as_str() {
                    "GET" | "HEAD" => "pull",
                    "DELETE" => "delete",
                    _ => "push",
                };
                let mut state = self.state();
                let token = sent.and_then(|sent| sent.strip_prefix("Bearer ")).map(str::to_string);
                let held = token.as_ref().and_then(|token| state.tokens.get_mut(token));
                let passes = held.is_some_and(|(scopes, left)| {
                    let granted = scopes.split(' ').any(|scope| {
                        scope.strip_prefix(&format!("repository:{repository}:")).is_some_and(|a| a.contains(action))
                    });
                    *left = left.saturating_sub(1);
                    (granted || repository.is_empty()) && *left > 0
                });
                let realm = format!("Bearer realm=\"http://{}/token\",service=\"test\"", self.address);
                let scope = format!(",scope=\"repository:{repository}:{action}\"");
                let scope = if repository.is_empty() { String::new() } else { scope };
                let error = if token.is_some() { ",error=\"invalid_token\"" } else { "" };
                let refusal = Response::error(401, "UNAUTHORIZED");
                (!passes).then(|| refusal.with("WWW-Authenticate", format!("{realm}{scope}{error}")))
            }
        }
    }

    fn token(&self, request: &Request) -> Response {
        let Access::Token(user, password, uses) = &self.access else { return Response::error(404, "NO_TOKENS") };
        let field = |name: &str| request.query.get(name).map_or("", String::as_str);
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let login = match request.headers.get("authorization") {
            Some(sent) if *sent == basic => true,
            Some(_) => return Response::error(401, "WRONG_PASSWORD"),
            None if field("grant_type") == "refresh_token" && field("refresh_token") == "refresh" => true,
            None if field("grant_type") == "password" && field("password") == *password => true,
            None if request.method == "POST" => return Response::error(401, "WRONG_PASSWORD"),
            None => false,
        };
        let scopes = request.scopes.join(" ");
        let granted = if login {
            scopes.clone()
        } else {
            // Anonymous clients may pull public repositories.
            scopes
                .split(' ')
                .filter(|s| s.contains(":public/"))
                .map(|s| s.replace(",push", ""))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut state = self.state();
        state.scopes.push(scopes);
        state.serial += 1;
        let token = format!("token-{}", state.serial);
        state.tokens.insert(token.clone(), (granted, *uses));
        let refresh = if field("offline_token") == "true" { r#","refresh_token":"refresh""# } else { "" };
        Response::new(200).body(format!(r#"{{"token":"{token}","expires_in":300{refresh}}}"#))
    }

    fn manifest(&self, request: &Request, repository: &str, reference: &str) -> Response {
        let mut state = self.state();
        let key = (repository.to_string(), reference.to_string());
        match request.method.as_str() {
            "GET" | "HEAD" => match state.manifests.get(&key) {
                Some((media_type, bytes)) => Response::new(200)
                    .with("Content-Type", media_type)
                    .with("Docker-Content-Digest", BlobDigest::of(bytes))
                    .body(bytes.clone()),
                None => Response::error(404, "MANIFEST_UNKNOWN"),
            },
            "PUT" => {
                let media_type = request.headers.get("content-type").cloned().unwrap_or_default();
                let digest = BlobDigest::of(&request.body);
                if state.checks_manifests {
                    let parsed: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
                    let parts =
                        std::iter::once(&parsed["config"]).chain(parsed["layers"].as_array().into_iter().flatten());
                    let digests = parts.filter_map(|part| part["digest"].as_str()?.parse().ok());
                    let mut missing =
                        digests.filter(|digest| !state.blobs.contains_key(&(repository.to_string(), *digest)));
                    if missing.next().is_some() {
                        return Response::error(400, "MANIFEST_BLOB_UNKNOWN");
                    }
                }
                for name in [reference.to_string(), digest.to_string()] {
                    let entry = (media_type.clone(), request.body.clone());
                    state.manifests.insert((repository.to_string(), name), entry);
                }
                let response = Response::new(201).with("Docker-Content-Digest", digest);
                let subject = serde_json::from_slice::<serde_json::Value>(&request.body).ok();
                let subject = subject.and_then(|body| body["subject"]["digest"].as_str().map(str::to_string));
                match subject.filter(|_| state.lists_referrers) {
                    Some(subject) => response.with("OCI-Subject", subject),
                    None => response,
                }
            }
            _ => Response::error(405, "UNSUPPORTED"),
        }
    }

    /// Returns a page of tags, with links to the next one that are relative and absolute in turn.
    fn tags(&self, request: &Request, repository: &str) -> Response {
        let state = self.state();
        let named = state.manifests.keys().filter(|(of, name)| of == repository && !name.contains(':'));
        let mut tags: Vec<&String> = named.map(|(_, name)| name).collect();
        tags.sort();
        if tags.is_empty() {
            return Response::error(404, "NAME_UNKNOWN");
        }
        let from = request.query.get("from").and_then(|from| from.parse().ok()).unwrap_or(0);
        let to = tags.len().min(from + state.page.unwrap_or(1000));
        let page = serde_json::json!({"name": repository, "tags": tags[from..to]});
        let response = Response::new(200).body(page.to_string());
        let path = format!("/v2/{repository}/tags/list?n=1000&from={to}");
        match (to < tags.len(), from % 2) {
            (false, _) => response,
            (true, 0) => response.with("Link", format!("<{path}>; rel=\"next\"")),
            (true, _) => response.with("Link", format!("<http://{}{path}>; rel=next", self.address)),
        }
    }

    fn referrers(&self, repository: &str, subject: &str) -> Response {
        let state = self.state();
        if !state.lists_referrers {
            return Response::error(404, "UNSUPPORTED");
        }
        let parsed = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap_or_default();
        let refers = |((of, name), (_, bytes)): &(&(String, String), &(String, Vec<u8>))| {
            of == repository && name.contains(':') && parsed(bytes)["subject"]["digest"] == subject
        };
        let entry = |((_, digest), (media_type, bytes)): (&(String, String), &(String, Vec<u8>))| {
            let document = parsed(bytes);
            serde_json::json!({
                "mediaType": media_type,
                "digest": digest,
                "size": bytes.len(),
                "artifactType": document["artifactType"],
            })
        };
        let manifests: Vec<_> = state.manifests.iter().filter(refers).map(entry).collect();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        Response::new(200).with("Content-Type", "application/vnd.oci.image.index.v1+json").body(index.to_string())
    }

    fn blob(&self, request: &Request, repository: &str, digest: &str, no_range: bool) -> Response {
        let mut state = self.state();
        state.ranges.extend(request.headers.get("range").cloned());
        let found = digest.parse().ok().and_then(|digest| state.blobs.get(&(repository.to_string(), digest)));
        let Some(bytes) = found else { return Response::error(404, "BLOB_UNKNOWN") };
        let range = request.headers.get("range").filter(|_| !no_range);
        let last = bytes.len().saturating_sub(1);
        let range = range.and_then(|range| {
            let (first, end) = range.strip_prefix("bytes=")?.split_once('-')?;
            let end = if end.is_empty() { last } else { end.parse::<usize>().ok()?.min(last) };
            Some((first.parse::<usize>().ok()?, end))
        });
        match range {
            Some((first, end)) => Response::new(206)
                .with("Content-Range", format!("bytes {first}-{end}/{}", bytes.len()))
                .body(&bytes[first..=end]),
            None => Response::new(200).body(bytes.clone()),
        }
    }

    fn upload(&self, request: &Request, repository: &str, id: &str) -> Response {
        let mut state = self.state();
        if request.is_invalid {
            return Response::error(404, "BLOB_UPLOAD_INVALID");
        }
        let location = |id: &str| format!("http://{}/v2/{repository}/blobs/uploads/{id}?state=x", self.address);
        match request.method.as_str() {
            "POST" => {
                let digest = request.query.get("mount").and_then(|digest| digest.parse::<BlobDigest>().ok());
                let source = request.query.get("from").cloned().unwrap_or_default();
                if let Some(bytes) = digest.and_then(|digest| state.blobs.get(&(source, digest)).cloned()) {
                    state.blobs.insert((repository.to_string(), BlobDigest::of(&bytes)), bytes);
                    return Response::new(201);
                }
                state.serial += 1;
                let id = format!("u{}", state.serial);
                state.uploads.insert(id.clone(), Vec::new());
                Response::new(202).with("Location", location(&id)).with("Range", "0-0")
            }
            "DELETE" => match state.uploads.remove(id) {
                Some(_) => Response::new(204),
                None => Response::error(404, "BLOB_UPLOAD_UNKNOWN"),
            },
            "GET" | "PATCH" | "PUT" => {
                let Some(mut bytes) = state.uploads.remove(id) else {
                    return Response::error(404, "BLOB_UPLOAD_UNKNOWN");
                };
                bytes.extend_from_slice(&request.body);
                if request.method == "PUT" {
                    let digest = BlobDigest::of(&bytes);
                    if request.query.get("digest") != Some(&digest.to_string()) {
                        return Response::error(400, "DIGEST_INVALID");
                    }
                    state.blobs.insert((repository.to_string(), digest), bytes);
                    return Response::new(201);
                }
                // Each location serves once.
                state.serial += 1;
                let (id, end) = (format!("u{}", state.serial), bytes.len().saturating_sub(1));
                state.uploads.insert(id.clone(), bytes);
                let status = if request.method == "GET" { 204 } else { 202 };
                Response::new(status).with("Location", location(&id)).with("Range", format!("0-{end}"))
            }
            _ => Response::error(405, "UNSUPPORTED"),
        }
    }
}
