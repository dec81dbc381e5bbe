//! What can happen on the way from one namespace to another.

use std::process::Command;
use std::sync::PoisonError;

use super::commands::run;
use super::{Namespace, Namespaces};

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They vanish, as when a link is down: connections hang, and go on after healing.
    Drop,
    /// The sender is told that the connection is refused or broken.
    Reset,
    /// This percentage of them vanishes.
    Lose(u8),
}

/// One direction that is faulty.
#[derive(Debug)]
pub(super) struct Cut {
    from: String,
    to: String,
    /// Where the rule is, and the rule without its verb.
    place: Namespace,
    rule: Vec<String>,
}

impl Namespaces {
    /// What `from` sends to `to` meets `fault`, what `to` sends to `from` does not.
    ///
    /// # Errors
    ///
    /// When a label is unknown or iptables fails.
    pub fn cut(&self, from: &str, to: &str, fault: Fault) -> anyhow::Result<()> {
        let (sender, receiver) = (self.of(from)?, self.of(to)?);
        let (place, rule) = match fault {
            Fault::Drop => (receiver, format!("INPUT -s {} -j DROP", sender.address)),
            Fault::Lose(percent) => {
                let of = format!("INPUT -s {} -m statistic --mode random", sender.address);
                let part = f64::from(percent.min(100)) / 100.0;
                (receiver, format!("{of} --probability {part} -j DROP"))
            }
            // At the sender: one sent back from the receiver would not pass a second cut.
            Fault::Reset => {
                let of = format!("OUTPUT -p tcp -d {}", receiver.address);
                (sender, format!("{of} -j REJECT --reject-with tcp-reset"))
            }
        };
        let cut = Cut {
            from: from.to_owned(),
            to: to.to_owned(),
            place: place.clone(),
            rule: rule.split(' ').map(str::to_owned).collect(),
        };
        cut.filter("-A")?;
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).push(cut);
        Ok(())
    }

    /// [`cut`](Self::cut) both ways.
    ///
    /// # Errors
    ///
    /// When a label is unknown or iptables fails.
    pub fn part(&self, one: &str, other: &str, fault: Fault) -> anyhow::Result<()> {
        self.cut(one, other, fault)?;
        self.cut(other, one, fault)
    }

    /// Parts `one` from all the others.
    ///
    /// # Errors
    ///
    /// When the label is unknown or iptables fails.
    pub fn isolate(&self, one: &str, fault: Fault) -> anyhow::Result<()> {
        let mut others = self.all.iter().filter(|other| other.label != one);
        others.try_for_each(|other| self.part(one, &other.label, fault))
    }

    /// Takes all faults between two back, both ways.
    ///
    /// # Errors
    ///
    /// When iptables fails.
    pub fn heal(&self, one: &str, other: &str) -> anyhow::Result<()> {
        self.take_back(|cut| {
            [&cut.from, &cut.to] == [one, other] || [&cut.from, &cut.to] == [other, one]
        })
    }

    /// Takes all faults back.
    ///
    /// # Errors
    ///
    /// When iptables fails.
    pub fn heal_all(&self) -> anyhow::Result<()> {
        self.take_back(|_| true)
    }

    fn take_back(&self, which: impl Fn(&Cut) -> bool) -> anyhow::Result<()> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(index) = cuts.iter().position(&which) {
            cuts[index].filter("-D")?;
            cuts.remove(index);
        }
        Ok(())
    }
}

impl Cut {
    fn filter(&self, verb: &str) -> anyhow::Result<()> {
        let mut iptables = Command::new("iptables");
        iptables.args(["--wait", verb]).args(&self.rule);
        self.place.inside(|| run(&mut iptables))?.map(|_| ())
    }
}
