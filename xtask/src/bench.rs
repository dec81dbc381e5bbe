//! Runs whatever bench targets the workspace has.

use anyhow::Context as _;
use serde::Deserialize;

use crate::run::{Run, Verdict};

/// The part of `cargo metadata` that names targets.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The whole of `cargo xtask bench`.
pub(crate) fn all(run: &mut Run, arguments: &[String]) {
    run.step("bench", |workspace, log| {
        let metadata = workspace
            .cargo(["metadata", "--no-deps", "--format-version", "1", "--locked"])
            .output()
            .context("cargo metadata")?;
        let benches = benches(&metadata.stdout)?;
        if benches.is_empty() {
            return Ok(Verdict::Warned("the workspace has no benchmarks".into()));
        }
        println!("benchmarks: {}", benches.join(", "));
        // `--bench *`: bench targets only, not every library's tests built for measuring.
        let mut bench = workspace.cargo(["bench", "--workspace", "--locked", "--bench", "*", "--"]);
        log.watched(bench.args(arguments))?;
        Ok(Verdict::Passed)
    });
}

/// The bench targets as `package/target`.
fn benches(metadata: &[u8]) -> anyhow::Result<Vec<String>> {
    let metadata: Metadata = serde_json::from_slice(metadata).context("cargo metadata")?;
    let targets = metadata.packages.iter().flat_map(|package| {
        let benches = package.targets.iter().filter(|target| target.kind == ["bench"]);
        benches.map(|target| format!("{}/{}", package.name, target.name))
    });
    Ok(targets.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bench_targets_are_found_and_others_are_not() {
        let metadata = r#"{"packages": [{"name": "dns", "targets": [
            {"name": "dns", "kind": ["lib"]}, {"name": "answers", "kind": ["bench"]}]}]}"#;
        assert_eq!(benches(metadata.as_bytes()).unwrap(), ["dns/answers"]);
        assert!(benches(b"error").is_err());
    }
}
