//! YAML as JSON values, for manifests and Helm values.

use marked_yaml::types::MarkedScalarNode;
use marked_yaml::{LoaderOptions, Node};
use serde_json::{Map, Value};

/// Parses the documents of a stream that `kubectl kustomize` prints.
pub fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(parse).collect()
}

/// Parses one document.
pub fn parse(text: &str) -> Value {
    let options = LoaderOptions::default()
        .error_on_duplicate_keys(true)
        .prevent_coercion(true);
    value(&marked_yaml::parse_yaml_with_options(0, text, options).unwrap())
}

fn value(node: &Node) -> Value {
    match node {
        Node::Scalar(node) => scalar(node),
        Node::Sequence(nodes) => nodes.iter().map(value).collect(),
        Node::Mapping(entries) => {
            let entries = entries
                .iter()
                .map(|(key, node)| (key.as_str().to_owned(), value(node)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
    }
}

/// Resolves the type of an unquoted scalar. Floats do not occur here.
fn scalar(node: &MarkedScalarNode) -> Value {
    let text = node.as_str();
    if !node.may_coerce() {
        return text.into();
    }
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        _ => text
            .parse::<i64>()
            .map_or_else(|_| text.into(), Value::from),
    }
}
