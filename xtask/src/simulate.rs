//! Runs the simulation of the mesh. It is an example of the federation crate: a person who waits for
//! this crate does not wait for that one too.

use clap::Args;

use crate::run::{Run, Verdict};

/// Which runs.
#[derive(Debug, Args)]
pub(crate) struct Simulated {
    /// How many seeds, from 0 on
    #[arg(long, default_value_t = 100, value_name = "N")]
    seeds: u64,
    /// This seed alone
    #[arg(long, value_name = "S", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// With a bug: missed-delete, resume-apart, two-sessions, unfenced-leader, empty-as-truth
    #[arg(long, value_name = "NAME")]
    planted: Option<String>,
    /// Stores are restored from backups, and lost
    #[arg(long)]
    histories: bool,
}

impl Simulated {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = match self.seed {
            Some(seed) => vec!["--seed".to_owned(), seed.to_string()],
            None => vec!["--seeds".to_owned(), self.seeds.to_string()],
        };
        if let Some(planted) = &self.planted {
            arguments.extend(["--planted".to_owned(), planted.clone()]);
        }
        if self.histories {
            arguments.push("--histories".to_owned());
        }
        arguments
    }
}

/// The whole of `cargo xtask simulate`.
pub(crate) fn all(run: &mut Run, choice: &Simulated) {
    run.step("simulate", |workspace, log| {
        let mut simulate = workspace.cargo([
            "run",
            "--release",
            "--locked",
            "--package",
            "tombolo-federation",
            "--features",
            "simulation",
            "--example",
            "simulate",
            "--",
        ]);
        log.watched(simulate.args(choice.arguments()))?;
        Ok(Verdict::Passed)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_goes_without_a_count() {
        let mut choice = Simulated {
            seeds: 9,
            seed: None,
            planted: Some("missed-delete".into()),
            histories: true,
        };
        let all = ["--seeds", "9", "--planted", "missed-delete", "--histories"];
        assert_eq!(choice.arguments(), all);
        choice = Simulated { seed: Some(3), planted: None, histories: false, ..choice };
        assert_eq!(choice.arguments(), ["--seed", "3"]);
    }
}
