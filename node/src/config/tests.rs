use proptest::prelude::*;

use super::*;

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())))
        .collect()
}

fn refused(text: &str) -> String {
    match parse_config(text) {
        Err(error) => error.to_string(),
        Ok(settings) => panic!("accepted {text:?}: {settings:?}"),
    }
}

#[test]
fn the_documented_defaults_are_accepted_unchanged_and_change_nothing() {
    let from_text = parse_config(&default_config()).expect("the defaults are valid");
    assert_eq!(from_text, parse_config("").expect("an empty file is valid"));
    assert_eq!(from_text.name, "node-1");
    assert_eq!(from_text.limits.value_bytes, 1 << 20);
    assert_eq!(from_text.start, Start::Resume);
    assert_eq!(from_text.durability, Durability::Fsync);
    assert_eq!(from_text.advertise_peer, "127.0.0.1:7081");
}

#[test]
fn every_commented_example_is_accepted_too() {
    let text: String = default_config()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // One server and sentinels exclude each other.
            Some(rest) if rest.starts_with("redis =") => String::new(),
            Some(rest) if rest.split(' ').nth(1) == Some("=") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let settings = parse_config(&text).expect("valid");
    assert_eq!(settings.pki, Some(PathBuf::from("pki")));
    let sentinels = settings.cache.map(|cache| cache.place);
    assert!(matches!(sentinels, Some(CachePlace::Sentinels { .. })));
    assert_eq!(
        settings.queue.map(|queue| queue.vhost),
        Some("torc".to_owned())
    );
    assert_eq!(
        settings.start,
        Start::Join(vec!["127.0.0.1:7081".to_owned()])
    );
}

#[test]
fn each_source_overrides_the_one_before() {
    let mut layers = Layers::new();
    layers
        .file("name = \"file\"\nzone = \"file\"\nweight = 7\n[limits]\nvalue_bytes = \"2MiB\"")
        .expect("file");
    layers
        .environment(variables(&[
            ("TORC_ZONE", "env"),
            ("TORC_WEIGHT", "8"),
            ("PATH", "/bin"),
        ]))
        .expect("environment");
    layers
        .flags([("weight", "9".to_owned(), "--weight".to_owned())])
        .expect("flags");
    let settings = layers.settings().expect("valid");
    assert_eq!(settings.name, "file");
    assert_eq!(settings.zone, "env");
    assert_eq!(settings.weight, 9);
    assert_eq!(settings.limits.value_bytes, 2 << 20);
}

#[test]
fn how_a_node_starts_is_one_choice() {
    let both = refused("bootstrap = true\njoin = [\"a:1\"]");
    assert!(both.contains("exclude each other"), "{both}");
    let mut layers = Layers::new();
    layers.file("bootstrap = true").expect("file");
    layers
        .flags([("join", "a:1, b:2".to_owned(), "--join".to_owned())])
        .expect("flag");
    let start = layers
        .settings()
        .expect("the flag replaces the file's choice")
        .start;
    assert_eq!(start, Start::Join(vec!["a:1".to_owned(), "b:2".to_owned()]));
}

#[test]
fn who_takes_a_dead_members_place_joins() {
    let alone = refused("replace = \"node-3\"");
    assert!(alone.contains("add --join"), "{alone}");
    let settings = parse_config("join = [\"a:1\"]\nreplace = \"node-3\"").expect("both");
    assert_eq!(settings.replace.as_deref(), Some("node-3"));
}

#[test]
fn a_key_that_is_no_longer_needed_is_passed_by_with_a_warning_wherever_it_stands() {
    let mut layers = Layers::new();
    layers
        .file("name = \"n\"\nring_changes_preview = \"whatever\"")
        .expect("file");
    layers
        .environment(variables(&[("TORC_RING_CHANGES_PREVIEW", "true")]))
        .expect("environment");
    layers
        .flags([(
            "ring_changes_preview",
            "true".to_owned(),
            "--set".to_owned(),
        )])
        .expect("flag");
    let warnings = layers.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    let places = ["line 2", "environment variable TORC_RING", "flag --set"];
    for (warning, place) in warnings.iter().zip(places) {
        assert!(warning.contains(place), "{warning}");
        assert!(warning.contains("always on"), "{warning}");
    }
    assert_eq!(layers.settings().expect("valid").name, "n");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name_wherever_they_stand() {
    for (text, expected) in [
        (
            "nmae = \"x\"",
            "line 1: unknown key `nmae`; did you mean `name`?",
        ),
        (
            "\n\n[limits]\nvalue_byte = 1",
            "line 4: unknown key `limits.value_byte`; did you mean `limits.value_bytes`?",
        ),
        ("[limit]\nvalue_bytes = 1", "line 1: unknown key `limit`"),
        ("[hints.age]\nx = 1", "hints.age = a section is not a time"),
        (
            "zebra_crossing = 1",
            "`torc config default` prints all keys",
        ),
        ("name.first = \"x\"", "name = a section is not a name"),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text:?}: {message}");
    }
    let error = Layers::new().environment(variables(&[("TORC_LIMITS_VALUE_BITES", "1MiB")]));
    let message = error.expect_err("unknown").to_string();
    assert!(
        message.contains("did you mean `limits.value_bytes`?"),
        "{message}"
    );
    let error = Layers::new().flags([("nam", String::new(), "--set".to_owned())]);
    assert!(
        error
            .expect_err("unknown")
            .to_string()
            .contains("flag --set: unknown key `nam`")
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    let foreign = variables(&[
        ("TORC_SERVICE_HOST", "10.0.0.1"),
        ("TORC_PORT", "tcp://10.0.0.1:80"),
        ("TORC_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("TORC_CACHE_DIR", "/x"),
        ("TORC_NODE_URL", "http://x"),
    ]);
    Layers::new()
        .environment(foreign)
        .expect("none of them is a setting");
    let broken = vec![("TORC_NAME".to_owned(), None)];
    let message = Layers::new()
        .environment(broken)
        .expect_err("not UTF-8")
        .to_string();
    assert!(message.contains("TORC_NAME"), "{message}");
}

#[test]
fn bad_values_name_key_place_and_what_is_right() {
    for (text, expected) in [
        (
            "weight = 0",
            "line 1: weight = 0 is not a whole number from 1 to 10000",
        ),
        (
            "weight = \"many\"",
            "weight = \"many\" is not a whole number",
        ),
        ("weight = 1.5", "weight = a number with a fraction is not"),
        ("weight = -1", "weight = -1 is not"),
        ("name = \"a b\"", "name = \"a b\" is not a name"),
        ("name = 3", "name = 3 is not a name"),
        ("http = \"localhost:80\"", "is not an address as IP:PORT"),
        ("http = \"127.0.0.1:0\"", "a port above 0"),
        ("deadline = 2", "deadline = 2 is not a time from 1ms to 10m"),
        ("deadline = \"2\"", "deadline = \"2\" is not a time"),
        ("deadline = \"11m\"", "deadline = \"11m\" is not a time"),
        (
            "deadline = \"90s\"",
            "deadline = 90s is above deadline_max = 1m",
        ),
        ("[limits]\nvalue_bytes = 1048576", "with its unit"),
        (
            "[limits]\nvalue_bytes = \"65MiB\"",
            "is not a size from 1B to 64MiB",
        ),
        ("shards = 3", "\"auto\" or a power of two from 1 to 32"),
        ("shards = 64", "\"auto\" or a power of two from 1 to 32"),
        (
            "durability = \"never\"",
            "is not one of fsync, interval, os",
        ),
        ("insecure = \"yes\"", "is not true or false"),
        ("join = []", "a list of 1-100 addresses"),
        ("join = [1]", "a list of 1-100 addresses"),
        ("join = [\"nowhere\"]", "a list of 1-100 addresses"),
        (
            "admin = \"127.0.0.1:8081\"",
            "http and admin are both 127.0.0.1:8081",
        ),
        ("name = ", "line 1: not TOML"),
        ("name = \"a\"\nname = \"b\"", "not TOML"),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text:?}: {message}");
        assert!(!message.contains('\n'), "one line: {message}");
    }
    assert!(refused(&" ".repeat(FILE_BYTES_MAX + 1)).contains("at most"));
}

#[test]
fn beyond_loopback_a_node_wants_to_be_told_that_this_is_meant() {
    let message = refused("http = \"10.1.2.3:8081\"");
    assert!(
        message.contains("no tokens") && message.contains("--insecure"),
        "{message}"
    );
    let message = refused("peer = \"10.1.2.3:7081\"\ninsecure = true");
    assert!(message.contains("torc pki init"), "{message}");
    let message = refused("http = \"0.0.0.0:8081\"\ninsecure = true");
    assert!(message.contains("advertise_http"), "{message}");
    let open = "http = \"0.0.0.0:8081\"\npeer = \"[::]:7081\"\ninsecure = true\npki = \"/etc/torc/pki\"\n\
                advertise_http = \"node-1:8081\"\nadvertise_peer = \"[2001:db8::1]:7081\"";
    let settings = parse_config(open).expect("all is said");
    assert_eq!(settings.advertise_peer, "[2001:db8::1]:7081");
}

#[test]
fn what_is_deleted_is_kept_for_longer_than_anything_can_be_on_its_way() {
    let settings = parse_config("").expect("the defaults");
    assert_eq!(settings.floor_margin(), Duration::from_secs(60 + 2 * 60));
    let queue = "deadline_max = \"5s\"\n[clock]\ndrift_max = \"2s\"\n[queue]\nbrokers = [\"127.0.0.1:5672\"]\n\
                 lifetime = \"1h\"";
    let settings = parse_config(queue).expect("a queue");
    assert_eq!(settings.floor_margin(), Duration::from_secs(3_609));
    let never = parse_config("[floor]\ninterval = \"0s\"").expect("never");
    assert_eq!(never.floor_interval, Duration::ZERO);
}

#[test]
fn durability_takes_its_interval() {
    let settings =
        parse_config("durability = \"interval\"\ndurability_interval = \"20ms\"").expect("valid");
    assert_eq!(
        settings.durability,
        Durability::Interval(Duration::from_millis(20))
    );
}

fn leaves() -> Vec<String> {
    let mut section = String::new();
    let mut names = Vec::new();
    for line in default_config().lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = format!("{name}.");
        } else if let Some((name, _)) = line.split_once(" = ")
            && !name.contains(' ')
        {
            names.push(format!("{section}{name}"));
        }
    }
    names
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = parse_config(&text);
    }

    #[test]
    fn no_assignment_makes_the_parser_panic(
        key in proptest::sample::select(leaves()),
        value in "[0-9a-zA-Z\"\\[\\]{}.:, _-]{0,30}",
    ) {
        if let Err(error) = parse_config(&format!("{key} = {value}")) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn every_slip_of_one_letter_is_refused_and_named(
        key in proptest::sample::select(leaves()),
        at in any::<prop::sample::Index>(),
        letter in "[a-z]",
    ) {
        let mut slip = key.clone();
        slip.insert_str(at.index(key.len()), &letter);
        prop_assume!(!leaves().contains(&slip));
        let error = parse_config(&format!("{slip} = 1")).expect_err("unknown");
        let named = matches!(error, SettingsError::UnknownKey { nearest: Some(_), .. });
        // A dot is a section's name too: a slip in it makes the section itself unknown.
        prop_assert!(named || slip.contains('.'), "{error}");
    }
}

#[test]
fn a_cache_is_one_server_or_sentinels() {
    let both = "[cache]\nredis = \"127.0.0.1:1\"\nsentinels = [\"127.0.0.1:2\"]";
    assert_eq!(parse_config(both), Err(SettingsError::ServerAndSentinels));
    let cache = |text| parse_config(text).expect("valid").cache;
    assert_eq!(cache(""), None);
    let one = cache("[cache]\nredis = \"127.0.0.1:1\"\nbuckets = [\"a\", \"b\"]").expect("one");
    assert_eq!(one.place, CachePlace::Server("127.0.0.1:1".to_owned()));
    assert_eq!(one.buckets, ["a", "b"]);
    let bad = "[cache]\nredis = \"127.0.0.1:1\"\nbuckets = [\"No Bucket\"]";
    assert!(matches!(
        parse_config(bad),
        Err(SettingsError::BadValue {
            key: "cache.buckets",
            ..
        })
    ));
}

#[test]
fn rabbitmqs_default_password_is_for_loopback_only() {
    let brokers = |text: &str| parse_config(&format!("[queue]\nbrokers = [{text}]"));
    for near in ["\"127.0.0.1:1\"", "\"localhost:1\"", "\"[::1]:1\""] {
        assert!(brokers(near).expect("valid").queue.is_some(), "{near}");
    }
    let far = "\"127.0.0.1:1\", \"10.0.0.1:5672\"";
    let broker = "10.0.0.1:5672".to_owned();
    assert_eq!(brokers(far), Err(SettingsError::DefaultPassword { broker }));
    let with = "[queue]\nbrokers = [\"10.0.0.1:5672\"]\npassword_file = \"/p\"";
    assert!(parse_config(with).is_ok());
}
