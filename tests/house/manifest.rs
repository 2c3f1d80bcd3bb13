//! What Cargo.toml claims: the Rust version, the licences, the features.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    error::Error,
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

type TestResult = Result<(), Box<dyn Error>>;

/// Features that need a later Rust than the default build, as Cargo.toml says beside them.
const LATER_RUST: &[(&str, (u32, u32))] = &[
    ("nats", (1, 89)),
    ("nats-nkeys", (1, 89)),
    ("redis", (1, 88)),
    ("redis-tls", (1, 88)),
];

#[test]
fn no_dependency_requires_a_newer_rust_than_the_crate() -> TestResult {
    let packages = packages()?;
    let claimed = packages
        .iter()
        .find(|package| package["name"] == "tower-sse")
        .and_then(rust_version)
        .ok_or("Cargo.toml has no rust-version")?;

    let mut wrong = Vec::new();
    for feature in features()?.keys() {
        let later = LATER_RUST.iter().find(|(name, _)| name == feature);
        let allowed = later.map_or(claimed, |(_, version)| *version);
        let tree = tree(feature)?;
        for package in &packages {
            let id = name_and_version(package);
            let needed = rust_version(package).filter(|needed| *needed > allowed);
            if let Some(needed) = needed.filter(|_| tree.contains(&id)) {
                wrong.push(format!("{feature}: {id} needs Rust {needed:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));

    let (major, minor) = claimed;
    let sentence = format!("Rust {major}.{minor}");
    for page in ["README.md", "src/lib.rs"] {
        assert!(
            read(page)?.contains(&sentence),
            "{page} should say {sentence}"
        );
    }
    Ok(())
}

#[test]
fn every_licence_is_allowed_by_deny_toml() -> TestResult {
    let text = read("deny.toml")?;
    let list = text.split("allow = [").nth(1).unwrap_or_default();
    let list = list.split(']').next().unwrap_or_default();
    let allowed: BTreeSet<_> = list.split('"').skip(1).step_by(2).collect();
    assert!(allowed.contains("MIT"), "the list was not found");

    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for package in packages()? {
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_satisfied(licence, &allowed) {
            wrong.push(format!("{}: {licence}", name_and_version(&package)));
        }
        let is_used = |name: &&&str| licence.contains(**name);
        used.extend(allowed.iter().filter(is_used).copied());
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert_eq!(
        used, allowed,
        "each licence of the list is that of a package"
    );
    Ok(())
}

#[test]
fn every_feature_has_a_comment_and_a_row_on_both_pages() -> TestResult {
    let features = features()?;
    let manifest: Value = packages()?
        .into_iter()
        .find(|package| package["name"] == "tower-sse")
        .ok_or("the crate is not in its own metadata")?;
    let known = manifest["features"].as_object().ok_or("no features")?;
    // tests/run.sh reads them as this test does.
    assert!(features.keys().eq(known.keys()), "{features:?}");

    for (feature, before) in features {
        if feature == "default" {
            continue;
        }
        assert!(before.starts_with("# "), "{feature} has no comment");
        for page in ["README.md", "src/lib.rs"] {
            let row = format!("| `{feature}` | ");
            assert!(read(page)?.contains(&row), "{feature} has no row in {page}");
        }
    }
    Ok(())
}

#[test]
fn licence_expressions_follow_spdx_precedence() {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0"]);
    for (licence, expected) in [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("(MIT OR GPL-3.0) AND Apache-2.0", true),
        ("MIT AND (GPL-3.0 OR Apache-2.0)", true),
        ("GPL-3.0 OR MIT AND Apache-2.0", true),
        ("GPL-3.0", false),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("MIT WITH some-exception", false),
        ("none", false),
    ] {
        assert_eq!(is_satisfied(licence, &allowed), expected, "{licence}");
    }
}

fn read(path: &str) -> Result<String, std::io::Error> {
    fs::read_to_string(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path))
}

/// The features of Cargo.toml, each with the line before it.
fn features() -> Result<BTreeMap<String, String>, std::io::Error> {
    let mut features = BTreeMap::new();
    let mut is_inside = false;
    let mut before = "";
    for line in read("Cargo.toml")?.lines() {
        if line.starts_with('[') {
            is_inside = line == "[features]";
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| is_inside) {
            features.insert(name.to_owned(), before.to_owned());
        }
        before = if line.is_empty() { "" } else { line };
    }
    Ok(features)
}

/// All packages of this machine's builds, those of the tests too.
fn packages() -> Result<Vec<Value>, Box<dyn Error>> {
    let version = run(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or("rustc does not say where it runs")?;
    let metadata = cargo(
        "metadata",
        &["--format-version=1", "--filter-platform", host],
    )?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().ok_or("no nodes")?;
    let ids: BTreeSet<_> = nodes
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    let is_built = |package: &&Value| package["id"].as_str().is_some_and(|id| ids.contains(id));
    Ok(packages.iter().filter(is_built).cloned().collect())
}

/// The packages that the library needs with this feature, as name and version.
fn tree(feature: &str) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let options = [
        "--no-default-features",
        "--features",
        feature,
        "--edges=normal,build",
        "--prefix=none",
        "--no-dedupe",
        "--format={p}",
    ];
    let tree: BTreeSet<_> = cargo("tree", &options)?
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let version = words.next().zip(words.next());
            version.map(|(name, version)| format!("{name} {}", version.trim_start_matches('v')))
        })
        .collect();
    assert!(tree.len() > 10, "the tree is too small: {tree:?}");
    Ok(tree)
}

fn name_and_version(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    format!("{} {}", text("name"), text("version"))
}

fn rust_version(package: &Value) -> Option<(u32, u32)> {
    let mut parts = package["rust_version"].as_str()?.split('.');
    let mut next = || parts.next().and_then(|part| part.parse().ok());
    Some((next()?, next().unwrap_or(0)))
}

fn cargo(command: &str, options: &[&str]) -> Result<String, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join("Cargo.toml");
    run(Command::new(cargo)
        .args([command, "--locked", "--manifest-path"])
        .arg(manifest)
        .args(options))
}

fn run(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let output = command.output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{command:?}: {text}").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether the allowed licences are enough. AND binds tighter than OR; the slash is the old OR.
fn is_satisfied(licence: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = licence.replace('(', " ( ").replace(')', " ) ");
    let spaced = spaced.replace('/', " OR ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    any_of(&mut words.as_slice(), allowed)
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut is_satisfied = all_of(words, allowed);
    while next_is(words, "OR") {
        is_satisfied |= all_of(words, allowed);
    }
    is_satisfied
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut is_satisfied = one(words, allowed);
    while next_is(words, "AND") {
        is_satisfied &= one(words, allowed);
    }
    is_satisfied
}

fn one(words: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    if next_is(words, "(") {
        let is_satisfied = any_of(words, allowed);
        return next_is(words, ")") && is_satisfied;
    }
    let Some((name, rest)) = words.split_first() else {
        return false;
    };
    *words = rest;
    if next_is(words, "WITH") {
        // An exception makes another licence of it, which the list would have to name.
        *words = words.get(1..).unwrap_or_default();
        return false;
    }
    allowed.contains(name)
}

fn next_is(words: &mut &[&str], word: &str) -> bool {
    let is_next = words.first() == Some(&word);
    if is_next {
        *words = &words[1..];
    }
    is_next
}
