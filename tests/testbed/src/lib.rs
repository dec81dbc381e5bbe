//! What the tests need to run real components: finding them, starting and stopping them,
//! asking them things and waiting for them.
//!
//! Owns: the pins in `tests/versions.toml` and where they are cached ([`versions`]), the tools
//! ([`Tool`]), skipping ([`skip`], [`long`]), scratch directories ([`Scratch`]), processes
//! ([`Process`]), waiting ([`wait_for`]), clients ([`http`], [`dns`]) and the demo as a child
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

mod demo;
mod ports;
mod process;
mod scratch;
mod skips;
mod tool;
mod wait;

pub mod dns;
pub mod http;
pub mod versions;

pub use demo::{Cluster, Demo, Layout, Region};
pub use ports::free_ports;
pub use process::Process;
pub use scratch::Scratch;
pub use skips::{long, skip};
pub use tool::{Missing, Tool};
pub use wait::wait_for;
