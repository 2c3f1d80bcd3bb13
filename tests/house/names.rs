//! One type name, one meaning: a name is declared once in `src`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use super::floors::source_files;

/// Names that several files declare. They are to become fewer: a name that is unique has to go
/// from here.
const SHARED_NAMES: &[&str] = &[
    // The same meaning in both backplanes.
    "ConnectError",
    // A log's, and a test reader's.
    "ReadError",
];

/// Returns the name of the type or trait that a line declares.
fn declared(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let is_nested = code.len() < line.len();
    let code = match code.strip_prefix("pub") {
        Some(rest) => rest
            .split_once(") ")
            .filter(|_| rest.starts_with('('))
            .map_or(rest, |(_, rest)| rest)
            .trim_start(),
        None => code,
    };
    let (keyword, rest) = code.split_once(' ')?;
    // An indented `type` is an associated type.
    let declares =
        matches!(keyword, "struct" | "enum" | "trait") || keyword == "type" && !is_nested;
    let end = rest
        .find(|it: char| !(it.is_alphanumeric() || it == '_'))
        .unwrap_or(rest.len());
    Some(&rest[..end]).filter(|name| declares && name.starts_with(char::is_uppercase))
}

#[test]
fn type_names_are_unique() -> io::Result<()> {
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in source_files()? {
        for name in fs::read_to_string(&file.path)?.lines().filter_map(declared) {
            let names = files.entry(name.to_owned()).or_default();
            names.insert(file.name.clone());
        }
    }
    assert!(files.len() > 150, "the types were not found");
    files.retain(|_, declared_in| declared_in.len() > 1);
    let shared: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(shared, SHARED_NAMES, "{files:#?}");
    Ok(())
}

#[test]
fn declarations_are_found() {
    assert_eq!(declared("pub(crate) struct Name<T> {"), Some("Name"));
    assert_eq!(declared("    pub enum Name {"), Some("Name"));
    assert_eq!(declared("trait Name: Send {}"), Some("Name"));
    assert_eq!(declared("pub type Name = u8;"), Some("Name"));
    for line in [
        "    type Name = u8;",
        "/// struct Name;",
        "let struct_of = Name;",
        "impl Name {",
    ] {
        assert_eq!(declared(line), None, "{line}");
    }
}
