//! What a leave would do, for whoever wants to know before.

use std::fmt;

use super::{Leaver, Refusal, View};
use crate::key::Kind;
use crate::names::Owner;

/// What a leave would remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// Who would leave.
    pub owner: Owner,
    /// As what.
    pub incarnation: String,
    /// Its last sign of life.
    pub heard: String,
    /// What is held of it, and of its clusters.
    pub held: Vec<Held>,
}

/// What would go of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose it is.
    pub owner: Owner,
    /// Its records.
    pub records: usize,
    /// The services that it exports.
    pub exports: usize,
}

/// What [`super::leave`] would do.
///
/// # Errors
/// The same.
pub fn preview(view: &View<'_>, leaver: &Leaver, live: bool) -> Result<Preview, Refusal> {
    let (owner, incarnation, heard) = super::departing(view, leaver, live)?;
    let goes = |of: &Owner| *of == owner || (owner.cluster.is_none() && of.region == owner.region);
    let held = view.replica.owners().filter(|(of, holding)| goes(of) && !holding.is_empty());
    let held = held.map(|(of, holding)| Held {
        owner: of.clone(),
        records: holding.len(),
        exports: holding.records().filter(|(key, _)| key.kind == Kind::Export).count(),
    });
    let (heard, held) = (heard.to_string(), held.collect());
    Ok(Preview { owner, incarnation, heard, held })
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, incarnation, heard, held } = self;
        write!(f, "{owner} ({heard}) would leave as incarnation {incarnation:?}. These would go:")?;
        for Held { owner, records, exports } in held {
            write!(f, "\n  {owner}: {records} records, {exports} exported services")?;
        }
        Ok(())
    }
}
