//! The documents of `CLOUD/kubernetes`.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::Value;

use crate::schema;

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../CLOUD/kubernetes")
}

pub(crate) fn parse(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder().join(file)).expect(file);
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Files that `kubectl apply -k` reads, in their order.
pub(crate) fn resources() -> Vec<String> {
    let kustomization = parse("kustomization.yaml").remove(0);
    let listed = kustomization["resources"].as_array().expect("resources");
    let name = |file: &Value| file.as_str().expect("a file").to_owned();
    listed.iter().map(name).collect()
}

/// Every document that is applied, with the file that it stands in.
pub(crate) fn documents() -> Vec<(String, Value)> {
    let each = resources().into_iter().flat_map(|file| {
        let documents = parse(&file).into_iter();
        documents.map(move |document| (file.clone(), document))
    });
    each.collect()
}

/// The document of that kind and name.
pub(crate) fn find(kind: &str, name: &str) -> Value {
    let found = documents()
        .into_iter()
        .find(|(_, document)| document["kind"] == kind && document["metadata"]["name"] == name);
    found
        .unwrap_or_else(|| panic!("no {kind} {name} in the manifests"))
        .1
}

/// What the API would refuse of a document.
pub(crate) fn faults(document: &Value) -> Vec<String> {
    match document["kind"].as_str() {
        Some("ConfigMap") => schema::faults::<ConfigMap>(document),
        Some("Namespace") => schema::faults::<Namespace>(document),
        Some("NetworkPolicy") => schema::faults::<NetworkPolicy>(document),
        Some("PodDisruptionBudget") => schema::faults::<PodDisruptionBudget>(document),
        Some("Service") => schema::faults::<Service>(document),
        Some("ServiceAccount") => schema::faults::<ServiceAccount>(document),
        Some("StatefulSet") => schema::faults::<StatefulSet>(document),
        _ => vec![format!("nobody checks a {}", document["kind"])],
    }
}
