//! The layout of the tests: a directory per area, a file per behaviour, short names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The modules that include a suite once each.
const PATHS: usize = 2;
const SERVERS: usize = 3;

fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The directories with a `main.rs`.
fn areas() -> io::Result<Vec<PathBuf>> {
    let mut areas = Vec::new();
    for entry in fs::read_dir(tests_dir())? {
        let path = entry?.path();
        if path.join("main.rs").is_file() {
            areas.push(path);
        }
    }
    assert!(areas.len() > 8, "the areas were not found");
    Ok(areas)
}

fn rust_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[test]
fn every_suite_runs_on_each_of_its_paths() -> io::Result<()> {
    let mut wrong = Vec::new();
    for area in areas()? {
        let main = fs::read_to_string(area.join("main.rs"))?;
        for entry in fs::read_dir(&area)? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            if !path.is_file() || name == "main" {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let expected = if main.contains("const SERVER") {
                SERVERS
            } else if ["paths", "rules", "timed"]
                .iter()
                .any(|suite| uses(&text, suite))
            {
                PATHS
            } else {
                1
            };
            let found = declarations(&main, &name);
            if found != expected {
                wrong.push(format!("{}: {found} instead of {expected}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "declarations in main.rs:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// Whether a file imports a shared suite from the module that includes the file.
fn uses(text: &str, suite: &str) -> bool {
    text.lines()
        .filter_map(|line| line.strip_prefix("use super::"))
        .any(|rest| {
            rest.split(|c: char| !c.is_alphanumeric())
                .any(|word| word == suite)
        })
}

#[test]
fn names_of_tests_have_fewer_than_60_characters() -> io::Result<()> {
    let root = tests_dir().join("..");
    let mut seen = 0;
    for directory in ["src", "tests", "examples", "loom/src"] {
        for path in rust_files(&root.join(directory))? {
            for name in test_names(&fs::read_to_string(&path)?) {
                seen += 1;
                assert!(name.len() < 60, "{}: {name}", path.display());
            }
        }
    }
    assert!(seen > 700, "{seen} tests were found");
    Ok(())
}

/// How often a module is declared.
fn declarations(main: &str, name: &str) -> usize {
    let declaration = format!("mod {name};");
    main.lines()
        .filter(|line| line.trim() == declaration)
        .count()
}

/// The names of the functions below a test attribute.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let line = line.strip_prefix("async ").unwrap_or(line);
        if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
            names.extend(rest.split('(').next());
            is_test = false;
        }
    }
    names
}
