//! How long a change takes to get through a mesh: `cargo xtask bench`, or
//! `cargo bench -p tombolo --bench propagation -- dns path`.
//!
//! Runs the demo as a child process and asks its servers from outside. Every figure stands beside
//! its promise, and beside the smallest program that does only the unavoidable, measured in turn
//! with it. docs/benchmarks.md says how to read the table.
//!
//! Without arguments all of `dns`, `path`, `envoy`, `failover`, `start`. `--binary=PATH` measures
//! another build of `tombolo`, `--rounds=N` measures N times each. Started without cargo's
//! `--bench`, as `cargo test --benches` does, it goes once through `dns`.
#![expect(clippy::print_stdout, reason = "a measurement, run by a person")]

mod dns;
mod edit;
mod failover;
mod limit;
mod machine;
mod propagate;
mod start;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tombolo_testbed::{Missing, Tool};

use crate::stats::Section;

/// What is measured, and how often.
struct Bench {
    binary: PathBuf,
    rounds: Option<usize>,
}

impl Bench {
    fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(usual)
    }

    #[expect(clippy::unused_self, reason = "what the measurements have to do with")]
    fn envoy(&self) -> Result<PathBuf, Missing> {
        Tool::Envoy.path()
    }
}

type Measure = fn(&Bench) -> anyhow::Result<Section>;

const MEASURES: [(&str, &str, Measure); 5] = [
    ("dns", "An edit shows in the other region's DNS", propagate::to_dns),
    ("path", "Where the time of an edit goes", propagate::path),
    ("envoy", "An edit shows in the other region's Envoy", propagate::to_envoy),
    ("failover", "All backends of a region die under 200 requests a second", failover::measure),
    ("start", "The demo starts", start::measure),
];

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> anyhow::Result<()> {
    let measures = arguments.iter().any(|argument| argument == "--bench");
    let option = |name: &str| {
        arguments.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='))
    };
    let rounds = option("--rounds").map(str::parse).transpose().context("--rounds=N")?;
    let bench = Bench {
        binary: option("--binary").unwrap_or(env!("CARGO_BIN_EXE_tombolo")).into(),
        rounds: rounds.or((!measures).then_some(1)),
    };
    let mut names: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    if !measures && names.is_empty() {
        names.push("dns");
    }
    let mut sections = Vec::new();
    for (name, title, measure) in MEASURES {
        if names.is_empty() || names.contains(&name) {
            let section = measured(&bench, name, title, measure)?;
            print!("{}", section.table());
            sections.push(section);
        }
    }
    save(&bench, &sections)
}

/// Where Envoy is missing, the rest is measured all the same.
fn measured(
    bench: &Bench,
    name: &'static str,
    title: &str,
    measure: Measure,
) -> anyhow::Result<Section> {
    let section = match measure(bench) {
        Ok(section) => section,
        Err(error) => match error.downcast::<Missing>() {
            Ok(missing) => {
                Section { not_measured: Some(missing.to_string()), ..Section::default() }
            }
            Err(error) => return Err(error.context(format!("measuring {name}"))),
        },
    };
    Ok(Section { name, title: title.to_owned(), ..section })
}

fn save(bench: &Bench, sections: &[Section]) -> anyhow::Result<()> {
    // Cargo's place for scratch files of benchmarks is `tmp` in the target directory.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("a target directory")?;
    let file = target.join("bench/propagation.json");
    std::fs::create_dir_all(target.join("bench"))?;
    let result = serde_json::json!({
        "binary": bench.binary,
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "sections": sections.iter().map(Section::to_json).collect::<Vec<_>>(),
    });
    std::fs::write(&file, serde_json::to_vec_pretty(&result)?)?;
    println!("\nall samples: {}", file.display());
    Ok(())
}

/// Times that fall in step with nothing.
struct Jitter(u64);

impl Jitter {
    fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    /// xorshift64: two runs wait alike.
    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let span = u32::try_from(most.saturating_sub(least).as_micros()).unwrap_or(u32::MAX).max(1);
        let share = u32::try_from(self.0 % u64::from(span)).unwrap_or_default();
        least + Duration::from_micros(share.into())
    }
}

/// The schedule of a measurement.
#[expect(clippy::disallowed_methods, reason = "a measurement keeps time, it waits for no state")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
