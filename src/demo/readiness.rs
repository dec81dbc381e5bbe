//! Whether a process knows all that it should.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::bail;

use crate::cli::http;
use crate::role::status::Status;

/// Fails with what is missing.
pub(super) async fn knows(admin: SocketAddr, owners: &BTreeSet<String>) -> anyhow::Result<()> {
    let status: Status =
        serde_json::from_str(&http::get(&admin.to_string(), "/api/v1/status").await?)?;
    if !status.ready {
        bail!("waiting for {}", status.pending.join(", "));
    }
    // A cluster with a manifest that cannot be read does not vouch for all kinds, but has said what
    // it can once its own record is there.
    let has_spoken = |kinds: &[String]| kinds.iter().any(|kind| kind == "cluster");
    let spoken = status.sources.iter().filter(|source| has_spoken(&source.complete_kinds));
    let spoken: BTreeSet<String> = spoken.map(|source| source.owner.clone()).collect();
    let missing: Vec<&str> = owners.difference(&spoken).map(String::as_str).collect();
    if !missing.is_empty() {
        bail!("waiting for all of {}", missing.join(", "));
    }
    Ok(())
}
