//! The OpenAPI 3.1 document of each listener, made from the table of [`operations`].
//!
//! A test compares the table with the router, in both directions: what is served is documented, and what
//! is documented is served. Every `GET` may be asked as `HEAD` too, which is said once and not with each.

mod operations;
mod parts;
mod shapes;

use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, ComponentsBuilder, ObjectBuilder, Schema, SchemaFormat,
    SchemaType, Type,
};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    InfoBuilder, KnownFormat, License, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
    ResponseBuilder, ServerBuilder,
};

use super::Side;
use super::problem::PROBLEM_JSON;
use crate::metrics::Route;

pub(super) use self::operations::OPERATIONS;

const JSON: &str = "application/json";

/// One method of one route, as the document tells of it.
pub(super) struct Operation {
    pub(super) route: Route,
    pub(super) method: &'static str,
    pub(super) sides: &'static [Side],
    tag: &'static str,
    summary: &'static str,
    /// Empty where the summary says it all.
    more: &'static str,
    parameters: &'static [Given],
    body: Option<Sent>,
    answers: &'static [Answer],
}

/// A parameter.
struct Given {
    name: &'static str,
    place: Place,
    kind: Kind,
    text: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Path,
    Query,
    /// In the query, and not to be left out.
    Needed,
    Header,
}

/// What a value looks like.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Whole,
    Number,
    Flag,
    Object,
    /// Text, or null.
    MaybeText,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Another shape, by name.
    Shape(&'static str),
    /// A list of it.
    Shapes(&'static str),
    /// A time with a unit.
    Time,
    /// Any bytes.
    Bytes,
}

/// A request's body.
struct Sent {
    media: &'static str,
    kind: Kind,
    text: &'static str,
}

struct Answer {
    status: &'static str,
    text: &'static str,
    media: &'static str,
    kind: Kind,
}

/// A named schema.
struct Shape {
    name: &'static str,
    text: &'static str,
    fields: &'static [Field],
}

struct Field {
    name: &'static str,
    kind: Kind,
    text: &'static str,
    /// Always there.
    always: bool,
}

/// The document of one listener.
pub(super) fn document(side: Side) -> OpenApi {
    let mut paths = PathsBuilder::new();
    for operation in OPERATIONS.iter().filter(|o| o.sides.contains(&side)) {
        let item = PathItem::new(method(operation.method), built(operation));
        paths = paths.path(operation.route.label(), item);
    }
    let mut components = ComponentsBuilder::new();
    for shape in shapes::SHAPES {
        components = components.schema(shape.name, shape_schema(shape));
    }
    let (listener, other) = match side {
        Side::Data => ("data", "The admin listener has a document of its own."),
        Side::Admin => ("admin", "The data listener has a document of its own."),
    };
    let about = format!(
        "The {listener} listener of a torc node. Any node can be asked for any key. {other} Every `GET` may be \
         asked as `HEAD`. Errors are `application/problem+json` (RFC 9457), but in the routes that are \
         compatible with the older service."
    );
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    let info = InfoBuilder::new()
        .title(format!("torc: {listener}"))
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(about))
        .license(Some(license));
    let tags = operations::TAGS.iter().filter(|(tag, _)| {
        let mut on_side = OPERATIONS.iter().filter(|o| o.sides.contains(&side));
        on_side.any(|o| o.tag == *tag)
    });
    let tags = tags.map(|(name, text)| {
        let tag = TagBuilder::new().name(*name).description(Some(*text));
        tag.build()
    });
    OpenApiBuilder::new()
        .info(info.build())
        .servers(Some([ServerBuilder::new().url("/").build()]))
        .tags(Some(tags))
        .paths(paths)
        .components(Some(components.build()))
        .build()
}

fn method(name: &str) -> HttpMethod {
    match name {
        "GET" => HttpMethod::Get,
        "PUT" => HttpMethod::Put,
        "POST" => HttpMethod::Post,
        "DELETE" => HttpMethod::Delete,
        other => unreachable!("the table has no {other}"),
    }
}

fn built(operation: &Operation) -> OperationBuilder {
    let id = format!("{} {}", operation.method, operation.route.label());
    let id = id.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut built = OperationBuilder::new()
        .tag(operation.tag)
        .operation_id(Some(id))
        .summary(Some(operation.summary));
    if !operation.more.is_empty() {
        built = built.description(Some(operation.more));
    }
    for given in operation.parameters {
        built = built.parameter(parameter(given));
    }
    if let Some(sent) = &operation.body {
        let content = ContentBuilder::new().schema(Some(schema(sent.kind, "")));
        let body = RequestBodyBuilder::new()
            .description(Some(sent.text))
            .required(Some(Required::True))
            .content(sent.media, content.build());
        built = built.request_body(Some(body.build()));
    }
    for answer in operation.answers {
        let mut response = ResponseBuilder::new().description(answer.text);
        if !answer.media.is_empty() {
            let content = ContentBuilder::new().schema(Some(schema(answer.kind, "")));
            response = response.content(answer.media, content.build());
        }
        built = built.response(answer.status, response.build());
    }
    built
}

fn parameter(given: &Given) -> Parameter {
    let (place, required) = match given.place {
        Place::Path => (ParameterIn::Path, Required::True),
        Place::Needed => (ParameterIn::Query, Required::True),
        Place::Query => (ParameterIn::Query, Required::False),
        Place::Header => (ParameterIn::Header, Required::False),
    };
    ParameterBuilder::new()
        .name(given.name)
        .parameter_in(place)
        .required(required)
        .description(Some(given.text))
        .schema(Some(schema(given.kind, "")))
        .build()
}

fn shape_schema(shape: &Shape) -> RefOr<Schema> {
    let mut object = ObjectBuilder::new()
        .description(Some(shape.text))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)));
    for field in shape.fields {
        object = object.property(field.name, schema(field.kind, field.text));
        if field.always {
            object = object.required(field.name);
        }
    }
    object.build().into()
}

fn schema(kind: Kind, text: &str) -> RefOr<Schema> {
    let plain = |kind: Type| ObjectBuilder::new().schema_type(SchemaType::new(kind));
    let reference = |name: &str| Ref::from_schema_name(name);
    let object = match kind {
        Kind::Shape(name) => return reference(name).into(),
        Kind::Shapes(name) => {
            let list = ArrayBuilder::new().items(reference(name));
            return list.description(described(text)).build().into();
        }
        Kind::Text => plain(Type::String),
        Kind::MaybeText => {
            ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        }
        Kind::Whole => plain(Type::Integer),
        Kind::Number => plain(Type::Number),
        Kind::Flag => plain(Type::Boolean),
        Kind::Object => {
            plain(Type::Object).additional_properties(Some(AdditionalProperties::FreeForm(true)))
        }
        Kind::Word(words) => plain(Type::String).enum_values(Some(words.iter().copied())),
        Kind::Time => plain(Type::String)
            .pattern(Some("^[0-9]+(ms|s|m|h|d)$"))
            .examples([json!("30s")]),
        Kind::Bytes => {
            plain(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
        }
    };
    object.description(described(text)).build().into()
}

fn described(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// Answers that every route may give.
const fn problem(status: &'static str, text: &'static str) -> Answer {
    Answer {
        status,
        text,
        media: PROBLEM_JSON,
        kind: Kind::Shape("Problem"),
    }
}

/// Fields that the document says are always in a shape.
#[cfg(test)]
pub(super) fn always(shape: &str) -> Vec<&'static str> {
    let shape = shapes::SHAPES.iter().find(|s| s.name == shape);
    let fields = shape.map_or(&[][..], |shape| shape.fields);
    fields.iter().filter(|f| f.always).map(|f| f.name).collect()
}
