//! The floors of the house: which module of `src` may name which.
//!
//! ```text
//! request -> path -> connection -> outbox / topic cursors -> body -> wire
//!
//! 4  serve axum metrics test_util error                 the top: whatever joins the rest
//! 3  layer                                       |  broker     (neither names the other)
//! 2  connection                                  |  backplane
//! 1  log trace                                   no tokio, no http
//! 0  event                                       bytes only
//! ```
//!
//! Imports go down, or stay within a half of a floor. The two halves meet only in the connection.
//! A module that is not in the table fails the test, so that it is given its floor when it is new.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use Crates::{AllBut, Only};
use Half::{Both, Http, Topics};

type TestResult = Result<(), Box<dyn Error>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    /// Above or below the two halves, or where they meet.
    Both,
    /// What turns requests into streams. It never mentions a topic.
    Http,
    /// What carries topics. It never mentions HTTP.
    Topics,
}

#[derive(Clone, Copy)]
enum Crates {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

/// Modules, their floor, their half, and the dependencies that they may name.
const FLOORS: &[(&str, u8, Half, Crates)] = &[
    ("event", 0, Both, Only(ENCODING)),
    (
        "log",
        1,
        Both,
        Only(&["bytes", "fastrand", "itoa", "memchr"]),
    ),
    ("connection", 2, Both, AllBut(SERVICES)),
    ("backplane", 2, Topics, AllBut(HTTP)),
    ("broker", 3, Topics, AllBut(HTTP)),
    ("layer", 3, Http, AllBut(FOREIGN)),
    ("trace", 1, Both, Only(&["tracing", "uuid"])),
    ("error", 4, Both, Only(&[])),
    ("axum", 4, Both, AllBut(&[])),
    ("metrics", 4, Both, Only(&["metrics"])),
    ("serve", 4, Both, AllBut(&["axum_core"])),
    ("test_util", 4, Both, AllBut(&["axum_core"])),
];

const ENCODING: &[&str] = &["bytes", "itoa", "memchr", "serde", "serde_json"];
/// Crates of single modules: a web framework, and the clients of the backplanes.
const FOREIGN: &[&str] = &[
    "axum_core",
    "http_body_util",
    "redis",
    "async_nats",
    "rustls",
];
/// A connection knows of a request only what it was told.
const SERVICES: &[&str] = &[
    "axum_core",
    "http_body",
    "http_body_util",
    "matchit",
    "percent_encoding",
    "tower_layer",
    "tower_service",
    "redis",
    "async_nats",
    "rustls",
];
/// Topics are tested without a request.
const HTTP: &[&str] = &[
    "axum_core",
    "http",
    "http_body",
    "http_body_util",
    "matchit",
    "percent_encoding",
    "tower_layer",
    "tower_service",
];

const MOST_LINES: usize = 450;

/// Groups of files that import one another, by module and number of files. They are to become fewer
/// and smaller: a group that is gone has to go from here too.
const KNOWN_CYCLES: &[(&str, usize)] = &[("connection", 12)];

#[test]
fn modules_import_only_from_lower_layers() -> TestResult {
    let roots = root_items()?;
    let dependencies = dependencies()?;
    let mut wrong = Vec::new();
    for file in source_files()? {
        let text = fs::read_to_string(&file.path)?;
        for path in paths_in(&text, &file.module) {
            if let Err(why) = check(&file, &path, &roots, &dependencies) {
                wrong.push(format!("{}: {}: {why}", file.name, path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    Ok(())
}

#[test]
fn files_are_short_and_have_specific_names() -> TestResult {
    let mut wrong = Vec::new();
    for file in source_files()? {
        let lines = fs::read_to_string(&file.path)?.lines().count();
        if lines >= MOST_LINES {
            wrong.push(format!("{}: {lines} lines", file.name));
        }
        for module in &file.module {
            if ["utils", "util", "common", "helpers", "misc"].contains(&module.as_str()) {
                wrong.push(format!("{}: says nothing of what it holds", file.name));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    Ok(())
}

#[test]
fn files_of_a_module_import_in_one_direction() -> TestResult {
    let files = source_files()?;
    let imports = imports(&files)?;
    let reached = |from: usize| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<usize> = imports[from].iter().copied().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(&imports[file]);
            }
        }
        seen
    };
    let reached: Vec<_> = (0..files.len()).map(reached).collect();
    let mut cycles = BTreeSet::new();
    for from in 0..files.len() {
        if reached[from].contains(&from) {
            let back = reached[from]
                .iter()
                .filter(|to| reached[**to].contains(&from));
            let names: Vec<_> = back.map(|to| files[*to].name.as_str()).collect();
            cycles.insert((files[from].module[0].as_str(), names.len(), names));
        }
    }
    let found: Vec<_> = cycles
        .iter()
        .map(|(module, count, _)| (*module, *count))
        .collect();
    assert_eq!(found, KNOWN_CYCLES, "{cycles:#?}");
    Ok(())
}

/// For each file, the files of the same module that it imports from. A name that a `mod.rs`
/// re-exports counts as an import from the file that has it; `mod.rs` itself joins its files.
fn imports(files: &[SourceFile]) -> Result<Vec<BTreeSet<usize>>, Box<dyn Error>> {
    let by_module: BTreeMap<&[String], usize> = files
        .iter()
        .enumerate()
        .filter(|(_, file)| !file.path.ends_with("mod.rs") && !file.module.is_empty())
        .map(|(number, file)| (file.module.as_slice(), number))
        .collect();
    let mut exports = BTreeMap::new();
    for file in files.iter().filter(|file| file.path.ends_with("mod.rs")) {
        for path in paths_in(&fs::read_to_string(&file.path)?, &file.module) {
            let child = [file.module.as_slice(), &path[..1]].concat();
            if let (Some(to), Some(name)) = (by_module.get(child.as_slice()), path.last()) {
                exports.insert(
                    [file.module.as_slice(), std::slice::from_ref(name)].concat(),
                    *to,
                );
            }
        }
    }
    let mut imports = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let text = fs::read_to_string(&file.path)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_mod = file.path.ends_with("mod.rs") || file.module.is_empty();
        let paths = paths_in(code, &file.module).into_iter().filter(|_| !is_mod);
        let target = |path: Vec<String>| {
            let path = path.strip_prefix(&["crate".to_owned()])?;
            (1..=path.len()).rev().find_map(|end| {
                let start = &path[..end];
                by_module.get(start).or_else(|| exports.get(start)).copied()
            })
        };
        let of_this = paths
            .filter_map(target)
            .filter(|to| *to != number && files[*to].module.first() == file.module.first());
        imports.push(of_this.collect());
    }
    Ok(imports)
}

/// The reader of paths is the eye of this test: it has to see.
#[test]
fn path_scanner_finds_every_module_path() {
    let text = r##"
        use crate::{BoxError, connection::{self, Reader}, path::Rule as R};
        use super::{error, super::body::SseBody};
        /* crate::commented::out /* crate::nested */ */
        fn f<'a>(x: &'a str) -> crate::layer::Settings { // crate::comment
            let _ = ("crate::text", r#"crate::"raw"#, 'c', '\'', b"crate::bytes", x);
            tokio::spawn(async { Vec::<http::Method>::new() });
            self::inner();
        }
        mod tests { use super::{*, super::service::SseService}; }
    "##;
    let module = ["event".to_owned(), "field".to_owned()];
    let seen: BTreeSet<_> = paths_in(text, &module)
        .iter()
        .map(|path| path.join("::"))
        .collect();
    let expected = [
        "Vec", // its parameters follow as a path of their own
        "crate::BoxError",
        "crate::body::SseBody",
        "crate::connection::Reader",
        "crate::connection::self",
        "crate::event::error",
        "crate::event::field::*",
        "crate::event::field::inner",
        "crate::event::service::SseService",
        "crate::layer::Settings",
        "crate::path::Rule",
        "http::Method",
        "tokio::spawn",
    ];
    assert_eq!(seen, expected.map(str::to_owned).into());
}

/// Whether a module may name this path; if not, why.
fn check(
    file: &SourceFile,
    path: &[String],
    roots: &BTreeMap<String, String>,
    dependencies: &BTreeSet<String>,
) -> Result<(), String> {
    // The crate's root joins everything.
    let Some(from) = file.module.first() else {
        return Ok(());
    };
    let (_, floor, half, crates) = find(from)?;
    let first = &path[0];
    if first != "crate" {
        let is_allowed = match crates {
            Only(names) => names.contains(&first.as_str()),
            AllBut(names) => !names.contains(&first.as_str()),
        };
        return if is_allowed || !dependencies.contains(first) {
            Ok(())
        } else {
            Err(format!("this dependency is not for `{from}`"))
        };
    }
    let Some(named) = path.get(1) else {
        return Ok(());
    };
    if named == "BoxError" && floor > 0 {
        return Ok(()); // an alias of std's alone
    }
    let to = roots.get(named).unwrap_or(named);
    if to == from {
        return Ok(());
    }
    let (_, to_floor, to_half, _) = find(to)?;
    let is_below = to_floor < floor && [to_half, half].contains(&Both);
    if is_below || (to_floor <= floor && to_half == half) {
        return Ok(());
    }
    Err(format!(
        "`{from}` (floor {floor}) may not name `{to}` (floor {to_floor})"
    ))
}

fn find(module: &str) -> Result<(&'static str, u8, Half, Crates), String> {
    let found = FLOORS.iter().find(|(name, ..)| *name == module);
    found
        .copied()
        .ok_or_else(|| format!("`{module}` has no floor: give it one in tests/house/floors.rs"))
}

pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) name: String,
    /// Empty for the crate's root.
    module: Vec<String>,
}

pub(super) fn source_files() -> io::Result<Vec<SourceFile>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&root).unwrap_or(&path).with_extension("");
                let mut module: Vec<_> = inside
                    .iter()
                    .map(|part| part.to_string_lossy().into_owned())
                    .collect();
                if module
                    .last()
                    .is_some_and(|last| last == "mod" || last == "lib")
                {
                    module.pop();
                }
                let name = format!("src/{}.rs", inside.display());
                files.push(SourceFile { path, name, module });
            }
        }
    }
    assert!(files.len() > 10, "the sources were not found");
    Ok(files)
}

/// What lib.rs re-exports, and the module that it comes from.
fn root_items() -> io::Result<BTreeMap<String, String>> {
    let lib = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join("src/lib.rs");
    let text = fs::read_to_string(lib)?;
    let exports: Vec<&str> = text
        .split("pub use ")
        .skip(1)
        .filter_map(|rest| rest.split(';').next())
        .collect();
    // Paths in lib.rs start at the root.
    let items = exports
        .iter()
        .flat_map(|export| paths_in(&format!("use crate::{export};"), &[]))
        .filter_map(|path| Some((path.last()?.clone(), path.get(1)?.clone())));
    Ok(items.collect())
}

/// The names of Cargo.toml's dependencies, as Rust writes them.
fn dependencies() -> io::Result<BTreeSet<String>> {
    let manifest = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join("Cargo.toml");
    let text = fs::read_to_string(manifest)?;
    let section = text.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let names: BTreeSet<_> = section
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.replace('-', "_"))
        .collect();
    assert!(names.contains("bytes"), "the dependencies were not found");
    Ok(names)
}

// ===== reading paths =====

/// The paths of more than one segment that this text of a module names. What `crate`, `self` and
/// `super` stand for is written out; `as`, and what follows a path, is left out.
fn paths_in(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let tokens = tokens(text);
    let mut paths = Vec::new();
    // For each open brace, whether it is that of an inline module.
    let mut braces: Vec<Option<&str>> = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            "{" => {
                let is_module = at >= 2 && tokens[at - 2] == "mod";
                braces.push(is_module.then(|| tokens[at - 1].as_str()));
            }
            "}" => {
                braces.pop();
            }
            _ => {}
        }
        let starts = is_name(token) && tokens.get(at + 1).is_some_and(|next| next == "::");
        if !starts {
            at += 1;
            continue;
        }
        let inline = braces.iter().flatten().map(|name| (*name).to_owned());
        let here: Vec<_> = module.iter().cloned().chain(inline).collect();
        let mut found = Vec::new();
        at = read_tree(&tokens, at, &[], &mut found);
        paths.extend(found.into_iter().map(|path| absolute(path, &here)));
    }
    paths
}

/// Reads one path, or one tree of a `use`, and gives the place after it.
fn read_tree(
    tokens: &[String],
    mut at: usize,
    before: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = before.to_vec();
    while let Some(token) = tokens.get(at) {
        if token == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                if tokens[at] == "," {
                    at += 1;
                } else if tokens[at] == "as" {
                    at += 2;
                } else {
                    at = read_tree(tokens, at, &path, found);
                }
            }
            return at + 1;
        }
        let is_segment = is_name(token) || token == "*";
        if is_segment {
            path.push(token.clone());
            at += 1;
        }
        if !is_segment || tokens.get(at).is_none_or(|next| next != "::") {
            found.push(path);
            // Always past something, whatever the text is.
            return if is_segment { at } else { at + 1 };
        }
        at += 1;
    }
    at
}

fn absolute(path: Vec<String>, here: &[String]) -> Vec<String> {
    let mut place = here.to_vec();
    let is_relative = path[0] == "self" || path[0] == "super";
    let mut rest = path.into_iter().peekable();
    if !is_relative {
        return rest.collect();
    }
    while let Some(step) = rest.next_if(|step| step == "self" || step == "super") {
        if step == "super" {
            place.pop();
        }
    }
    let root = ["crate".to_owned()];
    root.into_iter().chain(place).chain(rest).collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_') && token != "as"
}

/// Names, `::` and single signs; without comments, texts, characters and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            quoted(rest)
        } else if let Some(length) = raw_text(rest) {
            length
        } else if first == '\'' {
            let mut chars = rest.chars().skip(1);
            match (chars.next(), chars.next()) {
                (Some('\\'), _) => 2 + rest[3..].find('\'').map_or(1, |end| end + 2),
                (Some(c), Some('\'')) => 2 + c.len_utf8(),
                _ => 1,
            }
        } else if is_name(rest) || rest.starts_with("as") {
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length.min(rest.len())..];
    }
    tokens
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_u32;
    let mut at = 0;
    while at < text.len() {
        match &text.as_bytes()[at..(at + 2).min(text.len())] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |end| end + 2)
}

/// The length of the raw text that stands here, if one does.
fn raw_text(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or(text.strip_prefix("r"))?;
    let hashes = after.find(|c| c != '#')?;
    let inside = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end)? + end.len();
    Some(text.len() - inside.len() + length)
}
