//! What the Node object tells of the container runtime.

use k8s_cri::v1::{ListImagesRequest, StatusRequest, VersionRequest};

use crate::{Error, PodManager};

/// The container runtime and what it lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runtime {
    /// `containerd`.
    pub name: String,
    pub version: String,
    /// CRI conditions that do not hold, in kubelet's words; empty when pods can run.
    pub problems: Vec<String>,
}

/// An image of the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// References by digest and by tag.
    pub names: Vec<String>,
    pub size_bytes: u64,
}

impl PodManager {
    /// Asks the runtime for its version and conditions.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn runtime(&self) -> Result<Runtime, Error> {
        let version = self.cri.version(VersionRequest { version: "v1".into() }).await?;
        let status = self.cri.status(StatusRequest { verbose: false }).await?.status.unwrap_or_default();
        let problems = status.conditions.iter().filter(|condition| !condition.status).map(|condition| {
            let what = match condition.r#type.as_str() {
                "NetworkReady" => "container runtime network not ready",
                _ => "container runtime status check may not have completed yet",
            };
            format!("{what}: {}=false reason:{} message:{}", condition.r#type, condition.reason, condition.message)
        });
        Ok(Runtime { problems: problems.collect(), name: version.runtime_name, version: version.runtime_version })
    }

    /// The images on this node.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        let response = self.cri.list_images(ListImagesRequest::default()).await?;
        let image = |image: k8s_cri::v1::Image| Image { names: [image.repo_digests, image.repo_tags].concat(), size_bytes: image.size };
        Ok(response.images.into_iter().map(image).collect())
    }
}
