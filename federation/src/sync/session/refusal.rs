//! Why single records and removals are refused, and how often.

use std::collections::BTreeMap;

use crate::record::Removal;

/// The kind of reason, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The key is no record key.
    Key,
    /// It belongs to another owner.
    Owner,
    /// Agents do not publish this kind.
    Kind,
    /// More bytes than a store takes.
    Size,
    /// About a namespace that the cluster is not entitled to.
    Namespace,
    /// The value cannot be used.
    Unreadable,
    /// Of another epoch than the stream's, or from before what is held.
    Sequence,
    /// A claim of age that cannot be true.
    Precedence,
    /// An endpoint where the cluster has none.
    Address,
    /// A removal that does not say why, or when.
    Removal,
    /// A removal that nothing explains, beyond the limits for such.
    Held,
    /// The same key twice in one batch.
    Twice,
    /// Neither declared nor removed.
    Silent,
}

impl Reason {
    /// A word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Owner => "owner",
            Self::Kind => "kind",
            Self::Size => "size",
            Self::Namespace => "namespace",
            Self::Unreadable => "unreadable",
            Self::Sequence => "sequence",
            Self::Precedence => "precedence",
            Self::Address => "address",
            Self::Removal => "removal",
            Self::Held => "held",
            Self::Twice => "twice",
            Self::Silent => "silent",
        }
    }
}

/// Why one record is refused, for its owner to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

/// Leaves `reason` to be said by the caller.
pub(super) fn because(reason: Reason) -> impl Fn(String) -> Refusal {
    move |text| Refusal { reason, text }
}

/// What a session has refused and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records and removals that were refused.
    pub refused: BTreeMap<Reason, u64>,
    /// Removals that were taken.
    pub removed: BTreeMap<Removal, u64>,
}

impl Tally {
    pub(super) fn refused(&mut self, reason: Reason) {
        *self.refused.entry(reason).or_default() += 1;
    }

    pub(super) fn removed(&mut self, removal: Removal) {
        *self.removed.entry(removal).or_default() += 1;
    }
}
