//! What is read out of dumps, and what is refused.

use proptest::prelude::*;

use super::Statements;
use crate::samples::{columns, pairs};

fn all(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut statements = Statements::new(text.as_bytes(), columns());
    let mut found = Vec::new();
    while let Some(record) = statements.next_record()? {
        found.push(record.texts());
    }
    Ok(found)
}

#[test]
fn rows_of_insert_are_found_among_everything_else() {
    let dump = r#"
-- a comment; with a semicolon
SET client_encoding = 'UTF8; x';
/* another ; */ CREATE TABLE public.kv (key STRING NOT NULL, value STRING, note TEXT DEFAULT ';');
CREATE FUNCTION f() RETURNS text AS $$ INSERT INTO kv (key, value) VALUES ('no', 'no'); $$;
INSERT INTO other (key, value) VALUES ('x', 'INSERT INTO kv (key, value) VALUES (''n'', ''n'');');
INSERT INTO public."kv" ("value", id, key) VALUES
	('it''s (here); ok', 1, 'a/1'),
	(e'line\n\x41\\', -2.5, 'b':::STRING),
	('\x6869', NULL, X'63');
INSERT INTO kv (key, value) VALUES ('d', '') ON CONFLICT DO NOTHING;
"#;
    let expected = pairs(&[
        ("a/1", "it's (here); ok"),
        ("b", "line\nA\\"),
        ("c", "hi"),
        ("d", ""),
    ]);
    assert_eq!(all(dump), Ok(expected));
}

#[test]
fn a_dump_of_cockroachdb_is_read_as_it_was_meant() {
    let dump = r#"CREATE TABLE kv (
	key STRING NOT NULL,
	value STRING NULL,
	tags STRING[] NULL,
	CONSTRAINT "primary" PRIMARY KEY (key ASC),
	FAMILY "primary" (key, value, tags)
);

INSERT INTO sessions (id, data) VALUES
	('a', e'it\'s; INSERT INTO kv (key, value) VALUES (\'no\', \'no\');'),
	('b', b'\x27;');

INSERT INTO kv (key, value, tags) VALUES
	('plain', 'text', NULL),
	(e'm\u00FCsli', e'\U0001F41Ftab\there', ARRAY['a':::STRING, e']\'']),
	(e'quote\'s', e'back\\slash\x01', ARRAY[]:::STRING[]),
	('text', e'\\x41', NULL),
	('bytes', '\x4100', NULL),
	('older bytes', b'A\x00\'', NULL);
UPSERT INTO kv (key, value) VALUES ('late', '{"a": 1}');
"#;
    let expected = pairs(&[
        ("plain", "text"),
        ("m\u{fc}sli", "\u{1f41f}tab\there"),
        ("quote's", "back\\slash\u{1}"),
        ("text", "\\x41"),
        ("bytes", "A\0"),
        ("older bytes", "A\0'"),
        ("late", "{\"a\": 1}"),
    ]);
    assert_eq!(all(dump), Ok(expected));
}

#[test]
fn what_is_passed_over_hides_nothing_behind_it() {
    let row = "INSERT INTO kv (key, value) VALUES ('k', 'v');\n";
    for before in [
        "INSERT INTO o (a) VALUES (E'\\\\', E'\\'; INSERT');\n",
        "CREATE FUNCTION f() AS $fn$ it's; $$ nested; $$ $fn$ LANGUAGE sql;\n",
        "COMMENT ON TABLE \"it's; \"\" odd\" IS 'x';\n",
        "\\restrict t0ken'\n",
        "SET x = 1-- it's\n;",
        "SELECT $1, 1e-5, -2;",
        "COPY \"o;\" (a) FROM stdin;\nit's; (\n\\.\n",
    ] {
        let found = all(&format!("{before}{row}"));
        assert_eq!(found, Ok(pairs(&[("k", "v")])), "{before}");
    }
}

#[test]
fn escapes_of_copy_are_those_of_postgresql() {
    let dump = "COPY kv (key, value) FROM stdin;\nk\\061\\x41\t\\101z\\q\\xg\n\\.\n";
    assert_eq!(all(dump), Ok(pairs(&[("k1A", "Azqxg")])));
}

#[test]
fn rows_of_copy_are_found_too() {
    let dump = "COPY public.other (key, value) FROM stdin;\na\tb\n\\.\n\nCOPY public.kv (id, key, value) FROM stdin;\n1\tk\\t1\tline\\nnext\n2\tk2\t\\\\x6869\n\\.\n\nSELECT 1;\n";
    let expected = pairs(&[("k\t1", "line\nnext"), ("k2", "hi")]);
    assert_eq!(all(dump), Ok(expected));
}

#[test]
fn what_is_not_understood_is_refused() {
    for (dump, reason) in [
        ("INSERT INTO kv VALUES ('a','b');", "without the names"),
        ("INSERT INTO kv (key) VALUES ('a');", "no column `value`"),
        (
            "INSERT INTO kv (key, value) VALUES ('a', now());",
            "more than plain values",
        ),
        (
            "INSERT INTO kv (key, value) VALUES ('a', NULL);",
            "the value is NULL",
        ),
        (
            "INSERT INTO kv (key, value) VALUES ('a', ARRAY['b']);",
            "the value is no plain value",
        ),
        (
            "INSERT INTO kv (key, value) VALUES ('a', e'\\ud800x');",
            "half a character",
        ),
        (
            "INSERT INTO kv (key, value) VALUES ('a', e'\\777');",
            "is no byte",
        ),
        (
            "INSERT INTO kv (key, value) VALUES ('a', 'b",
            "ends within a string",
        ),
        (
            "INSERT INTO kv (key, value) VALUES ('a');",
            "fewer than its columns",
        ),
        (
            "COPY kv (key, value) FROM stdin;\na\tb\n",
            "ends within COPY",
        ),
    ] {
        let error = all(dump).expect_err(dump);
        assert!(error.contains(reason), "{dump}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_survives_a_dump(rows in proptest::collection::vec(("[^\\\\]{1,20}", "[^\\\\]{0,40}"), 1..8)) {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let values: Vec<String> = rows
            .iter()
            .map(|(key, value)| format!("({}, {})", quoted(key), quoted(value)))
            .collect();
        let dump = format!("INSERT INTO kv (key, value) VALUES {};", values.join(", "));
        prop_assert_eq!(all(&dump), Ok(rows));
    }

    #[test]
    fn no_dump_makes_it_panic(text in "[INSERTinto kv(key,value)VALUESCOPY'\\\\x$:;\n-]{0,120}") {
        // An error or some records: both are answers.
        let _ = all(&text);
    }
}
