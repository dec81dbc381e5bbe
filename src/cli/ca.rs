//! `tombolo ca`: certificates as files, for meshes of separate processes.
//!
//! For trials and tests: keys are files here. The root belongs on a machine that is off.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use tombolo_ca::bundle::Bundle;
use tombolo_ca::identity::{Identity, Origin};
use tombolo_ca::material::directory::issue_files;
use tombolo_ca::region::{Grant, RegionCa};
use tombolo_ca::root::{MeshRoot, RootCertificate};
use tombolo_federation::names::{
    ClusterId, ClusterName, MeshDomain, NamespaceName, ObjectName, RegionName,
};

/// Of `ca`.
#[derive(Debug, Args)]
#[command(after_help = "Example, a mesh of two regions from nothing:
  tombolo ca init   --mesh demo.example --root root
  tombolo ca region --mesh demo.example --root root --region us --out us/ca
  tombolo ca region --mesh demo.example --root root --region eu --out eu/ca
  tombolo ca issue  --mesh demo.example --root root --ca us/ca --region us --trust eu/ca control-plane --out us
  tombolo ca issue  --mesh demo.example --root root --ca us/ca --region us --trust eu/ca agent alpha --out alpha")]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    verb: CaVerb,
}

#[derive(Debug, Subcommand)]
enum CaVerb {
    /// Make a mesh's root of trust.
    Init {
        /// The mesh's domain.
        #[arg(long)]
        mesh: MeshDomain,
        /// Where to keep it; must not hold one yet.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
    },
    /// Make a region's CA and admit it to the mesh.
    Region {
        /// The mesh's domain.
        #[arg(long)]
        mesh: MeshDomain,
        /// The mesh's root.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// The region.
        #[arg(long)]
        region: RegionName,
        /// Counts the region's CAs; a later one replaces the earlier.
        #[arg(long, default_value_t = 1)]
        generation: u64,
        /// Where to keep it; `ca/` in the identity directory of its control plane.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make the identity directory of a process.
    Issue(IssueArgs),
}

#[derive(Debug, Args)]
struct IssueArgs {
    /// The mesh's domain.
    #[arg(long, global = true)]
    mesh: Option<MeshDomain>,
    /// The mesh root's directory, of which only the certificate is read.
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// The issuing region's CA.
    #[arg(long, value_name = "DIR", global = true)]
    ca: Option<PathBuf>,
    /// The issuing region.
    #[arg(long, global = true)]
    region: Option<RegionName>,
    /// CA directories of other regions to trust; repeatable.
    #[arg(long, value_name = "DIR", global = true)]
    trust: Vec<PathBuf>,
    /// The identity directory to write.
    #[arg(long, value_name = "DIR", global = true)]
    out: Option<PathBuf>,
    #[command(subcommand)]
    who: Who,
}

#[derive(Debug, Subcommand)]
enum Who {
    /// The region's control plane.
    ControlPlane,
    /// The agent of one of its clusters.
    Agent {
        /// The cluster's name within the region.
        cluster: ClusterName,
    },
    /// A workload, such as an Envoy that asks for xDS.
    Workload {
        /// The cluster's name within the region.
        cluster: ClusterName,
        /// Its namespace.
        namespace: NamespaceName,
        /// Its service account.
        service_account: ObjectName,
    },
}

/// Carries out `tombolo ca ...`.
pub(crate) fn run(args: CaArgs) -> anyhow::Result<()> {
    match args.verb {
        CaVerb::Init { mesh, root } => {
            refuse_existing(&root)?;
            Ok(MeshRoot::create(&mesh, Timestamp::now())?.save(&root)?)
        }
        CaVerb::Region { mesh, root, region, generation, out } => {
            refuse_existing(&out)?;
            let root = MeshRoot::load(&root, &mesh)?;
            Ok(RegionCa::create(&root, &region, generation, Timestamp::now())?.save(&out)?)
        }
        CaVerb::Issue(args) => issue(args),
    }
}

fn issue(args: IssueArgs) -> anyhow::Result<()> {
    let mesh = args.mesh.context("--mesh is missing")?;
    let region = args.region.context("--region is missing")?;
    let root = args.root.context("--root is missing")?;
    let ca_dir = args.ca.context("--ca is missing")?;
    let out = args.out.context("--out is missing")?;
    let root = root_certificate(&root, &mesh)?;
    let ca = RegionCa::load(&ca_dir, &region, &mesh)?;
    let mut bundles = vec![ca.bundle().clone()];
    for dir in &args.trust {
        bundles.push(bundle_in(dir)?);
    }
    let grant = grant(args.who, &region)?;
    issue_files(&out, &ca, &grant, &bundles, &[root], Timestamp::now())?;
    Ok(())
}

fn grant(who: Who, region: &RegionName) -> anyhow::Result<Grant> {
    let region = region.clone();
    Ok(match who {
        Who::ControlPlane => Grant::new(Identity::ControlPlane { region }),
        Who::Agent { cluster } => {
            let cluster = ClusterId::of(&region, &cluster)?;
            Grant::new(Identity::Agent { region, cluster })
        }
        Who::Workload { cluster, namespace, service_account } => {
            let cluster = ClusterId::of(&region, &cluster)?;
            let mut grant = Grant::new(Identity::Workload { region, namespace, service_account });
            grant.origin = Some(Origin { cluster, pod: None });
            grant
        }
    })
}

/// An authority is never made over another: what it has issued would be lost.
fn refuse_existing(dir: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        !dir.exists(),
        "{} exists already: name another directory, or remove it if nothing that it issued is in use",
        dir.display()
    );
    Ok(())
}

fn root_certificate(dir: &Path, mesh: &MeshDomain) -> anyhow::Result<RootCertificate> {
    let path = dir.join(tombolo_ca::root::CERTIFICATE_FILE);
    let pem = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let root = RootCertificate::from_pem(&pem).with_context(|| path.display().to_string())?;
    anyhow::ensure!(
        root.mesh() == mesh,
        "{} is the root of {}, not of {mesh}",
        path.display(),
        root.mesh()
    );
    Ok(root)
}

fn bundle_in(dir: &Path) -> anyhow::Result<Bundle> {
    let path = dir.join(tombolo_ca::region::BUNDLE_FILE);
    let pem = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Bundle::from_pem(&pem).with_context(|| path.display().to_string())
}
