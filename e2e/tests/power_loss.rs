//! The power fails: what was acknowledged with `durability = fsync` is there afterwards, and a flipped bit
//! is never served.
//!
//! A node's every change of its disk goes through a journal (`shim/shim.c`). After a `kill -9`, its data
//! folder is made anew as a power cut may have left it: without what no fsync covered, or with pieces of
//! it. With `os` a node that lost what was not synced gets it back from the others before it counts.
//! `TORC_LONG=1` cuts 300 times (30 with `os`) and flips more bits, `TORC_SEED` repeats a run's choices.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use torc_e2e::cluster::{Cluster, Formation, Node, Options, READY_MAX, shown};
use torc_e2e::http::Request;
use torc_e2e::linearize::check;
use torc_e2e::powercut::{self, Disk, Lost};
use torc_e2e::workload::{Load, Mix, Random, is_long, seed};
use torc_e2e::{alone, history, shim, wait};
use xxhash_rust::xxh3::xxh3_64;

/// A small memtable, so that tables are written, logs recycled and files removed between two cuts.
const CONFIG: &str = "[storage]\nwrite_buffer = \"1MiB\"\n";
const LARGE_BYTES: usize = 48 * 1024;

/// Values that are large enough to fill the memtable, known by their number.
fn large(number: usize) -> Vec<u8> {
    let mut random = Random(number as u64);
    (0..LARGE_BYTES / 8)
        .flat_map(|_| random.next_u64().to_le_bytes())
        .collect()
}

fn target(number: usize) -> String {
    format!("/kv/default/large-{number}")
}

fn one_node(name: &str) -> Cluster {
    let mut cluster = Cluster::empty(Options {
        durability: "fsync",
        config: Some(CONFIG.to_owned()),
        ..Options::default()
    });
    let data = cluster.folder().join(name);
    cluster.add_in(name, &data);
    cluster
}

/// Lets a node write its journal to this file.
fn journalled(node: &mut Node, journal: &Path) {
    fs::create_dir(&node.data)
        .unwrap_or_else(|error| panic!("make {}: {error}", node.data.display()));
    let shown = |path: &Path| path.display().to_string();
    node.options.environment.extend([
        ("LD_PRELOAD".to_owned(), shown(shim::library())),
        ("SHIM_ROOT".to_owned(), shown(&node.data)),
        ("SHIM_LOG".to_owned(), shown(journal)),
    ]);
}

/// Waits until so many more operations have succeeded.
fn wait_succeeded(load: &Load, more: usize, cut: u32) {
    let succeeded = || load.operations_so_far() - load.failures_so_far();
    let target = succeeded() + more;
    let what = format!("operations to succeed before cut {cut}");
    wait::until(&what, READY_MAX, || match succeeded() {
        now if now >= target => Ok(()),
        now => Err(format!("{now} of {target}")),
    });
}

#[test]
fn every_acknowledged_write_survives_a_power_cut() {
    let _alone = alone();
    let seed = seed();
    let mut random = Random(seed);
    let cuts = if is_long() { 300 } else { 20 };
    let mut cluster = one_node("node-1");
    let journal = cluster.folder().join("journal");
    journalled(&mut cluster.nodes[0], &journal);
    let mut disk = Disk::of(&cluster.nodes[0].data).expect("an empty folder");
    cluster.nodes[0].start(&Formation::Bootstrap);

    let mix = Mix {
        clients: 6,
        operations_max: usize::MAX,
        keys: 24,
        puts: 75,
        deletes: 5,
        pace: Duration::from_millis(1),
        ..Mix::default()
    };
    let load = Load::start(&cluster.addresses(), &mix, seed);
    let (mut lost, mut written, mut unwritten) = (Lost::default(), Vec::new(), 0);
    for cut in 1..=cuts {
        write_large(&cluster.nodes[0], &mut written, random.below(30));
        wait_succeeded(&load, 20 + random.below(150), cut);
        cluster.nodes[0].kill();
        let journal = (journal.as_path(), &mut unwritten);
        lost.add(cut_power(&cluster.nodes[0], disk, journal, &mut random));
        disk = Disk::of(&cluster.nodes[0].data).expect("read the data folder");
        cluster.nodes[0].start(&Formation::Known);
        for number in &written {
            let read = cluster.nodes[0].get(&target(*number));
            assert!(
                read.as_ref() == Some(&large(*number)),
                "TORC_SEED={seed}, cut {cut}: the acknowledged value {number} is lost or wrong"
            );
        }
    }
    let seen = load.finish_reading(&cluster.addresses());
    eprintln!(
        "TORC_SEED={seed}: {cuts} power cuts, {lost:?}; {} large values, {} operations ({} failed)",
        written.len(),
        seen.operations.len(),
        seen.failures_count
    );
    assert!(lost.contents > 0, "no cut took anything: {lost:?}");
    // A kill seldom falls between a change and its entry; a change that the shim does not know is missed
    // nearly every time.
    assert!(
        unwritten <= 2 + cuts / 20,
        "the journal was incomplete at {unwritten} of {cuts} cuts"
    );
    if let Err(violation) = check(&seen.operations) {
        let path = cluster.folder().join("history.txt");
        let kept = history::dump(&seen.operations, &path);
        panic!(
            "TORC_SEED={seed}: {violation}\nthe whole history: {} ({kept:?})",
            path.display()
        );
    }
}

/// Rewrites a node's mark as if its machine had been switched off and on since (docs/format.md).
fn pretend_reboot(node: &Node) {
    let path = node.data.join("MARK");
    let mut bytes = fs::read(&path).expect("read the mark");
    for slot in [0, 4096] {
        let slot = &mut bytes[slot..slot + 64];
        slot[40..56].fill(0xee);
        let sum = xxh3_64(&slot[..56]);
        slot[56..].copy_from_slice(&sum.to_be_bytes());
    }
    fs::write(&path, bytes).expect("write the mark");
}

/// What a node says the third member is: `member`, or `recovering`.
fn standing_of_the_third(node: &Node) -> Result<String, String> {
    let ring = node.ask_admin(&Request::get("/ring"))?.json();
    let members = ring["members"].as_array().cloned().unwrap_or_default();
    let third = members.iter().find(|member| member["name"] == "node-3");
    let state = third.and_then(|member| member["state"].as_str().map(str::to_owned));
    state.ok_or_else(|| format!("no state of node-3 in {ring}"))
}

#[test]
fn a_node_that_lost_what_was_not_synced_gets_it_back_before_it_counts() {
    let _alone = alone();
    let seed = seed();
    let mut random = Random(seed);
    let cuts = if is_long() { 30 } else { 3 };
    let mut cluster = Cluster::empty(Options {
        durability: "os",
        config: Some(CONFIG.to_owned()),
        ..Options::default()
    });
    for number in 1..=3 {
        let name = format!("node-{number}");
        let data = cluster.folder().join(&name);
        cluster.add_in(&name, &data);
    }
    let journal = cluster.folder().join("journal");
    journalled(&mut cluster.nodes[2], &journal);
    let mut disk = Disk::of(&cluster.nodes[2].data).expect("an empty folder");
    let peers: Vec<_> = cluster.nodes.iter().map(|node| node.peer).collect();
    cluster.form(&peers);

    let mix = Mix {
        clients: 6,
        operations_max: usize::MAX,
        keys: 24,
        puts: 75,
        deletes: 5,
        pace: Duration::from_millis(2),
        ..Mix::default()
    };
    let load = Load::start(&cluster.addresses(), &mix, seed);
    let (mut lost, mut unwritten) = (Lost::default(), 0);
    for cut in 1..=cuts {
        wait_succeeded(&load, 300, cut);
        let before = cluster.nodes[2].log().len();
        cluster.nodes[2].kill();
        let journal = (journal.as_path(), &mut unwritten);
        lost.add(cut_power(&cluster.nodes[2], disk, journal, &mut random));
        pretend_reboot(&cluster.nodes[2]);
        disk = Disk::of(&cluster.nodes[2].data).expect("read the data folder");
        cluster.nodes[2].start(&Formation::Known);
        wait::until("the node to count again", READY_MAX, || {
            for node in &cluster.nodes {
                let standing = standing_of_the_third(node)?;
                if standing != "member" {
                    return Err(format!("{} says {standing}", node.name));
                }
            }
            let said = cluster.nodes[2].log_since(before);
            let recovered = said.contains("has come back from other nodes");
            recovered.then_some(()).ok_or(said)
        });
        let said = cluster.nodes[2].log_since(before);
        assert!(
            said.contains("may have lost writes"),
            "TORC_SEED={seed}, cut {cut}: it counted at once: {said}"
        );
    }
    let seen = load.finish_reading(&cluster.addresses());
    eprintln!(
        "TORC_SEED={seed}: {cuts} power cuts, {lost:?}; {} operations ({} failed)",
        seen.operations.len(),
        seen.failures_count
    );
    assert!(lost.contents > 0, "no cut took anything: {lost:?}");
    if let Err(violation) = check(&seen.operations) {
        let path = cluster.folder().join("history.txt");
        let kept = history::dump(&seen.operations, &path);
        panic!(
            "TORC_SEED={seed}: {violation}\nthe whole history: {} ({kept:?})",
            path.display()
        );
    }
}

fn write_large(node: &Node, written: &mut Vec<usize>, count: usize) {
    for _ in 0..count {
        let number = written.len();
        node.put(&target(number), large(number));
        written.push(number);
    }
}

/// Makes the data folder of a dead node as a power cut may have left it; counts in `unwritten` when the
/// journal lacked the change that was under way.
fn cut_power(
    node: &Node,
    mut disk: Disk,
    (journal, unwritten): (&Path, &mut u32),
    random: &mut Random,
) -> Lost {
    let entries =
        powercut::read(journal).unwrap_or_else(|error| panic!("read the journal: {error}"));
    disk.follow(&entries);
    // The journal must tell everything, or the cut would be of another disk than the node's. One change,
    // of two names at most, may have been under way: made, and its entry not yet written. Nobody was told.
    let mut whole = disk.clone();
    whole.settle();
    let differences = whole.differences(&node.data).expect("read the data folder");
    assert!(
        differences.len() <= 2,
        "the shim has missed changes: {differences:#?}"
    );
    *unwritten += u32::from(!differences.is_empty());
    let lost = disk.cut(random);
    fs::remove_dir_all(&node.data).expect("remove the data folder");
    disk.write_to(&node.data).expect("write the data folder");
    fs::remove_file(journal).expect("remove the journal");
    lost
}

/// A kind of file, and how to know one.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    is_it: fn(&str) -> bool,
    /// Only the first so many bytes are damaged.
    within: usize,
    /// Whether each bit of those is one that somebody relies on.
    must_be_noticed: bool,
}

/// Of the newest log, the beginning is written and acknowledged for certain; behind it there may be what a
/// recycled file held before. Nobody reads the other logs any more.
const LOG_BYTES: usize = 16 * 1024;

fn chosen<'a>(kind: Kind, of_kind: &'a [PathBuf], random: &mut Random) -> &'a PathBuf {
    match of_kind.last() {
        Some(newest) if kind.name == "log" => newest,
        _ => &of_kind[random.below(of_kind.len())],
    }
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "table",
        is_it: |name| has_extension(name, "sst"),
        within: usize::MAX,
        must_be_noticed: false,
    },
    Kind {
        name: "log",
        is_it: |name| has_extension(name, "log"),
        within: LOG_BYTES,
        must_be_noticed: true,
    },
    Kind {
        name: "manifest",
        is_it: |name| name.starts_with("MANIFEST"),
        within: usize::MAX,
        must_be_noticed: false,
    },
    Kind {
        name: "current",
        is_it: |name| name == "CURRENT",
        within: usize::MAX,
        must_be_noticed: true,
    },
    Kind {
        name: "options",
        is_it: |name| name.starts_with("OPTIONS"),
        within: usize::MAX,
        must_be_noticed: false,
    },
];

fn has_extension(name: &str, wanted: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|found| found == wanted)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("read a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let path = to.join(file.strip_prefix(from).expect("inside"));
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::copy(&file, &path).expect("copy a file");
    }
}

/// What a node made of a flipped bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reaction {
    /// It did not start.
    Refused,
    /// It started, and answered with an error where it could not know.
    Partly,
    /// The bit stood where nothing is read from; every value was right.
    Harmless,
}

#[test]
fn a_flipped_bit_in_any_file_is_noticed_or_harmless_and_never_served() {
    let _alone = alone();
    let seed = seed();
    let mut random = Random(seed);
    let flips_each = if is_long() { 40 } else { 2 };
    let mut cluster = one_node("node-1");
    cluster.nodes[0].start(&Formation::Bootstrap);
    let mut written = Vec::new();
    // More than a memtable, so that there are tables, and a rest that is in the log alone.
    write_large(&cluster.nodes[0], &mut written, 50);
    cluster.nodes[0].kill();
    let image = cluster.folder().join("image");
    copy(&cluster.nodes[0].data, &image);
    for kind in KINDS {
        let of_kind: Vec<PathBuf> = files(&image)
            .into_iter()
            .filter(|file| {
                let name = file
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                (kind.is_it)(&name) && fs::metadata(file).is_ok_and(|known| known.len() > 0)
            })
            .collect();
        assert!(!of_kind.is_empty(), "there is no {} to damage", kind.name);
        let mut reactions: BTreeMap<Reaction, u32> = BTreeMap::new();
        for _ in 0..flips_each {
            let node = &mut cluster.nodes[0];
            fs::remove_dir_all(&node.data).expect("remove the data folder");
            copy(&image, &node.data);
            let file = chosen(kind, &of_kind, &mut random);
            let damaged = node.data.join(file.strip_prefix(&image).expect("inside"));
            let mut bytes = fs::read(&damaged).expect("read a file");
            let among = bytes.len().min(kind.within);
            let (at, bit) = (random.below(among), random.below(8));
            bytes[at] ^= 1 << bit;
            fs::write(&damaged, bytes).expect("write a file");
            let what = format!(
                "TORC_SEED={seed}: bit {bit} of byte {at} of {}",
                damaged.display()
            );
            let reaction = reaction(node, &written, &what);
            let is_noticed = reaction != Reaction::Harmless;
            assert!(is_noticed || !kind.must_be_noticed, "{what}: not noticed");
            *reactions.entry(reaction).or_default() += 1;
        }
        eprintln!("{}: {reactions:?}", kind.name);
    }
}

/// Starts a node on a damaged folder and reads everything that it will give.
fn reaction(node: &mut Node, written: &[usize], what: &str) -> Reaction {
    let before = node.log().len();
    node.launch(&Formation::Known);
    let started = wait::until("a damaged node to start or to refuse", READY_MAX, || {
        if node.has_ended() {
            return Ok(false);
        }
        match node.ask(&Request::get("/health/ready")) {
            Ok(answer) if answer.status == 200 => Ok(true),
            other => Err(shown(other)),
        }
    });
    if !started {
        let status = node.wait_exit(READY_MAX);
        let said = node.log_since(before);
        assert!(!status.success(), "{what}: ended with success: {said}");
        assert!(!said.contains("panicked"), "{what}: {said}");
        return Reaction::Refused;
    }
    let mut reaction = Reaction::Harmless;
    for number in written {
        match node.ask(&Request::get(&target(*number))) {
            Ok(answer) if answer.status == 200 => {
                assert!(
                    answer.body == large(*number),
                    "{what}: a wrong value was served for {number}"
                );
            }
            Ok(answer) if answer.status >= 500 => reaction = Reaction::Partly,
            // A node that ends when it meets damage has not served it either.
            Err(_) => reaction = Reaction::Partly,
            other => panic!("{what}: value {number}: {}", shown(other)),
        }
        if node.has_ended() {
            break;
        }
    }
    node.kill();
    reaction
}
