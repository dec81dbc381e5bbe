//! DNS of the clusterset zone: a catalog in, answers out.
//!
//! Owns what is said about names in one zone, `clusterset.local` by default, and the sockets it is
//! said on. [`answer`] decides, as a pure function of a catalog, a [`View`] and a question;
//! [`server`] carries questions and answers over UDP and TCP; [`explain`] says why an answer is
//! what it is, for people.
//!
//! Promises: a name is denied (NXDOMAIN, or an empty answer for lack of endpoints) only by a
//! catalog that is complete; until then it is SERVFAIL, which resolvers ask again about and do not
//! keep. Every negative answer carries the SOA. No byte that a client sends ends the server.
//!
//! Leaves to others: what the catalog holds (`tombolo-federation`), recursion and forwarding (the
//! cluster's own DNS), `cluster.local` (never ours).

pub mod answer;
pub mod explain;
pub mod server;
mod view;
mod zone;

pub use view::View;
pub use zone::{InvalidZone, Zone};
