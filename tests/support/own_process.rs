//! Tests of what belongs to a whole process run in a process of their own.

use std::{env, process::Stdio};

use tokio::process::Command;

const CHILD: &str = "TOWER_SSE_OWN_PROCESS";

/// The name by which a test is chosen with `--exact`, from its `module_path!()`.
pub fn test_name(module: &str, function: &str) -> String {
    match module.split_once("::") {
        Some((_, module)) => format!("{module}::{function}"),
        None => function.to_owned(),
    }
}

/// Returns `true` in a process that runs only this test. Elsewhere it runs the test in such a
/// process, checks that it passes, and returns `false`.
pub async fn is_own(module: &str, function: &str) -> bool {
    if env::var_os(CHILD).is_some() {
        return true;
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child
        .args([&test_name(module, function), "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = child.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{errors}"
    );
    false
}
