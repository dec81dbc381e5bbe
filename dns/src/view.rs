//! Who asks, and so what a name means to them.

use serde::Serialize;
use tombolo_federation::names::{ClusterId, RegionName};

/// From where the zone is looked at.
///
/// The cluster view (clusterset IPs of one cluster's imports) will be a second variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", rename_all_fields = "snake_case")]
#[non_exhaustive]
pub enum View {
    /// Names resolve to ready endpoints of the nearest region that the asker's network reaches.
    ///
    /// A tier is a region: the asker's own first, then the others by the distances that its region
    /// declares. Zones are not tiers here, since a client keeps an address for as long as it likes:
    /// a proxy can move it between zones, DNS cannot.
    Endpoints {
        /// The asker's region.
        region: RegionName,
        /// Its cluster, if it is in one. Shown in explanations; a region is one tier.
        cluster: Option<ClusterId>,
        /// Its zone, if known. Shown in explanations; a region is one tier.
        zone: Option<String>,
        /// Its network: only endpoints of an equal one are answered.
        network: String,
    },
}
