//! The web console at `/`, the browsable interface at `/docs`, and what both are made of.
//!
//! All of it is in the binary; nothing is fetched from another host, and the policy sent along
//! (`Content-Security-Policy`) lets the browser neither run other scripts nor show the pages in a frame.
//! The pages are plain clients of the routes beside them: they can do nothing that `curl` cannot.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::body::Body;
use super::problem::{Problem, Refused};
use super::{Side, openapi};
use crate::handle::Handle;

const PAGE: &str = include_str!("../../assets/console.html");
const DOCS: &str = include_str!("../../assets/docs.html");

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, media type, content.
const ASSETS: [(&str, &str, &str); 4] = [
    (
        "console.css",
        STYLE,
        include_str!("../../assets/console.css"),
    ),
    (
        "console.js",
        SCRIPT,
        include_str!("../../assets/console.js"),
    ),
    ("docs.js", SCRIPT, include_str!("../../assets/docs.js")),
    (
        "icon.svg",
        "image/svg+xml",
        include_str!("../../assets/icon.svg"),
    ),
];

/// What of Swagger UI is served; its package holds more (source maps, pages with scripts in them).
const SWAGGER: [(&str, &str); 2] = [("swagger-ui.css", STYLE), ("swagger-ui-bundle.js", SCRIPT)];

/// Scripts, styles and requests of this origin only; pictures also from memory; in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' blob:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// Swagger UI writes styles into its elements, and has its icons in `data:` addresses.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; \
                           img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// A document that is nobody's page: it runs nothing, loads nothing, and has an origin of its own.
const VALUE_POLICY: &str = "sandbox; default-src 'none'; frame-ancestors 'none'";

/// Which opener may reach into a window with the page: none of another origin.
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// `GET /`: the console.
pub(super) fn page(handle: &Handle, side: Side) -> Response<Body> {
    // The name is checked to hold nothing that HTML would read otherwise.
    let name = &handle.settings().name;
    let name = if torc_ring::config::is_node_name(name) {
        name
    } else {
        ""
    };
    let listener = match side {
        Side::Data => "data",
        Side::Admin => "admin",
    };
    let text = PAGE
        .replace("{{listener}}", listener)
        .replace("{{name}}", name);
    document(HTML, Bytes::from(text), POLICY)
}

/// `GET /assets/{file}`.
pub(super) fn asset(path: &str) -> Result<Response<Body>, Refused> {
    let name = path.strip_prefix("/assets/").unwrap_or_default();
    let found = ASSETS.iter().find(|(known, ..)| *known == name);
    let (_, media, text) = found.ok_or_else(|| Problem::no_route(path))?;
    // A picture that is opened alone is a document too.
    Ok(document(
        media,
        Bytes::from_static(text.as_bytes()),
        VALUE_POLICY,
    ))
}

/// `GET /docs`: the routes of this listener to read and to try.
pub(super) fn docs() -> Response<Body> {
    document(HTML, Bytes::from_static(DOCS.as_bytes()), DOCS_POLICY)
}

/// `GET /docs/{file}`: Swagger UI, as its package has it.
pub(super) fn docs_file(path: &str) -> Result<Response<Body>, Refused> {
    let name = path.strip_prefix("/docs/").unwrap_or_default();
    let found = SWAGGER.iter().find(|(known, _)| *known == name);
    let &(_, media) = found.ok_or_else(|| Problem::no_route(path))?;
    // The configuration goes only into a file that is not served.
    let config = Arc::new(utoipa_swagger_ui::Config::from("/openapi.json"));
    let Ok(Some(file)) = utoipa_swagger_ui::serve(name, config) else {
        return Err(Problem::internal());
    };
    let bytes = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => Bytes::from(bytes),
    };
    let mut response = document(media, bytes, VALUE_POLICY);
    // 1.5 MiB that change with the version of the binary only.
    let cache = HeaderValue::from_static("max-age=3600");
    response.headers_mut().insert(CACHE_CONTROL, cache);
    Ok(response)
}

/// `GET /openapi.json`: the routes of this listener, in OpenAPI 3.1.
pub(super) fn openapi_json(side: Side) -> Result<Response<Body>, Refused> {
    static DATA: OnceLock<Option<Bytes>> = OnceLock::new();
    static ADMIN: OnceLock<Option<Bytes>> = OnceLock::new();
    let once = match side {
        Side::Data => &DATA,
        Side::Admin => &ADMIN,
    };
    let text = once.get_or_init(|| openapi::document(side).to_json().ok().map(Bytes::from));
    let text = text.clone().ok_or_else(Problem::internal)?;
    Ok(document("application/json", text, VALUE_POLICY))
}

/// Keeps a browser from taking a value for a page of this node: somebody's HTML that was stored as a value
/// would otherwise run with everything that the console may do. For requests that a browser makes to show
/// something; programs are spared the bytes.
pub(super) fn confine(accept: Option<&HeaderValue>, headers: &mut HeaderMap) {
    const HTML: &[u8] = b"text/html";
    let shows = accept.is_some_and(|accept| {
        accept
            .as_bytes()
            .windows(HTML.len())
            .any(|part| part.eq_ignore_ascii_case(HTML))
    });
    if shows {
        harden(headers, VALUE_POLICY);
    }
}

fn document(media: &'static str, bytes: Bytes, policy: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::full(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    harden(headers, policy);
    response
}

fn harden(headers: &mut HeaderMap, policy: &'static str) {
    let fixed = [
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
