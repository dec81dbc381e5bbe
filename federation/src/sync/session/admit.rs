//! Which single record an agent may write.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::PoisonError;

use jiff::{SignedDuration, Timestamp};

use super::Session;
use super::refusal::{Reason, Refusal, because};
use crate::key::Key;
use crate::proto::federation as wire;
use tokio::time::Instant;

use crate::record::{Body, Cluster, Endpoints, Export, Origin, Record, Removal};
use crate::replica::Removed;
use crate::sync::quota::{Usage, is_beside};
use crate::sync::transactions::MAX_RECORD_BYTES;
use crate::sync::{CLUSTER_KINDS, chain};

/// Where machines of a cloud are told their credentials, apart from link-local addresses. An endpoint
/// there would lend a mesh's clients those of whoever dials it. By the documentation of:
///
/// - Amazon EC2, "Use the Instance Metadata Service", and Amazon EKS, "Pod Identity agent";
/// - Google Compute Engine, "View and query VM metadata" (instances of IPv6 alone);
/// - Oracle Cloud Infrastructure, "Instance Metadata Service v2";
/// - Microsoft Azure, "What is IP address 168.63.129.16?";
/// - Alibaba Cloud ECS, "Instance metadata";
/// - Akamai (Linode), "Metadata service"; Scaleway, "Instance user data and metadata".
const METADATA: [IpAddr; 8] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];
/// How far an agent's clock may be ahead of the region's.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

impl Session {
    /// The key, if the record may be written under it.
    pub(super) fn admit(&mut self, put: &wire::Put, now: Timestamp) -> Result<Key, Refusal> {
        let key = self.own_key(&put.key)?;
        let size = put.key.len() + put.value.len();
        if size > MAX_RECORD_BYTES {
            return Err(Refusal::new(
                Reason::Size,
                format!("has {size} bytes, more than the {MAX_RECORD_BYTES} that a store takes"),
            ));
        }
        self.admit_namespace(&key).map_err(because(Reason::Namespace))?;
        let record = Record::open(&key, &put.value)
            .map_err(|error| Refusal::new(Reason::Unreadable, chain(&error)))?;
        self.admit_origin(&key, &record.origin).map_err(because(Reason::Sequence))?;
        match record.body {
            Body::Export(export) => {
                self.admit_export(&export, now).map_err(because(Reason::Precedence))?;
            }
            Body::Endpoints(endpoints) => admit_addresses(self.cluster.as_ref(), &endpoints)
                .map_err(because(Reason::Address))?,
            Body::Cluster(cluster) => self.cluster = Some(cluster),
            Body::Namespace(_) | Body::Beacon(_) | Body::Region(_) | Body::Decision(_) => {}
        }
        Ok(key)
    }

    /// The key, if there is room for the record: that is taken then.
    pub(super) fn admit_more(&mut self, key: Key, put: &wire::Put) -> Result<Key, Refusal> {
        let before = self.held.get(&key).map(|held| held.bytes);
        let size = put.key.len() + put.value.len();
        if is_beside(&key) {
            self.usage.add(before, size);
            return Ok(key);
        }
        let taken = self.usage.put(&self.quota, before, size);
        taken.map_err(|error| Refusal::new(Reason::Quota, error.to_string()))?;
        Ok(key)
    }

    /// The room of what goes for certain by the same message: what comes with it may take that.
    /// Removals that nothing explains are judged by what has come, so theirs is not counted on.
    pub(super) fn made_room(&self, changes: &wire::Changes) -> Usage {
        let puts: BTreeSet<&str> = changes.puts.iter().map(|put| put.key.as_str()).collect();
        let goes = |tombstone: &wire::Tombstone| {
            let key = self.own_key(&tombstone.key).ok()?;
            let explained = self.readable(&key, tombstone).ok()? != Removal::Unexplained;
            (explained && !puts.contains(tombstone.key.as_str())).then_some(key)
        };
        let gone: BTreeSet<Key> = changes.tombstones.iter().filter_map(goes).collect();
        let held = gone.iter().filter_map(|key| self.held.get(key));
        held.map(|held| Usage { records: 1, bytes: held.bytes }).sum()
    }

    /// Why the record under `key` goes, if it may; `base` is the [`Session::removal_base`] of its batch.
    pub(super) fn admit_removal(
        &mut self,
        key: &Key,
        tombstone: &wire::Tombstone,
        base: usize,
    ) -> Result<Removal, Refusal> {
        let removal = self.readable(key, tombstone)?;
        if removal == Removal::Unexplained {
            let mut removals = self.removals.lock().unwrap_or_else(PoisonError::into_inner);
            let allowed = removals.allow(key, &self.held, base, Instant::now());
            allowed.map_err(because(Reason::Held))?;
        }
        Ok(removal)
    }

    /// What a tombstone says of why the record goes, if it comes after what is held.
    fn readable(&self, key: &Key, tombstone: &wire::Tombstone) -> Result<Removal, Refusal> {
        let removal = Removal::from_wire(tombstone.removal).ok_or_else(|| {
            Refusal::new(Reason::Removal, "a tombstone says why: this one does not")
        })?;
        if tombstone.sequence == 0 {
            let text = "a tombstone has a sequence number: this one has none";
            return Err(Refusal::new(Reason::Removal, text));
        }
        if let Some(held) = self.held.get(key).and_then(|held| held.newest.as_ref())
            && held.epoch == self.epoch
            && tombstone.sequence < held.sequence
        {
            let text = format!(
                "goes back: removed by change {}, and change {} of it is held",
                tombstone.sequence, held.sequence
            );
            return Err(Refusal::new(Reason::Sequence, text));
        }
        Ok(removal)
    }

    /// Whether the owner is entitled to the namespace that the record is about.
    pub(super) fn may_say(&self, key: &Key) -> bool {
        self.entitlement.covers(key.about().as_ref())
    }

    /// The record is to go that is held from when its owner was entitled to it: as it may not be
    /// changed, it would stand for ever as it was then. It goes by the number under which its owner
    /// says it now.
    pub(super) fn note_revoked(&mut self, put: &wire::Put, why: &Refusal) {
        if why.reason != Reason::Namespace {
            return;
        }
        let said = Origin::of_value(&put.value).filter(|said| said.epoch == self.epoch);
        if let (Ok(key), Some(said)) = (self.own_key(&put.key), said)
            && self.held.contains_key(&key)
        {
            self.revoked.insert(key, said.sequence);
        }
    }

    /// What goes of that, once the entitlement has stood for long enough.
    pub(super) fn revoke(&mut self, now: Instant) -> Vec<(Key, Removed)> {
        if now < self.revoke_at {
            return Vec::new();
        }
        let mut gone = Vec::new();
        for (key, sequence) in std::mem::take(&mut self.revoked) {
            let Some(held) = self.let_go(&key) else { continue };
            let newest = held.newest.filter(|held| held.epoch == self.epoch);
            let sequence = sequence.max(newest.map_or(0, |held| held.sequence));
            let removal = Removal::Explained;
            self.tally.removed(removal);
            gone.push((key, self.removed(removal, sequence)));
        }
        gone
    }

    fn admit_namespace(&self, key: &Key) -> Result<(), String> {
        if self.may_say(key) {
            return Ok(());
        }
        let about = key.about();
        Err(format!(
            "is about namespace {}, which {} is not entitled to",
            about.map(|namespace| namespace.to_string()).unwrap_or_default(),
            self.owner
        ))
    }

    /// A record names the stream's own epoch, and its changes only go up.
    fn admit_origin(&self, key: &Key, origin: &Origin) -> Result<(), String> {
        if origin.epoch != self.epoch {
            return Err(format!(
                "was written in epoch {}, this stream is of {}",
                origin.epoch, self.epoch
            ));
        }
        let held = self.held.get(key).and_then(|held| held.newest.as_ref());
        match held {
            Some(held) if held.epoch == self.epoch && origin.sequence < held.sequence => {
                Err(format!(
                    "goes back: change {} comes after change {} of it was taken",
                    origin.sequence, held.sequence
                ))
            }
            _ => Ok(()),
        }
    }

    /// The key, if it is one of this owner's and of a kind that agents publish.
    pub(super) fn own_key(&self, text: &str) -> Result<Key, Refusal> {
        let key: Key = text.parse().map_err(|error: crate::key::InvalidKey| {
            Refusal::new(Reason::Key, error.to_string())
        })?;
        if key.owner != self.owner {
            let text =
                format!("belongs to {}, this stream publishes for {}", key.owner, self.owner);
            return Err(Refusal::new(Reason::Owner, text));
        }
        if !CLUSTER_KINDS.contains(&key.kind) {
            let text = format!("agents do not publish records of kind {}", key.kind);
            return Err(Refusal::new(Reason::Kind, text));
        }
        Ok(key)
    }

    /// A claim of age is bounded: not older than the cluster's join, not younger than now.
    fn admit_export(&self, export: &Export, now: Timestamp) -> Result<(), String> {
        // The wire has milliseconds, the join may have been recorded with more.
        let joined = self.joined.as_millisecond();
        if export.precedence.as_millisecond() < joined {
            return Err(format!(
                "claims precedence since {}, but the cluster joined at {}",
                export.precedence, self.joined
            ));
        }
        if export.precedence > now + CLOCK_SKEW {
            return Err(format!(
                "claims precedence since {}, which is yet to come",
                export.precedence
            ));
        }
        Ok(())
    }
}

fn admit_addresses(cluster: Option<&Cluster>, endpoints: &Endpoints) -> Result<(), String> {
    let cluster = cluster.ok_or("the cluster's own record has to come first")?;
    for endpoint in &endpoints.endpoints {
        admit_address(cluster, endpoint.address)
            .map_err(|why| format!("endpoint {} {why}", endpoint.address))?;
    }
    Ok(())
}

fn admit_address(cluster: &Cluster, address: IpAddr) -> Result<(), String> {
    // ::ffff:169.254.169.254 is as link-local as what it stands for.
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() || link_local || address.is_multicast() {
        return Err("is unspecified, link-local or multicast".to_owned());
    }
    if METADATA.contains(&address) {
        return Err("is where a cloud gives out credentials".to_owned());
    }
    if !cluster.directory && address.is_loopback() {
        return Err("is a loopback address".to_owned());
    }
    let mut declared = cluster.pod_cidrs.iter().chain(&cluster.node_cidrs).peekable();
    if declared.peek().is_none() {
        // A directory cluster may leave its ranges open, one with an API server may not.
        return if cluster.directory {
            Ok(())
        } else {
            Err("the cluster declares no CIDRs".to_owned())
        };
    }
    if declared.any(|net| net.contains(&address)) {
        return Ok(());
    }
    Err("is in none of the CIDRs that the cluster declares".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(directory: bool, cidrs: &[&str], address: &str, why: &str) {
        let pod_cidrs = cidrs.iter().map(|net| net.parse().unwrap()).collect();
        let cluster = Cluster { pod_cidrs, directory, ..Cluster::default() };
        let outcome = admit_address(&cluster, address.parse().unwrap());
        match outcome {
            Ok(()) => assert_eq!(why, "", "{address} was admitted"),
            Err(error) => assert!(!why.is_empty() && error.contains(why), "{address}: {error}"),
        }
    }

    #[test]
    fn addresses() {
        check(false, &["10.0.0.0/8"], "10.1.2.3", "");
        check(false, &["10.0.0.0/8"], "11.1.2.3", "in none");
        check(false, &[], "10.1.2.3", "declares no CIDRs");
        check(false, &["127.0.0.0/8"], "127.0.0.1", "loopback");
        check(false, &["0.0.0.0/0"], "169.254.169.254", "link-local");
        check(true, &["0.0.0.0/0"], "169.254.169.254", "link-local");
        check(true, &[], "0.0.0.0", "unspecified");
        check(true, &[], "fe80::1", "link-local");
        check(true, &[], "::ffff:169.254.169.254", "link-local");
        check(true, &[], "::ffff:0.0.0.0", "unspecified");
        check(true, &[], "224.0.0.1", "multicast");
        check(false, &["::/0"], "fd00:ec2::254", "credentials");
        check(true, &[], "fd00:ec2::254", "credentials");
        check(true, &["100.64.0.0/10"], "100.100.100.200", "credentials");
        check(true, &[], "::ffff:100.100.100.200", "credentials");
        check(true, &["fd00::/8"], "fd00:ec2::1", "");
        check(true, &[], "127.1.1.1", "");
        check(true, &["127.0.0.0/8"], "10.1.1.1", "in none");
        check(true, &["127.0.0.0/8"], "127.9.9.9", "");
    }
}
