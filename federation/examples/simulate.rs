//! Runs seeds of the simulation and says what it saw: `cargo xtask simulate`.
#![expect(clippy::print_stdout, reason = "a command that reports to a person")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tombolo_federation::simulation::{Choice, Planted, Report, run};

struct Arguments {
    seeds: u64,
    seed: Option<u64>,
    planted: Option<Planted>,
    histories: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut arguments = Arguments { seeds: 100, seed: None, planted: None, histories: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--seeds" => arguments.seeds = value()?.parse().context("--seeds")?,
            "--seed" => arguments.seed = Some(value()?.parse().context("--seed")?),
            "--planted" => arguments.planted = Some(value()?.parse()?),
            "--histories" => arguments.histories = true,
            _ => bail!("{word:?} is none of --seeds N, --seed S, --planted NAME, --histories"),
        }
    }
    Ok(arguments)
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { seeds, seed, planted, histories } = arguments()?;
    let first = seed.unwrap_or(0);
    let last = if seed.is_some() { first + 1 } else { seeds };
    let started = Instant::now();
    let mut sum = Sum::default();
    for seed in first..last {
        let report = run(Choice { seed, planted, histories })?;
        sum.add(&report);
        if let Some(violation) = &report.violation {
            report.recent.iter().for_each(|line| println!("{line}"));
            println!("\nseed {seed}: {violation}");
            sum.print(started.elapsed());
            let planted = planted.map(|planted| format!(" --planted {planted}"));
            let histories = if histories { " --histories" } else { "" };
            let planted = planted.unwrap_or_default();
            println!("again: cargo xtask simulate --seed {seed}{planted}{histories}");
            return Ok(ExitCode::FAILURE);
        }
    }
    sum.print(started.elapsed());
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Sum {
    seeds: u32,
    steps: u64,
    simulated: Duration,
    converged: Vec<Duration>,
    injected: BTreeMap<&'static str, u64>,
    last: String,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.simulated += report.simulated;
        self.converged.extend(report.converged_in);
        for (kind, count) in &report.injected {
            *self.injected.entry(kind).or_default() += count;
        }
        self.last.clone_from(&report.hash);
    }

    fn print(&mut self, took: Duration) {
        self.converged.sort_unstable();
        let rate = f64::from(self.seeds) / took.as_secs_f64();
        let hours = self.simulated.as_secs_f64() / 3600.0;
        println!(
            "{} seeds in {:.1} s ({rate:.2} per second), {hours:.2} simulated hours, {} steps",
            self.seeds,
            took.as_secs_f64(),
            self.steps
        );
        let injected: Vec<String> =
            self.injected.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        println!("injected: {}", injected.join(", "));
        if let (Some(middle), Some(longest)) =
            (self.converged.get(self.converged.len() / 2), self.converged.last())
        {
            println!(
                "came right after {:.1} s in the middle, {:.1} s at most",
                middle.as_secs_f64(),
                longest.as_secs_f64()
            );
        }
        println!("trace of the last seed: {}", self.last);
    }
}
