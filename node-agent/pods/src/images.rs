//! Images by policy, with the back-off and the wording of kubelet's image manager.

use std::collections::HashMap;
use std::time::Instant;

use base64::Engine;
use jiff::Timestamp;
use k8s_cri::v1 as cri_api;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::backoff::{BackOff, KUBELET};
use crate::container::ImageUser;
use crate::cri::Cri;
use crate::error::Error;
use crate::memory::Waiting;
use crate::recorder::{Level, Recorder};
use crate::spec::{self, Kind};

/// An image that is on the node.
#[derive(Clone, Debug)]
pub struct Image {
    /// What CreateContainer gets.
    pub reference: String,
    pub user: ImageUser,
}

/// Why there is none, and when to try again.
#[derive(Clone, Debug)]
pub struct Failed {
    pub waiting: Waiting,
    pub retry_at: Timestamp,
}

#[derive(Default)]
struct Tries {
    backoff: BackOff,
    /// The last pull error by key, repeated in the back-off message.
    errors: HashMap<String, String>,
}

/// Finds or pulls images; back-off is per pod and image.
#[derive(Default)]
pub struct Images {
    tries: Mutex<Tries>,
}

impl Images {
    pub async fn ensure(
        &self,
        cri: &Cri,
        recorder: &Recorder,
        pod: &Pod,
        kind: Kind,
        container: &Container,
        secrets: &[Secret],
    ) -> Result<Image, Failed> {
        let event = |level, reason, message: String| recorder.container(pod, kind, &container.name, level, reason, message);
        let wanted = container.image.as_deref().unwrap_or("");
        let soon = |waiting: Waiting, seconds: i64| Failed { waiting, retry_at: after(seconds) };
        let Some(reference) = with_tag(wanted) else {
            let message =
                format!("Failed to apply default image tag \"{wanted}\": couldn't parse image name \"{wanted}\": invalid reference format");
            event(Level::Warning, "InspectFailed", message.clone());
            event(Level::Warning, "Failed", "Error: InvalidImageName".into());
            return Err(soon(Waiting { reason: "InvalidImageName".into(), message }, 60));
        };
        let policy = policy(container, &reference);
        let present = match image_status(cri, &reference).await {
            Ok(image) => image,
            Err(e) => {
                let message = format!("Failed to inspect image \"{wanted}\": {e}");
                event(Level::Warning, "InspectFailed", message.clone());
                return Err(soon(Waiting { reason: "ImageInspectError".into(), message }, 10));
            }
        };
        match (present, policy) {
            (Some(image), "IfNotPresent" | "Never") => {
                event(Level::Normal, "Pulled", format!("Container image \"{wanted}\" already present on machine"));
                return Ok(image);
            }
            (None, "Never") => {
                let message = format!("Container image \"{wanted}\" is not present with pull policy of Never");
                event(Level::Warning, "ErrImageNeverPull", message.clone());
                event(Level::Warning, "Failed", "Error: ErrImageNeverPull".into());
                return Err(soon(Waiting { reason: "ErrImageNeverPull".into(), message }, 10));
            }
            (Some(_) | None, _) => {}
        }
        let key = format!("{}_{wanted}", spec::uid(pod));
        if let Some(failed) = self.held_back(&key, wanted) {
            event(Level::Normal, "BackOff", format!("Back-off pulling image \"{wanted}\""));
            event(Level::Warning, "Failed", "Error: ImagePullBackOff".into());
            return Err(failed);
        }
        event(Level::Normal, "Pulling", format!("Pulling image \"{wanted}\""));
        let started = Instant::now();
        match pull(cri, &reference, secrets).await {
            Ok(image) => {
                let mut tries = self.tries.lock();
                tries.backoff.forget(&key);
                tries.errors.remove(&key);
                drop(tries);
                let took = format!("{:.3}s", started.elapsed().as_secs_f64());
                event(
                    Level::Normal,
                    "Pulled",
                    format!("Successfully pulled image \"{wanted}\" in {took} ({took} including waiting). Image size: {} bytes.", image.1),
                );
                Ok(image.0)
            }
            Err(error) => {
                let now = Timestamp::now();
                let reason =
                    if error.contains("connection refused") && error.contains("registry") { "RegistryUnavailable" } else { "ErrImagePull" };
                let mut tries = self.tries.lock();
                tries.backoff.next(KUBELET, &key, now, now);
                tries.errors.insert(key, format!("{reason}: {error}"));
                drop(tries);
                event(Level::Warning, "Failed", format!("Failed to pull image \"{wanted}\": {error}"));
                event(Level::Warning, "Failed", format!("Error: {reason}"));
                // Soon after the status turns from the error to ImagePullBackOff, as with kubelet's next sync.
                Err(soon(Waiting { reason: reason.into(), message: error }, 2))
            }
        }
    }

    fn held_back(&self, key: &str, image: &str) -> Option<Failed> {
        let tries = self.tries.lock();
        let now = Timestamp::now();
        let until = tries.backoff.blocked_since_update(key, now)?;
        let message = match tries.errors.get(key) {
            Some(error) => format!("Back-off pulling image \"{image}\": {error}"),
            None => format!("Back-off pulling image \"{image}\""),
        };
        Some(Failed { waiting: Waiting { reason: "ImagePullBackOff".into(), message }, retry_at: until })
    }
}

fn after(seconds: i64) -> Timestamp {
    Timestamp::now().checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// The container's own policy, else `Always` for `:latest` and `IfNotPresent` for the rest.
fn policy<'a>(container: &'a Container, reference: &str) -> &'a str {
    match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        Some(_) | None if reference.ends_with(":latest") => "Always",
        Some(_) | None => "IfNotPresent",
    }
}

/// The reference with `:latest` when it names neither tag nor digest; `None` when it is no reference.
pub fn with_tag(image: &str) -> Option<String> {
    if image.is_empty() || image.len() > 512 || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let path_at = name.rfind('/').map_or(0, |i| i + 1);
    let (repository, tag) = match name[path_at..].split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    let mut parts = repository.split('/').peekable();
    let first = parts.clone().next().unwrap_or("");
    let has_domain =
        repository.contains('/') && (first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()));
    if has_domain {
        parts.next();
        if !first.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c)) {
            return None;
        }
    }
    let component = |p: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(p.chars().next()) && edge(p.chars().last()) && p.chars().all(inner)
    };
    if !parts.all(component) {
        return None;
    }
    let good_tag = |t: &str| {
        let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        (1..=128).contains(&t.len()) && t.chars().all(rest) && !t.starts_with(['.', '-'])
    };
    let good_digest =
        |d: &str| d.split_once(':').is_some_and(|(a, h)| !a.is_empty() && h.len() >= 32 && h.chars().all(|c| c.is_ascii_hexdigit()));
    match (tag, digest) {
        (Some(t), _) if !good_tag(t) => None,
        (_, Some(d)) if !good_digest(d) => None,
        (None, None) => Some(format!("{image}:latest")),
        (Some(_), _) | (None, Some(_)) => Some(image.to_owned()),
    }
}

async fn image_status(cri: &Cri, reference: &str) -> Result<Option<Image>, Error> {
    let image = cri_api::ImageSpec { image: reference.to_owned(), ..Default::default() };
    let answer = cri.image_status(cri_api::ImageStatusRequest { image: Some(image), verbose: false }).await?;
    Ok(answer.image.map(|i| Image { reference: i.id, user: ImageUser { uid: i.uid.map(|u| u.value), name: i.username } }))
}

async fn pull(cri: &Cri, reference: &str, secrets: &[Secret]) -> Result<(Image, u64), String> {
    let credentials = credentials(secrets, reference);
    let tries = if credentials.is_empty() { vec![None] } else { credentials.into_iter().map(Some).collect() };
    let mut errors = Vec::new();
    for auth in tries {
        let image = cri_api::ImageSpec { image: reference.to_owned(), ..Default::default() };
        match cri.pull_image(cri_api::PullImageRequest { image: Some(image), auth, sandbox_config: None }).await {
            Ok(answer) => {
                let request = cri_api::ImageSpec { image: answer.image_ref.clone(), ..Default::default() };
                let status = cri.image_status(cri_api::ImageStatusRequest { image: Some(request), verbose: false }).await;
                let image = status.map_err(|e| e.to_string())?.image.ok_or("the image vanished after it was pulled")?;
                let user = ImageUser { uid: image.uid.map(|u| u.value), name: image.username };
                return Ok((Image { reference: image.id, user }, image.size));
            }
            Err(Error::Cri { status, .. }) => errors.push(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())),
            Err(e) => errors.push(e.to_string()),
        }
    }
    Err(errors.join("; "))
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// Credentials of the pull secrets that fit an image, the most specific registry path first.
fn credentials(secrets: &[Secret], image: &str) -> Vec<cri_api::AuthConfig> {
    let target = normalized(image);
    let mut found: Vec<(String, cri_api::AuthConfig)> = Vec::new();
    for secret in secrets {
        for (registry, auth) in parse_secret(secret) {
            let place = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
            let place = place.trim_end_matches("/v1").trim_end_matches("/v2").replace("index.docker.io", "docker.io");
            if registry_matches(&place, &target) {
                found.push((place, auth_config(auth, &registry)));
            }
        }
    }
    found.sort_by_key(|(registry, _)| std::cmp::Reverse(registry.len()));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn parse_secret(secret: &Secret) -> HashMap<String, DockerAuth> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    if let Some(bytes) = data(".dockerconfigjson") {
        return serde_json::from_slice::<DockerConfig>(bytes).map(|c| c.auths).unwrap_or_default();
    }
    data(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
}

fn auth_config(auth: DockerAuth, registry: &str) -> cri_api::AuthConfig {
    let mut config = cri_api::AuthConfig {
        username: auth.username,
        password: auth.password,
        server_address: registry.to_owned(),
        identity_token: auth.identitytoken,
        registry_token: auth.registrytoken,
        ..Default::default()
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).ok();
    if let Some((user, password)) =
        decoded.and_then(|b| String::from_utf8(b).ok()).and_then(|t| t.split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned())))
    {
        config.username = user;
        config.password = password;
    }
    config
}

/// Domain and path; Docker Hub's short names in full.
fn normalized(image: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let first = name.split('/').next().unwrap_or("");
    if name.contains('/') && (first.contains(['.', ':']) || first == "localhost") {
        name.to_owned()
    } else if name.contains('/') {
        format!("docker.io/{name}")
    } else {
        format!("docker.io/library/{name}")
    }
}

/// Host by host part with `*` as a whole-part or part wildcard, then a path prefix.
fn registry_matches(pattern: &str, target: &str) -> bool {
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = target.split_once('/').unwrap_or((target, ""));
    let pattern_parts: Vec<&str> = pattern_host.split('.').collect();
    let parts: Vec<&str> = host.split('.').collect();
    let glob = |p: &str, t: &str| match p.split_once('*') {
        Some((head, tail)) => t.len() >= head.len() + tail.len() && t.starts_with(head) && t.ends_with(tail),
        None => p == t,
    };
    pattern_parts.len() == parts.len() && pattern_parts.iter().zip(&parts).all(|(p, t)| glob(p, t)) && path.starts_with(pattern_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references() {
        for (image, expected) in [
            ("busybox", Some("busybox:latest")),
            ("busybox:1.36", Some("busybox:1.36")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("registry.k8s.io/pause:3.9", Some("registry.k8s.io/pause:3.9")),
            ("xebec.local/demo", Some("xebec.local/demo:latest")),
            ("", None),
            ("Busybox", None),
            ("a b", None),
            ("a:b:c", None),
            ("a//b", None),
            ("a:", None),
            ("/a", None),
            ("a@sha256:12", None),
            ("not:a/valid:ref!", None),
        ] {
            assert_eq!(with_tag(image).as_deref(), expected, "{image}");
        }
        let digest = format!("a@sha256:{}", "0".repeat(64));
        assert_eq!(with_tag(&digest), Some(digest));
    }

    #[test]
    fn policies() {
        let with = |p: Option<&str>| Container { image_pull_policy: p.map(str::to_owned), ..Default::default() };
        assert_eq!(policy(&with(None), "a:latest"), "Always");
        assert_eq!(policy(&with(None), "a:1"), "IfNotPresent");
        assert_eq!(policy(&with(Some("Never")), "a:latest"), "Never");
    }

    #[test]
    fn pull_secrets() {
        let config = json!({"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "*.example.com": {"username": "a", "password": "b"},
            "my.example.com/team": {"username": "t", "password": "q"}}});
        let secret = Secret {
            data: Some([(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(config.to_string().into_bytes()))].into()),
            ..Default::default()
        };
        let users =
            |image: &str| -> Vec<String> { credentials(std::slice::from_ref(&secret), image).into_iter().map(|a| a.username).collect() };
        assert_eq!(users("busybox:1"), ["u"]);
        assert_eq!(users("my.example.com/team/x:1"), ["t", "a"]);
        assert_eq!(users("my.example.com/other"), ["a"]);
        assert!(users("a.b.example.com/x").is_empty());
    }
}
