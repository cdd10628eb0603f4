//! One document against the API's schema, stricter than the API itself: an unknown field is an error, as with
//! `kubectl apply --validate=strict`.
//!
//! The types of k8s-openapi are made from the API's own description. They fill in required fields that are not
//! there, so those are looked up in the schemas that the same types give. Neither knows the words that a field
//! may hold, so those which the manifests use are listed here.

use std::collections::BTreeMap;

use k8s_openapi::Resource;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Fields with a closed set of words; from the descriptions of the fields in the API.
const WORDS: &[(&str, &[&str])] = &[
    ("accessModes", &["ReadWriteOnce", "ReadWriteOncePod"]),
    ("fsGroupChangePolicy", &["OnRootMismatch", "Always"]),
    ("medium", &["", "Memory"]),
    ("podManagementPolicy", &["OrderedReady", "Parallel"]),
    ("policyTypes", &["Ingress", "Egress"]),
    ("protocol", &["TCP", "UDP", "SCTP"]),
    (
        "unhealthyPodEvictionPolicy",
        &["IfHealthyBudget", "AlwaysAllow"],
    ),
    ("whenDeleted", &["Retain", "Delete"]),
    ("whenScaled", &["Retain", "Delete"]),
    ("whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]),
];

/// What is wrong with the document; empty when it is valid.
pub(crate) fn faults<T: DeserializeOwned + JsonSchema + Resource>(document: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let of_kind = [("apiVersion", T::API_VERSION), ("kind", T::KIND)];
    for (field, expected) in of_kind {
        if document[field] != expected {
            faults.push(format!("{field} is not {expected}"));
        }
    }
    let unknown = |path: serde_ignored::Path<'_>| faults.push(format!("{path}: no such field"));
    if let Err(error) = serde_ignored::deserialize::<_, _, T>(document, unknown) {
        faults.push(error.to_string());
    }
    let schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    missing(&schema, &schema, document, T::KIND, &mut faults);
    words(document, T::KIND, &mut faults);
    faults
}

/// Required fields that are not there.
fn missing(root: &Value, schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => {
            let pointer = reference.trim_start_matches('#');
            let found = root.pointer(&unescape(pointer));
            found.unwrap_or_else(|| panic!("{reference} is not in the schema"))
        }
        None => schema,
    };
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().expect("a name");
        if value.get(name).is_none_or(Value::is_null) {
            faults.push(format!("{path}: `{name}` is missing"));
        }
    }
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let of_field = match schema["properties"].get(name) {
                    Some(property) => property,
                    None => &schema["additionalProperties"],
                };
                missing(root, of_field, inner, &format!("{path}.{name}"), faults);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                let path = format!("{path}.{index}");
                missing(root, &schema["items"], inner, &path, faults);
            }
        }
        _ => {}
    }
}

/// A fragment of a URI as a JSON pointer.
fn unescape(pointer: &str) -> String {
    pointer.replace("%2F", "/").replace("%7E", "~")
}

fn words(value: &Value, path: &str, faults: &mut Vec<String>) {
    let known: BTreeMap<_, _> = WORDS.iter().copied().collect();
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = format!("{path}.{name}");
                let given: Vec<&Value> = match inner {
                    Value::Array(items) => items.iter().collect(),
                    single => vec![single],
                };
                for word in given {
                    if let (Some(allowed), Some(word)) = (known.get(name.as_str()), word.as_str())
                        && !allowed.contains(&word)
                    {
                        faults.push(format!("{path}: `{word}` is none of {allowed:?}"));
                    }
                }
                words(inner, &path, faults);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                words(inner, &format!("{path}.{index}"), faults);
            }
        }
        _ => {}
    }
}
