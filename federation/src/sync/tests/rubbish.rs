//! What nobody should send.
use super::*;
