//! Clusters that claim an id that another one holds, for whoever runs the region.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::names::Owner;
use crate::sync::session::SessionError;

/// A claimant comes again every few seconds: one that does not has given up.
const STANDS: Duration = Duration::from_mins(1);
/// Certificates bound whose ids may be claimed, not by how many.
const KEPT: usize = 16;

/// What was refused lately for that. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Claims(Arc<Mutex<BTreeMap<(Owner, String), Claim>>>);

#[derive(Debug)]
struct Claim {
    holder: String,
    at: Instant,
}

impl Claims {
    /// Takes note of what was refused, if it was for that.
    pub(super) fn note(&self, error: &SessionError, now: Instant) {
        let SessionError::Claimed { owner, holder, uid } = error else { return };
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|_, claim| now.saturating_duration_since(claim.at) < STANDS);
        let who = (owner.clone(), uid.clone());
        if claims.len() < KEPT || claims.contains_key(&who) {
            claims.insert(who, Claim { holder: holder.clone(), at: now });
        }
    }

    /// Those that stand, in words.
    #[must_use]
    pub fn problems(&self, now: Instant) -> Vec<String> {
        let claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let standing =
            claims.iter().filter(|(_, claim)| now.saturating_duration_since(claim.at) < STANDS);
        let words = standing.map(|((owner, uid), Claim { holder, .. })| {
            format!(
                "cluster id {owner} is claimed by a second cluster, with UID {uid}: it is refused, \
                 the one with UID {holder} goes on"
            )
        });
        words.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_told_of_while_it_is_made() {
        let (claims, now) = (Claims::default(), Instant::now());
        let claim = |uid: &str| SessionError::Claimed {
            owner: "r/r-a".parse().unwrap(),
            holder: "first".into(),
            uid: uid.into(),
        };
        claims.note(&SessionError::Refused("no agent".into()), now);
        assert_eq!(claims.problems(now), [""; 0]);
        claims.note(&claim("second"), now);
        let later = now + STANDS / 2;
        claims.note(&claim("third"), later);
        let told = claims.problems(later);
        assert!(told[0].contains("UID second") && told[1].contains("UID third"), "{told:?}");
        assert_eq!(claims.problems(now + STANDS).len(), 1);
        for number in 0..100 {
            claims.note(&claim(&number.to_string()), later);
        }
        assert_eq!(claims.problems(later).len(), KEPT);
    }
}
