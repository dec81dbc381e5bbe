//! The documents that the repository keeps, against the workspace they describe.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::read;

const KEPT: [&str; 6] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"];

#[derive(Debug, Deserialize)]
struct Manifest {
    package: Package,
    workspace: Option<Workspace>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Workspace {
    members: Vec<String>,
}

fn manifest(path: &str) -> anyhow::Result<Manifest> {
    toml::from_str(&read(path)?).with_context(|| path.to_owned())
}

/// The names of all packages: the root's and each member's.
fn crates() -> anyhow::Result<BTreeSet<String>> {
    let root = manifest("Cargo.toml")?;
    let members = root.workspace.context("the root manifest is a workspace's")?.members;
    let mut names = BTreeSet::from([root.package.name]);
    for member in members {
        names.insert(manifest(&format!("{member}/Cargo.toml"))?.package.name);
    }
    Ok(names)
}

/// The crates that a document has a section on: headings that begin with a name in backticks.
fn sections(markdown: &str) -> BTreeSet<String> {
    let headings = markdown.lines().filter(|line| line.starts_with("##"));
    let named = headings.filter_map(|heading| {
        heading.trim_start_matches('#').trim_start().strip_prefix('`')?.split_once('`')
    });
    named.map(|(name, _)| name.to_owned()).collect()
}

/// The commands of a shell script that sets no more than its options, directory and environment.
fn commands(script: &str) -> Vec<&str> {
    let lines = script.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with(['#']))
        .filter(|line| !["set ", "cd ", "export "].iter().any(|word| line.starts_with(word)))
        .collect()
}

/// The lines inside the code fences of a document.
fn fenced(markdown: &str) -> Vec<&str> {
    let parts = markdown.split("```").skip(1).step_by(2);
    parts.flat_map(|block| block.lines().skip(1)).map(str::trim).collect()
}

#[test]
fn every_kept_document_is_there_and_says_something() {
    for document in KEPT {
        assert!(!read(document).unwrap().trim().is_empty(), "{document} is empty");
    }
}

#[test]
fn architecture_has_a_section_per_crate_and_no_other() {
    let (crates, sections) = (crates().unwrap(), sections(&read("ARCHITECTURE.md").unwrap()));
    let missing: Vec<_> = crates.difference(&sections).collect();
    let unknown: Vec<_> = sections.difference(&crates).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "ARCHITECTURE.md needs a heading that begins with the name in backticks, as in \
         \"### `tombolo-dns`\": missing {missing:?}, not in the workspace {unknown:?}"
    );
}

#[test]
fn ci_runs_exactly_the_command_that_the_readme_shows() {
    let script = read(".ci/run").unwrap();
    let commands = commands(&script);
    assert_eq!(commands, ["cargo xtask test"], ".ci/run does no more and no less");
    let strict = script.find("\nexport CI=true\n").expect("it says that this is CI");
    assert!(strict < script.find(commands[0]).unwrap(), "and says so before the command");
    let readme = read("README.md").unwrap();
    assert!(fenced(&readme).contains(&commands[0]), "README.md shows it in a code block");
}

#[test]
fn changes_that_are_not_released_stand_on_top() {
    let changelog = read("CHANGELOG.md").unwrap();
    let first = changelog.lines().find(|line| line.starts_with("## "));
    assert_eq!(first, Some("## Unreleased"), "the first section of CHANGELOG.md");
}

#[test]
fn headings_and_fences_are_read_as_meant() -> anyhow::Result<()> {
    let text = "# `no`\n## `a`: words\n### The `b`\n###`c`\ntext `d`\n```sh\ncargo x\n```\nout\n";
    ensure!(sections(text) == BTreeSet::from(["a".to_owned(), "c".to_owned()]));
    ensure!(fenced(text) == ["cargo x"]);
    ensure!(commands("#!/bin/sh\nset -e\ncd /x\nexport A=b\n\n# a\nb c\n") == ["b c"]);
    Ok(())
}
