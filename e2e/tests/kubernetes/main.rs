//! `CLOUD/kubernetes`, without a Kubernetes: every document against the API's schemas, every name, port, path,
//! flag and setting against what there is, and the scripts with real nodes behind a stand-in of kubectl.

mod agree;
mod manifests;
mod schema;
mod scripts;

use std::fs;

use serde_json::{Value, json};

use manifests::{documents, faults, find, folder, parse, resources};

#[test]
fn every_document_is_valid() {
    let documents = documents();
    assert!(documents.len() >= 8, "{} documents", documents.len());
    for (file, document) in documents {
        assert_eq!(faults(&document), [""; 0], "{file}");
    }
}

#[test]
fn what_is_not_in_the_schema_is_found() {
    let good = find("StatefulSet", "torc");
    let container = "/spec/template/spec/containers/0";
    let set = |pointer: &str, name: &str, value: Value| {
        let mut bad = good.clone();
        bad.pointer_mut(pointer).expect(pointer)[name] = value;
        faults(&bad)
    };
    let wrong = [
        (set("/spec", "replica", json!(3)), "no such field"),
        (set("/spec", "replicas", json!("three")), "invalid type"),
        (
            set(
                &format!("{container}/readinessProbe"),
                "periodSecond",
                json!(5),
            ),
            "no such field",
        ),
        (
            set(
                &format!("{container}/ports/0"),
                "containerPort",
                Value::Null,
            ),
            "`containerPort` is missing",
        ),
        (
            set("/spec", "selector", Value::Null),
            "`selector` is missing",
        ),
        (
            set("/spec", "podManagementPolicy", json!("parallel")),
            "`parallel` is none of",
        ),
        (set("", "apiVersion", json!("apps/v1beta1")), "apiVersion"),
    ];
    for (faults, expected) in wrong {
        assert!(
            faults.iter().any(|fault| fault.contains(expected)),
            "{expected}: {faults:?}"
        );
    }
}

/// kustomize's own document is not part of the API.
#[test]
fn every_manifest_is_applied_and_the_images_are_named() {
    let kustomization = parse("kustomization.yaml").remove(0);
    let fields: Vec<&String> = kustomization
        .as_object()
        .expect("an object")
        .keys()
        .collect();
    assert_eq!(fields, ["apiVersion", "images", "kind", "resources"]);
    assert_eq!(
        kustomization["apiVersion"],
        "kustomize.config.k8s.io/v1beta1"
    );
    let mut listed = resources();
    listed.push("kustomization.yaml".to_owned());
    listed.sort();
    let mut there: Vec<String> = fs::read_dir(folder())
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.strip_suffix(".yaml").is_some())
        .collect();
    there.sort();
    assert_eq!(listed, there);
    let image = &kustomization["images"][0];
    let pod = &find("StatefulSet", "torc")["spec"]["template"]["spec"];
    for container in [&pod["containers"][0], &pod["initContainers"][0]] {
        assert_eq!(container["image"], image["name"]);
    }
    assert_eq!(
        image["newTag"],
        env!("CARGO_PKG_VERSION"),
        "the version of torc"
    );
}
