//! What the tests need to run real components: finding them, starting and stopping them,
//! asking them things and waiting for them.
//!
//! Owns: the pins in `tests/versions.toml` and where they are cached ([`versions`]), the tools
//! ([`Tool`]), skipping ([`skip`], [`long`]), scratch directories ([`Scratch`]), processes
//! ([`Process`]), waiting ([`wait_for`]), clients ([`http`], [`dns`]), clusters of etcd ([`etcd`]),
//! regions in network namespaces ([`netns`]), links that fail ([`proxy`]) and the demo as a child
//! process ([`Demo`]).
//!
//! Promises: whatever is started here ends with the test, also when the test fails, and its
//! logs are part of a failed test's output. Nothing here waits without a deadline or tries
//! again after a failure.
//!
//! Leaves to others: fetching the components (`cargo xtask setup`) and every judgement about
//! what the project's own servers ought to say. It knows no crate of the project, so that any
//! of them can use it as a dev-dependency, and no async runtime, so that tests read top down.
//!
//! Turned down: a general HTTP client crate. One GET over a plain connection is all that the
//! tests send, and they must control the bytes of the request line.
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//! use tombolo_testbed::{Demo, Scratch, Tool, dns::Question, http, skip, wait_for};
//!
//! # fn main() -> anyhow::Result<()> {
//! let envoy = match Tool::Envoy.path() {
//!     Ok(envoy) => envoy,
//!     Err(missing) => return Ok(skip("e2e_demo::fails_over", missing)),
//! };
//! let scratch = Scratch::new("fails-over")?;
//! let binary = Path::new("env!(\"CARGO_BIN_EXE_tombolo\") in a test of that package");
//! let demo = Demo::start(binary, scratch.path(), Some(&envoy), &[])?;
//! let cluster = demo.cluster("us-west1", "a")?;
//! let name = "web.shop.svc.clusterset.local";
//! assert_eq!(Question::udp(cluster.dns, name, "A").dig(&[])?.status, "NOERROR");
//!
//! demo.control("stop backend web")?;
//! let through = cluster.envoy.expect("it was started with one");
//! wait_for("the other region answers", Duration::from_secs(10), || {
//!     let response = http::get_as(through, name, "/")?;
//!     anyhow::ensure!(response.text().contains("europe-west4"), "got {response:?}");
//!     Ok(())
//! })?;
//! demo.interrupt()
//! # }
//! ```

mod demo;
mod ports;
mod process;
mod scratch;
mod skips;
mod tool;
mod wait;

pub mod dns;
pub mod etcd;
pub mod http;
pub mod logs;
pub mod netns;
pub mod proxy;
pub mod versions;

pub use demo::{Cluster, Demo, Layout, Region};
pub use ports::{KeptPorts, free_ports};
pub use process::Process;
pub use scratch::Scratch;
pub use skips::{long, skip};
pub use tool::{Missing, Tool};
pub use wait::wait_for;
