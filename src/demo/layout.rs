//! Which clusters a demo has, and which ports they get.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tombolo_federation::names::{ClusterId, ClusterName, RegionName};

use crate::config::Listen;

/// Regions with their clusters and where each cluster's manifests are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) regions: BTreeMap<RegionName, BTreeMap<ClusterName, PathBuf>>,
}

impl Layout {
    /// Reads `--dir` arguments: one directory laid out as `<region>/<cluster>/`, or any number of
    /// `REGION/CLUSTER=PATH`.
    pub(crate) fn from_arguments(dirs: &[String]) -> anyhow::Result<Self> {
        let mut layout = Self { regions: BTreeMap::new() };
        for dir in dirs {
            match dir.split_once('=') {
                Some((cluster, path)) => layout.add_named(cluster, Path::new(path))?,
                None => layout.add_tree(Path::new(dir))?,
            }
        }
        if layout.regions.is_empty() {
            bail!(
                "no cluster to show: expected directories <region>/<cluster>/ with manifests in them"
            );
        }
        Ok(layout)
    }

    fn add_named(&mut self, cluster: &str, path: &Path) -> anyhow::Result<()> {
        let Some((region, cluster)) = cluster.split_once('/') else {
            bail!("--dir {cluster}=...: expected REGION/CLUSTER=PATH");
        };
        if !path.is_dir() {
            bail!("--dir {region}/{cluster}={}: not a directory", path.display());
        }
        self.add(region.parse()?, cluster.parse()?, path)
    }

    fn add_tree(&mut self, root: &Path) -> anyhow::Result<()> {
        let regions = directories(root).with_context(|| {
            format!(
                "--dir {}: cannot be read; expected <region>/<cluster>/*.yaml below it, or --dir REGION/CLUSTER=PATH",
                root.display()
            )
        })?;
        for (region, path) in regions {
            for holder in [root, &path] {
                refuse_manifests(root, holder)?;
            }
            let region: RegionName =
                region.parse().with_context(|| format!("directory {}", path.display()))?;
            for (cluster, path) in directories(&path)? {
                let cluster =
                    cluster.parse().with_context(|| format!("directory {}", path.display()))?;
                self.add(region.clone(), cluster, &path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, region: RegionName, cluster: ClusterName, path: &Path) -> anyhow::Result<()> {
        let id = ClusterId::of(&region, &cluster)?;
        for (other, clusters) in &self.regions {
            for (name, held) in clusters {
                if ClusterId::of(other, name)? == id {
                    bail!(
                        "cluster id {id} is claimed by {} and by {}: ids must be unique in the mesh, rename one",
                        held.display(),
                        path.display()
                    );
                }
            }
        }
        self.regions.entry(region).or_default().insert(cluster, path.to_owned());
        Ok(())
    }
}

/// Somebody who names the manifests of one cluster is told how to.
fn refuse_manifests(root: &Path, holder: &Path) -> anyhow::Result<()> {
    let is_manifest = |path: &Path| {
        path.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"].iter().any(|known| extension == *known)
        })
    };
    for entry in std::fs::read_dir(holder).with_context(|| holder.display().to_string())? {
        let path = entry?.path();
        if path.is_file() && is_manifest(&path) {
            bail!(
                "--dir {}: expected <region>/<cluster>/*.yaml below it, but {} is no cluster's; for the manifests \
                 of one cluster name it, as in --dir my-region/my-cluster={}",
                root.display(),
                path.display(),
                holder.display()
            );
        }
    }
    Ok(())
}

/// Subdirectories with their names, hidden ones apart.
fn directories(path: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            found.insert(name, entry.path());
        }
    }
    Ok(found)
}

/// Where everything of one demo listens.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub(crate) control: SocketAddr,
    pub(crate) regions: BTreeMap<RegionName, RegionPorts>,
    /// Keep other demos off this one's ports, also off those of parts that are stopped.
    _claims: Arc<[TcpListener]>,
}

/// Of one region.
#[derive(Debug, Clone)]
pub(crate) struct RegionPorts {
    pub(crate) control_plane: Listen,
    pub(crate) clusters: BTreeMap<ClusterName, ClusterPorts>,
}

/// Of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct ClusterPorts {
    pub(crate) agent: Listen,
    /// Where Envoy takes requests.
    pub(crate) envoy: SocketAddr,
    /// Where Envoy's own admin page is.
    pub(crate) envoy_admin: SocketAddr,
}

impl Ports {
    /// Fixed ones: region R (from 1) has 7R00 gRPC, 7R01 DNS, 7R02 admin; its cluster C (from 1)
    /// the same at 7RC0, and Envoy at 7RC3 and 7RC4; the demo itself is controlled at 7000.
    ///
    /// Fails with what to do when one is in use.
    pub(crate) fn fixed(layout: &Layout) -> anyhow::Result<Self> {
        let ports = Self::fixed_numbers(layout)?;
        ports.refuse_taken()?;
        Ok(ports)
    }

    fn fixed_numbers(layout: &Layout) -> anyhow::Result<Self> {
        let too_many = "fixed ports are for up to 9 regions of up to 9 clusters: use --ports auto";
        let mut regions = BTreeMap::new();
        for (r, (region, clusters)) in (1_u16..).zip(&layout.regions) {
            anyhow::ensure!(r <= 9 && clusters.len() <= 9, too_many);
            let base = 7000 + r * 100;
            let cluster = |(c, name): (u16, &ClusterName)| {
                let base = base + c * 10;
                let (envoy, envoy_admin) = (loopback(base + 3), loopback(base + 4));
                (name.clone(), ClusterPorts { agent: listen(base), envoy, envoy_admin })
            };
            let clusters = (1_u16..).zip(clusters.keys()).map(cluster).collect();
            regions.insert(region.clone(), RegionPorts { control_plane: listen(base), clusters });
        }
        Ok(Self { control: loopback(7000), regions, _claims: Arc::from([]) })
    }

    /// All of them, in no order.
    fn all(&self) -> Vec<SocketAddr> {
        let mut all = vec![self.control];
        for region in self.regions.values() {
            let agents = region.clusters.values().map(|cluster| &cluster.agent);
            for listen in agents.chain([&region.control_plane]) {
                all.extend([listen.grpc, listen.dns, listen.admin]);
            }
            all.extend(region.clusters.values().flat_map(|c| [c.envoy, c.envoy_admin]));
        }
        all
    }

    /// Told here for all of them, since only the demo knows that it can have others.
    fn refuse_taken(&self) -> anyhow::Result<()> {
        for address in self.all() {
            if let Err(error) = bind_both(address) {
                bail!(
                    "cannot listen on {address}: {error}; stop what uses the port (another demo?), or take free ports with --ports auto"
                );
            }
        }
        Ok(())
    }

    /// Free ones, out of blocks that this demo claims for as long as it lives: a part that is
    /// stopped finds its ports free when it is started again. Below those that the system gives
    /// to whoever asks for any port, which would be taken in between sooner or later.
    pub(crate) fn free(layout: &Layout) -> anyhow::Result<Self> {
        let mut free = FreePorts::default();
        let mut listen = || -> anyhow::Result<Listen> {
            Ok(Listen { grpc: free.next()?, dns: free.next()?, admin: free.next()? })
        };
        let control = listen()?.admin;
        let mut regions = BTreeMap::new();
        for (region, names) in &layout.regions {
            let control_plane = listen()?;
            let mut clusters = BTreeMap::new();
            for name in names.keys() {
                let agent = listen()?;
                let Listen { grpc: envoy, dns: envoy_admin, .. } = listen()?;
                clusters.insert(name.clone(), ClusterPorts { agent, envoy, envoy_admin });
            }
            regions.insert(region.clone(), RegionPorts { control_plane, clusters });
        }
        Ok(Self { control, regions, _claims: free.claims.into() })
    }
}

/// Ports of claimed blocks, one by one.
#[derive(Default)]
struct FreePorts {
    claims: Vec<TcpListener>,
    rest: Range<u16>,
}

impl FreePorts {
    /// The blocks, and how large one is.
    const BLOCKS: Range<u16> = 10_000..32_000;
    const BLOCK: u16 = 100;

    fn next(&mut self) -> anyhow::Result<SocketAddr> {
        loop {
            for port in self.rest.by_ref() {
                if bind_both(loopback(port)).is_ok() {
                    return Ok(loopback(port));
                }
            }
            self.claim()?;
        }
    }

    /// The first port of a block is its claim. Demos that start at once look from different
    /// places on.
    fn claim(&mut self) -> anyhow::Result<()> {
        let blocks: Vec<u16> = Self::BLOCKS.step_by(Self::BLOCK.into()).collect();
        let start = usize::try_from(std::process::id())? % blocks.len();
        for first in blocks[start..].iter().chain(&blocks[..start]) {
            if let Ok(claim) = TcpListener::bind(loopback(*first)) {
                self.claims.push(claim);
                self.rest = first + 1..first + Self::BLOCK;
                return Ok(());
            }
        }
        bail!("no block of {} ports is free on 127.0.0.1", Self::BLOCK)
    }
}

/// Whether a port can be had for TCP and UDP: DNS wants one number for both.
fn bind_both(address: SocketAddr) -> std::io::Result<()> {
    let _tcp = TcpListener::bind(address)?;
    UdpSocket::bind(address)?;
    Ok(())
}

fn listen(base: u16) -> Listen {
    Listen { grpc: loopback(base), dns: loopback(base + 1), admin: loopback(base + 2) }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_and_named_directories_make_a_layout() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        for path in ["us/a", "us/b", "eu/a", ".git/x"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let layout = Layout::from_arguments(&[root.to_owned()]).unwrap();
        let clusters: Vec<usize> = layout.regions.values().map(BTreeMap::len).collect();
        assert_eq!(clusters, [1, 2]);
        let named = Layout::from_arguments(&[format!("x/y={root}/us/a")]).unwrap();
        assert_eq!(named.regions.len(), 1);
    }

    #[test]
    fn what_makes_no_layout_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let check = |arguments: &[String], why: &str| {
            let error = format!("{:#}", Layout::from_arguments(arguments).unwrap_err());
            assert!(error.contains(why), "{error}");
        };
        check(&[root.to_owned()], "no cluster to show");
        check(&["/nowhere/at/all".to_owned()], "cannot be read");
        for above in ["chart/templates", "chart"] {
            std::fs::create_dir_all(dir.path().join("tree/chart/templates")).unwrap();
            let tree = dir.path().join("tree");
            let file = tree.join(above).parent().unwrap().join("values.yaml");
            std::fs::write(&file, "").unwrap();
            check(&[tree.display().to_string()], "for the manifests of one cluster name it");
            std::fs::remove_file(file).unwrap();
        }
        std::fs::remove_dir_all(dir.path().join("tree")).unwrap();
        check(&[format!("x={root}")], "expected REGION/CLUSTER=PATH");
        check(&[format!("X/y={root}")], "region name");
        // us + 1-a and us-1 + a are one id.
        check(&[format!("us/1-a={root}"), format!("us-1/a={root}")], "us-1-a is claimed by");
        check(&[format!("us/a={root}"), format!("us/a={root}")], "us-a is claimed by");
    }

    #[test]
    fn ports_are_distinct() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let named: Vec<String> =
            ["r/a", "r/b", "s/a"].iter().map(|name| format!("{name}={root}")).collect();
        let layout = Layout::from_arguments(&named).unwrap();
        for ports in [Ports::fixed_numbers(&layout).unwrap(), Ports::free(&layout).unwrap()] {
            let all = ports.all();
            let distinct: std::collections::BTreeSet<_> = all.iter().collect();
            assert_eq!(distinct.len(), all.len());
        }
        let (one, other) = (Ports::free(&layout).unwrap(), Ports::free(&layout).unwrap());
        let one = one.all();
        assert!(other.all().iter().all(|port| !one.contains(port)), "nothing held them yet");
        let fixed = Ports::fixed_numbers(&layout).unwrap();
        let r = &fixed.regions[&"r".parse().unwrap()];
        assert_eq!(r.clusters[&"b".parse().unwrap()].agent.dns.port(), 7121);
    }
}
