//! Makes the definition of ClusterNetworkPolicy, which the node agents put in force. A definition that somebody else made
//! stays as it is: the Network Policy API has its own releases.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use tokio_util::sync::CancellationToken;
use xebec_loops::Error;

const DEFINITION: &str = include_str!("../../../deploy/crds/clusternetworkpolicies.yaml");
/// Pause between attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Returns once there is a definition, or with `cancel`.
pub async fn define(client: kube::Client, cancel: CancellationToken) {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let mut said = false;
    loop {
        match make(&api).await {
            Ok(()) => return,
            Err(error) if !said => {
                tracing::warn!(%error, "ClusterNetworkPolicies cannot be defined yet");
                said = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn make(api: &Api<CustomResourceDefinition>) -> Result<(), Error> {
    let definition = definition()?;
    if api.get_opt(definition.metadata.name.as_deref().unwrap_or_default()).await?.is_none() {
        api.create(&PostParams::default(), &definition).await?;
    }
    Ok(())
}

fn definition() -> Result<CustomResourceDefinition, Error> {
    serde_yaml_ng::from_str(DEFINITION).map_err(|e| Error::Retry(e.to_string()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_one() {
        let definition = super::definition().expect("it parses");
        assert_eq!(definition.metadata.name.as_deref(), Some("clusternetworkpolicies.policy.networking.k8s.io"));
        let schema = definition.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.clone()).expect("a schema");
        let spec = &schema.properties.expect("properties")["spec"];
        let egress = &spec.properties.as_ref().expect("properties")["egress"];
        assert_eq!(egress.max_items, Some(25), "aliases are followed to the end");
    }
}
