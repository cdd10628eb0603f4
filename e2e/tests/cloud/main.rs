//! What `CLOUD/` promises and a machine without a cloud can check: the cost model's own tests, and links.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn cloud() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../CLOUD")
}

#[test]
fn the_cost_model_passes_its_own_tests() {
    let output = Command::new("python3")
        .arg(cloud().join("test_cost.py"))
        .output()
        .expect("run python3");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Every Markdown file below `folder`.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
    found
}

/// What a heading is linked to as.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let text: String = heading.trim().chars().filter(kept).collect();
    text.to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    let root = cloud().join("..");
    let all = [pages(&cloud()), pages(&root.join("docs"))].concat();
    for page in all.iter().chain([&root.join("README.md")]) {
        let text = fs::read_to_string(page).expect("a page");
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            checked += 1;
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                page.clone()
            } else {
                page.parent().expect("a folder").join(file)
            };
            let leads = path.exists()
                && (fragment.is_empty()
                    || fs::read_to_string(&path).is_ok_and(|text| {
                        let mut headings = text.lines().filter(|line| line.starts_with('#'));
                        headings.any(|line| anchor(line.trim_start_matches('#')) == fragment)
                    }));
            if !leads {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 50, "{checked} links were found");
}
