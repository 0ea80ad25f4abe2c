//! Completes the generated OpenAPI document: summaries and descriptions from the comments in `proto/`, one `operationId` for each
//! operation, and the document paths, which are not transcoded.

use std::collections::HashMap;
use std::error::Error;

use prost_types::source_code_info::Location;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};

/// The package whose methods have paths.
const PACKAGE: &str = "kvstore.v1";

/// Paths under this prefix repeat those of `/api/v1/kv`, without its fixed words.
const KEYS_PREFIX: &str = "/api/v1/keys/";

/// Field numbers of `descriptor.proto`, of which the paths of comments are made.
const FILE_MESSAGES: i32 = 4;
const FILE_SERVICES: i32 = 6;
const MESSAGE_FIELDS: i32 = 2;
const SERVICE_METHODS: i32 = 2;

/// Comments by full name: `kvstore.v1.PutRequest`, `kvstore.v1.PutRequest.ttl`, `kvstore.v1.KvService.Put`.
struct Comments {
    texts: HashMap<String, String>,
    /// The name of each method's request, by the method's name.
    requests: HashMap<String, String>,
}

pub(crate) fn complete(
    generated: &str,
    descriptors: &FileDescriptorSet,
) -> Result<String, Box<dyn Error>> {
    let comments = Comments::read(descriptors);
    let mut document: Value = serde_json::from_str(generated)?;
    document["info"]["description"] =
        "A distributed, persistent key/value store for JSON documents.".into();
    let paths = object(&mut document["paths"])?;
    for (path, methods) in paths.iter_mut() {
        for (_, operation) in object(methods)?.iter_mut() {
            describe_operation(path, operation, &comments)?;
        }
    }
    paths.insert("/api/v1/json/{key}".to_owned(), document_paths());
    for (name, schema) in object(&mut document["components"]["schemas"])?.iter_mut() {
        describe_schema(name, schema, &comments);
    }
    // The key of a Put stands in its path.
    let put = &mut document["components"]["schemas"]["kvstore.v1.PutRequest"]["properties"];
    object(put)?.remove("key").ok_or("PutRequest has no key")?;
    Ok(serde_json::to_string(&document)?)
}

fn describe_operation(
    path: &str,
    operation: &mut Value,
    comments: &Comments,
) -> Result<(), Box<dyn Error>> {
    let name = operation["operationId"].as_str().ok_or("an operation has no id")?.to_owned();
    let text = comments
        .get(&format!("KvService.{name}"))
        .ok_or_else(|| format!("{name} has no comment"))?;
    let summary = text.split(". ").next().unwrap_or(text).trim_end_matches('.');
    operation["summary"] = summary.into();
    operation["description"] = text.into();
    if path.starts_with(KEYS_PREFIX) {
        operation["operationId"] = format!("{name}AnyKey").into();
    }
    let request = comments.requests.get(&name).ok_or_else(|| format!("{name} has no request"))?;
    if let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) {
        for parameter in parameters {
            let field = parameter["name"].as_str().unwrap_or_default().to_owned();
            if let Some(text) = comments.get(&format!("{request}.{field}")) {
                parameter["description"] = text.into();
            }
        }
    }
    Ok(())
}

fn describe_schema(name: &str, schema: &mut Value, comments: &Comments) {
    let Some(short) = name.strip_prefix(PACKAGE).and_then(|name| name.strip_prefix('.')) else {
        return;
    };
    if let Some(text) = comments.get(short) {
        schema["description"] = text.into();
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (field, property) in properties {
        if let (Some(text), Some(property)) =
            (comments.get(&format!("{short}.{field}")), property.as_object_mut())
        {
            property.insert("description".to_owned(), text.into());
        }
    }
}

impl Comments {
    fn read(descriptors: &FileDescriptorSet) -> Self {
        let mut comments = Self { texts: HashMap::new(), requests: HashMap::new() };
        for file in descriptors.file.iter().filter(|file| file.package() == PACKAGE) {
            comments.read_file(file);
        }
        comments
    }

    fn read_file(&mut self, file: &FileDescriptorProto) {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        for Location { path, leading_comments, .. } in locations {
            let Some(text) = leading_comments.as_deref() else { continue };
            if let Some(name) = name_of(file, path) {
                self.texts.insert(name, one_line(text));
            }
        }
        for method in file.service.iter().flat_map(|service| &service.method) {
            let request = method.input_type().rsplit('.').next().unwrap_or_default();
            self.requests.insert(method.name().to_owned(), request.to_owned());
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }
}

/// The name of what a comment's path points to; fields by their JSON name.
fn name_of(file: &FileDescriptorProto, path: &[i32]) -> Option<String> {
    let at = |index: &i32| usize::try_from(*index).ok();
    match path {
        [FILE_MESSAGES, message, rest @ ..] => {
            let message: &DescriptorProto = file.message_type.get(at(message)?)?;
            match rest {
                [] => Some(message.name().to_owned()),
                [MESSAGE_FIELDS, field] => Some(format!(
                    "{}.{}",
                    message.name(),
                    message.field.get(at(field)?)?.json_name()
                )),
                _ => None,
            }
        }
        [FILE_SERVICES, service, SERVICE_METHODS, method] => {
            let service = file.service.get(at(service)?)?;
            Some(format!("{}.{}", service.name(), service.method.get(at(method)?)?.name()))
        }
        _ => None,
    }
}

fn one_line(comment: &str) -> String {
    comment.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn object(value: &mut Value) -> Result<&mut Map<String, Value>, Box<dyn Error>> {
    value.as_object_mut().ok_or_else(|| "the generated document has another shape".into())
}

/// `/api/v1/json/{key}`.
fn document_paths() -> Value {
    let key = json!({"name": "key", "in": "path", "required": true, "schema": {"type": "string"},
        "description": "The key, 1 to 4096 bytes of UTF-8. Slashes may stand as they are or encoded."});
    let query = |name: &str, schema: Value, description: &str| json!({"name": name, "in": "query", "required": false, "schema": schema, "description": description});
    let if_version = query(
        "ifVersion",
        json!({"type": "string", "format": "uint64"}),
        "Only if the key has this version; 0: only if it is absent.",
    );
    let request_id = query(
        "requestId",
        json!({"type": "string"}),
        "Makes a repeat within 10 minutes answer as the first did.",
    );
    let ttl = query(
        "ttl",
        json!({"type": "integer", "format": "uint32", "minimum": 1}),
        "Seconds until the key expires; absent: never.",
    );
    let consistency = query(
        "consistency",
        json!({"$ref": "#/components/schemas/kvstore.v1.Consistency"}),
        "How fresh the answer must be.",
    );
    let error = json!({"description": "An error, as a gRPC status mapped to an HTTP status.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/google.rpc.Status"}}}});
    let answer = |schema: &str| {
        json!({"200": {"description": "Successful response.", "content": {"application/json": {"schema":
            {"$ref": format!("#/components/schemas/kvstore.v1.{schema}")}}}}, "default": error})
    };
    let document = json!({"application/json": {"schema": {}}});
    json!({
        "get": {
            "operationId": "GetDocument",
            "summary": "Reads the document under a key, byte for byte as it was stored",
            "parameters": [key, consistency, {"name": "If-None-Match", "in": "header", "required": false,
                "schema": {"type": "string"}, "description": "Entity tags of versions that the caller has."}],
            "responses": {
                "200": {"description": "The document.", "content": document, "headers": {"ETag":
                    {"description": "Its version, in quotes.", "schema": {"type": "string"}}}},
                "304": {"description": "The caller has this version."},
                "default": error,
            },
        },
        "put": {
            "operationId": "PutDocument",
            "summary": "Stores the body, any JSON text, byte for byte",
            "parameters": [key, ttl, if_version, request_id],
            "requestBody": {"required": true, "content": document},
            "responses": answer("PutResponse"),
        },
        "delete": {
            "operationId": "DeleteDocument",
            "summary": "Removes one key",
            "parameters": [key, if_version, request_id],
            "responses": answer("DeleteResponse"),
        },
    })
}
