//! The tables: each row of the error table of the HTTP interface, spelled out in requests.

use torc_e2e::http::Request;

/// What the answer must look like apart from its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A problem document.
    Problem,
    /// A problem document and an `Allow` field.
    ProblemWithAllow,
    /// A problem document, or nothing: the HTTP parser itself refuses some things.
    ProblemOrNothing,
    /// Anything; compatible routes answer in their own way, and what works is no error.
    Any,
}

/// One request and what must come back.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_head: bool,
    pub(crate) statuses: &'static [u16],
    pub(crate) shape: Shape,
}

const READS: [&str; 2] = ["GET", "HEAD"];
const WRITES: [&str; 2] = ["PUT", "DELETE"];
const KEYED: [&str; 4] = ["GET", "HEAD", "PUT", "DELETE"];
/// What a parser may say to what is not HTTP; silence and closing are answers too.
pub(crate) const NOT_HTTP: &[u16] = &[400, 404, 405, 408, 411, 413, 414, 417, 431, 501, 505];

fn case(request: &Request, statuses: &'static [u16], shape: Shape) -> Case {
    let target: String = request.target().chars().take(80).collect();
    Case {
        what: format!("{} {target}", request.method()),
        bytes: request.encode(),
        is_head: request.method() == "HEAD",
        statuses,
        shape,
    }
}

fn request(method: &str, target: &str) -> Request {
    match method {
        "PUT" | "POST" | "PATCH" => Request::new(method, target).body("v"),
        _ => Request::new(method, target),
    }
}

/// Every method with every value of a query parameter: all 400.
fn queries(methods: &[&str], name: &str, values: &[&str]) -> Vec<Case> {
    let mut cases = Vec::new();
    for value in values {
        for method in methods {
            let target = format!("/kv/default/k?{name}={value}");
            cases.push(case(&request(method, &target), &[400], Shape::Problem));
        }
    }
    cases
}

pub(crate) fn parameters() -> Vec<Case> {
    let quorums = [
        "",
        "0",
        "-1",
        "4",
        "99",
        "foo",
        "1.5",
        "one,two",
        "qourum",
        "18446744073709551616",
        "%00",
        "%ff",
        "two",
        "0x1",
        "null",
        "majority",
        "%",
        "%zz",
    ];
    let lengths_of_time = [
        "",
        "s",
        "10",
        "-1s",
        "1.5x",
        "10x",
        "1e3s",
        "s10",
        "99999999999999999999d",
        "18446744073709551615d",
        "ten",
        "%00",
        "%f0%9f%92%a9",
        "10ss",
        "1s;2s",
        "%",
        "%4",
    ];
    [
        queries(&READS, "r", &quorums),
        queries(&WRITES, "w", &quorums),
        queries(&["PUT"], "ttl", &lengths_of_time),
        queries(&KEYED, "deadline", &lengths_of_time),
        queries(&READS, "wait", &lengths_of_time),
        queries(&WRITES, "sloppy", &["maybe", "2", "tru", "%00", "-1"]),
        queries(&WRITES, "durability", &["none", "osx", "0", "%00"]),
    ]
    .concat()
}

pub(crate) fn names_and_keys() -> Vec<Case> {
    let mut cases = Vec::new();
    let long = "a".repeat(65);
    let longer = "a".repeat(300);
    let buckets = [
        "Default", "DEFAULT", "a.b", "a%20b", "a%00b", "%ff", "%C3%BC", "a~b", "a:b", "a@b",
        "%2e%2e", "a%2Fb", "*", "$", "%", "%4", "%zz", &long, &longer,
    ];
    for bucket in buckets {
        for method in KEYED {
            let target = format!("/kv/{bucket}/k");
            cases.push(case(&request(method, &target), &[400], Shape::Problem));
        }
        cases.push(case(
            &Request::get(&format!("/kv/{bucket}")),
            &[400],
            Shape::Problem,
        ));
        let batch = Request::new("POST", &format!("/kv/{bucket}/_batch"))
            .header("content-type", "application/x-ndjson")
            .body("{\"op\":\"get\",\"key\":\"k\"}\n");
        cases.push(case(&batch, &[400], Shape::Problem));
    }
    let keys = [
        "a".repeat(1_025),
        "a".repeat(1_026),
        "a".repeat(4_000),
        "%41".repeat(1_025),
        "%ff".repeat(1_100),
        format!("{}/", "a/".repeat(512)),
    ];
    for key in &keys {
        for method in KEYED {
            let target = format!("/kv/default/{key}");
            cases.push(case(&request(method, &target), &[400, 414], Shape::Problem));
        }
    }
    let malformed = [
        "%", "%2", "%zz", "%G0", "a%", "a%2", "%%", "%0x", "%u0041", "%-1", "a%C3%B", "%2%30",
    ];
    for key in malformed {
        for method in KEYED {
            let target = format!("/kv/default/{key}");
            cases.push(case(&request(method, &target), &[400], Shape::Problem));
        }
    }
    for method in KEYED {
        cases.push(case(
            &request(method, "/kv/default/"),
            &[400],
            Shape::Problem,
        ));
        cases.push(case(
            &request(method, "/kv//k"),
            &[400, 404],
            Shape::Problem,
        ));
    }
    cases
}

pub(crate) fn headers() -> Vec<Case> {
    let mut cases = Vec::new();
    let long = "A".repeat(4_096);
    for method in WRITES {
        for context in [
            "garbage",
            "AAAA",
            "!!!",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            &long,
        ] {
            let request = request(method, "/kv/default/k").header("x-torc-context", context);
            cases.push(case(&request, &[400], Shape::Problem));
        }
        let conditions = [
            ("if-match", "\"x\""),
            ("if-match", "*"),
            ("if-none-match", "*"),
            ("if-none-match", "\"x\""),
        ];
        for (name, value) in conditions {
            let request = request(method, "/kv/default/k").header(name, value);
            cases.push(case(&request, &[400], Shape::Problem));
        }
    }
    for range in [
        "bytes=5-2",
        "bytes=a-b",
        "bytes=99999-",
        "items=0-1",
        "bytes=",
        "bytes=0-0,2-3",
        "bytes=-0",
        "",
    ] {
        let request = Request::get("/kv/default/here").header("range", range);
        cases.push(case(&request, &[200, 206, 400, 416], Shape::Any));
    }
    for value in ["image/png", "text/html", "application/xml"] {
        let request = Request::get("/kv/default").header("accept", value);
        cases.push(case(&request, &[406], Shape::Problem));
    }
    for value in [
        "text/plain",
        "image/png",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let request = Request::new("POST", "/kv/default/_batch")
            .header("content-type", value)
            .body("{\"op\":\"get\",\"key\":\"k\"}\n");
        cases.push(case(&request, &[415], Shape::Problem));
    }
    cases
}

pub(crate) fn lists() -> Vec<Case> {
    let mut cases = Vec::new();
    for limit in ["-1", "abc", "", "99999999999999999999", "1.5", "%00", "%"] {
        let request = Request::get(&format!("/kv/default?limit={limit}"));
        cases.push(case(&request, &[400], Shape::Problem));
    }
    for cursor in ["garbage", "%00", "AAAA", "%ff", "..", "%zz", "eyJhIjoxfQ"] {
        let request = Request::get(&format!("/kv/default?cursor={cursor}"));
        cases.push(case(&request, &[400], Shape::Problem));
    }
    let long = "a".repeat(1_025);
    for prefix in ["%", "%4", "%xx", &long] {
        let request = Request::get(&format!("/kv/default?prefix={prefix}"));
        cases.push(case(&request, &[400], Shape::Problem));
    }
    cases
}

pub(crate) fn routes() -> Vec<Case> {
    let mut cases = Vec::new();
    let odd = ["PATCH", "TRACE", "FOO", "PROPFIND", "LOCK", "get"];
    for method in odd.iter().chain(&["POST"]) {
        let request = request(method, "/kv/default/k");
        cases.push(case(&request, &[405], Shape::ProblemWithAllow));
    }
    for method in odd.iter().chain(&["PUT", "DELETE", "POST"]) {
        let request = request(method, "/kv/default");
        cases.push(case(&request, &[405], Shape::ProblemWithAllow));
    }
    for path in ["/health", "/health/live", "/health/ready"] {
        for method in odd.iter().chain(&["PUT", "DELETE", "POST"]) {
            cases.push(case(
                &request(method, path),
                &[405],
                Shape::ProblemWithAllow,
            ));
        }
    }
    for path in ["/kv", "/cache/stats"] {
        for method in odd.iter().chain(&["POST"]) {
            cases.push(case(&request(method, path), &[405], Shape::Any));
        }
    }
    let nowhere = [
        "/nope",
        "/kvs",
        "/KV/default/k",
        "/kv2",
        "/health/nope",
        "/health/live/",
        "/ring/",
        "/buckets/x",
        "/ring/owners",
        "/cluster",
        "/repair",
        "/.",
        "/..",
        "//",
        "/kv/nosuch/k",
        "/kv/nosuch",
        "/kv/default/absent",
        "/kv/default/absent%00",
        "/index.php",
        "/.git/config",
        "/cache",
        "/cache/x",
    ];
    for path in nowhere {
        cases.push(case(&Request::get(path), &[404], Shape::Problem));
        cases.push(case(&Request::new("HEAD", path), &[404], Shape::Problem));
    }
    for method in WRITES {
        cases.push(case(
            &request(method, "/kv/nosuch/k"),
            &[404],
            Shape::Problem,
        ));
        cases.push(case(&request(method, "/nope"), &[404], Shape::Problem));
    }
    let compatible = [
        Request::get("/kv"),
        Request::get("/kv?key="),
        Request::get("/kv?key=%"),
        Request::get("/kv?nokey=1"),
        Request::delete("/kv"),
        Request::delete("/kv?key=absent"),
        Request::put("/kv", ""),
        Request::put("/kv", "{}"),
        Request::put("/kv", "{\"data\":{}}"),
        Request::put("/kv", "{\"data\":{\"key\":\"k\"}}"),
        Request::put("/kv", "{\"data\":{\"value\":\"v\"}}"),
        Request::put("/kv", "{\"data\":[]}"),
        Request::put("/kv", "not json"),
        Request::put("/kv", "[".repeat(10_000)),
        Request::put("/kv", [0xff, 0xfe, 0x00]),
    ];
    cases.extend(
        compatible
            .iter()
            .map(|request| case(request, &[400, 404, 422], Shape::Any)),
    );
    cases
}

pub(crate) fn too_much() -> Vec<Case> {
    let mut cases = Vec::new();
    let over = vec![b'x'; 1024 * 1024 + 1];
    cases.push(case(
        &Request::put("/kv/default/big", over.clone()),
        &[413],
        Shape::Problem,
    ));
    let mut chunked =
        b"PUT /kv/default/big HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in over.chunks(64 * 1024) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    cases.push(raw(
        "over the limit in chunks",
        &chunked,
        &[413],
        Shape::Problem,
    ));
    for length in [
        "1048577",
        "10000000000",
        "1000000000000000000",
        "9223372036854775807",
    ] {
        let head =
            format!("PUT /kv/default/big HTTP/1.1\r\nhost: t\r\ncontent-length: {length}\r\n\r\n");
        let what = format!("a body of {length} bytes announced");
        cases.push(raw(&what, head.as_bytes(), &[413], Shape::Problem));
    }
    for length in [20_000, 70_000, 200_000, 2_000_000] {
        let target = format!("/kv/default/{}", "a".repeat(length));
        let request = Request::get(&target);
        cases.push(case(&request, &[400, 414, 431], Shape::ProblemOrNothing));
        let query = format!("/kv/default/k?{}", "r=one&".repeat(length / 6));
        cases.push(case(
            &Request::get(&query),
            &[200, 400, 404, 414, 431],
            Shape::Any,
        ));
    }
    for length in [70_000, 200_000, 1_000_000] {
        let request = Request::get("/kv/default/k").header("x-long", &"b".repeat(length));
        cases.push(case(&request, &[400, 431], Shape::ProblemOrNothing));
        let request = Request::get("/kv/default/k").header(&"c".repeat(length), "x");
        cases.push(case(&request, &[400, 431], Shape::ProblemOrNothing));
    }
    for count in [101, 1_000, 10_000] {
        let mut request = Request::get("/kv/default/k");
        for number in 0..count {
            request = request.header(&format!("x-{number}"), "y");
        }
        cases.push(case(&request, &[400, 431], Shape::ProblemOrNothing));
    }
    let lines = "{\"op\":\"get\",\"key\":\"k\"}\n".repeat(1_001);
    let batch = Request::new("POST", "/kv/default/_batch")
        .header("content-type", "application/x-ndjson")
        .body(lines);
    cases.push(case(&batch, &[400, 413], Shape::Problem));
    cases
}

fn raw(what: &str, bytes: &[u8], statuses: &'static [u16], shape: Shape) -> Case {
    Case {
        what: what.to_owned(),
        bytes: bytes.to_vec(),
        is_head: false,
        statuses,
        shape,
    }
}

/// What is hardly HTTP any more.
pub(crate) fn malformed() -> Vec<Case> {
    let lines = [
        "GET\r\n\r\n",
        "GET \r\n\r\n",
        "GET /\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/3.0\r\nhost: t\r\n\r\n",
        "GET / HTTP/1.\r\n\r\n",
        "GET / HTTP/1.1 extra\r\nhost: t\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /a b HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET kv/default/k HTTP/1.1\r\nhost: t\r\n\r\n",
        "G\u{0}T / HTTP/1.1\r\nhost: t\r\n\r\n",
        " GET / HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\n: no name\r\n\r\n",
        "GET / HTTP/1.1\r\nbad name: x\r\n\r\n",
        "GET / HTTP/1.1\r\nname : x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: t\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nh\u{0}st: t\r\n\r\n",
        "CONNECT torc:1 HTTP/1.1\r\nhost: torc:1\r\n\r\n",
        "CONNECT / HTTP/1.1\r\n\r\n",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: +1\r\n\r\nx",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: 1x\r\n\r\nx",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: 0x1\r\n\r\nx",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: \r\n\r\nx",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: 99999999999999999999999\r\n\r\nx",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxy",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ncontent-length: 1, 2\r\n\r\nxy",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ntransfer-encoding: xchunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked, gzip\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n",
        "PUT /kv/default/m HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
        "PUT /kv/default/m HTTP/1.0\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage garbage garbage garbage",
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3} a TLS hello on a plain port",
        "\r\n\r\n\r\n\r\n",
        "\u{0}\u{0}\u{0}\u{0}",
        "*1\r\n$4\r\nPING\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ];
    let mut cases: Vec<Case> = lines
        .iter()
        .map(|line| {
            raw(
                &format!("{line:?}"),
                line.as_bytes(),
                NOT_HTTP,
                Shape::ProblemOrNothing,
            )
        })
        .collect();
    // Control characters in a target, in a field name, and in a field value.
    for byte in (0..0x20)
        .chain([0x7f])
        .filter(|byte| !matches!(byte, b'\t' | b'\n' | b'\r'))
    {
        for (before, after) in [
            (
                &b"GET /kv/default/a"[..],
                &b"b HTTP/1.1\r\nhost: t\r\n\r\n"[..],
            ),
            (
                b"GET /kv/default/k HTTP/1.1\r\nhost: t\r\nx-a",
                b"b: c\r\n\r\n",
            ),
            (
                b"GET /kv/default/k HTTP/1.1\r\nhost: t\r\nx-a: b",
                b"c\r\n\r\n",
            ),
        ] {
            let bytes = [before, &[byte], after].concat();
            let what = format!("{:?}", String::from_utf8_lossy(&bytes));
            cases.push(raw(&what, &bytes, NOT_HTTP, Shape::ProblemOrNothing));
        }
    }
    cases
}

/// Odd, but HTTP allows it: the answer matters less than that there is one below 500.
pub(crate) fn odd() -> Vec<Case> {
    const BELOW_500: &[u16] = &[
        200, 204, 206, 400, 404, 405, 406, 408, 411, 414, 415, 417, 431,
    ];
    let lines = [
        "GET /health/live HTTP/1.1\r\n\r\n",
        "GET /health/live HTTP/1.0\r\n\r\n",
        "GET /health/live HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "\r\nGET /health/live HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /health/live HTTP/1.1\nhost: t\n\n",
        "GET http://torc.test/health/live HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET http://user:pass@torc.test:1/health/live HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /health/live#part HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /health/live?%zz HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /health/live? HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /kv/default/here?r=one&r=all HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /kv/default/here?&&&=&=1&r HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /kv/default/here?unknown=1 HTTP/1.1\r\nhost: t\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: t\r\n\r\n",
        "OPTIONS /kv/default/k HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /kv/default/here HTTP/1.1\r\nhost: t\r\ncontent-length: 3\r\n\r\nabc",
        "DELETE /kv/default/odd HTTP/1.1\r\nhost: t\r\ncontent-length: 3\r\n\r\nabc",
        "PUT /kv/default/odd HTTP/1.1\r\nhost: t\r\n\r\n",
        "PUT /kv/default/odd HTTP/1.1\r\nhost: t\r\nexpect: 200-ok\r\ncontent-length: 1\r\n\r\nx",
        "PUT /kv/default/odd HTTP/1.1\r\nhost: t\r\ncontent-type: \r\ncontent-length: 1\r\n\r\nx",
        "GET /health/live HTTP/1.1\r\nhost: t\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        "GET /health/live HTTP/1.1\r\nhost: t\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAAA\r\n\r\n",
        "GET /kv/default/here HTTP/1.1\r\nhost: t\r\nif-none-match: not an etag\r\n\r\n",
        "GET /kv/default/here HTTP/1.1\r\nhost: t\r\nif-modified-since: never\r\n\r\n",
        "GET /kv/default/here HTTP/1.1\r\nhost: t\r\ntraceparent: 00-zz\r\n\r\n",
        "GET /kv/default/here HTTP/1.1\r\nhost: t\r\nx-request-id: \u{fc}\u{fc}\r\n\r\n",
        "GET /kv/default/here HTTP/1.1\r\nhost: t\r\nx-request-id: \r\n\r\n",
    ];
    let mut cases: Vec<Case> = lines
        .iter()
        .map(|line| raw(&format!("{line:?}"), line.as_bytes(), BELOW_500, Shape::Any))
        .collect();
    let id = "i".repeat(5_000);
    let request = Request::get("/kv/default/here").header("x-request-id", &id);
    cases.push(case(&request, BELOW_500, Shape::Any));
    // Bytes above ASCII, unencoded, in a key.
    for byte in (0x80..=0xff).step_by(3) {
        let bytes = [
            &b"GET /kv/default/a"[..],
            &[byte],
            &b" HTTP/1.1\r\nhost: t\r\n\r\n"[..],
        ]
        .concat();
        cases.push(raw(
            &format!("byte {byte:#x} in a key"),
            &bytes,
            BELOW_500,
            Shape::Any,
        ));
    }
    cases
}
