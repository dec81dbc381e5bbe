//! Names, answers and the wire, each against a small mesh written as text.

#[cfg(test)]
mod bytes;
#[cfg(test)]
mod clusterset;
#[cfg(test)]
mod degraded;
#[cfg(test)]
mod dig;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod headless;
#[cfg(test)]
mod incomplete;
#[cfg(test)]
mod mesh;
#[cfg(test)]
mod nearest;
#[cfg(test)]
mod negative;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod probes;
#[cfg(test)]
mod wire;
