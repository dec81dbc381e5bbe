//! The layout of an image on disk; see `cache.proto`.
//!
//! Writing streams: no more than one record is held beside the replica. Reading first goes over
//! the whole file for its checksum, then over it again for its content, so that nothing is decoded
//! that is not what was written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::image::{Image, Snapshot};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::proto::cache as wire;
use crate::proto::cache::part::Part as Content;
use crate::replica::{Entry, Holding};

/// Of the layout. What readers may leave out needs no new one.
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"TMBLIMG\n";
/// Magic, version, length of the header.
const HEAD: u64 = 16;
/// Length and SHA-256.
const TAIL: u64 = 40;
const MAX_HEADER: u32 = 64 << 10;
/// Two values and a key, with room: values are at most 1 MiB by their rules.
const MAX_PART: u32 = 16 << 20;
/// Few system calls and long runs to hash, little memory.
const BUFFER: usize = 256 << 10;

/// Why an image is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The disk's word.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It does not begin like one.
    #[error("is not an image of the disk cache")]
    NotAnImage,
    /// Written by a later version.
    #[error(
        "has layout {version}, this version reads up to {FORMAT_VERSION}: it is left for a newer one"
    )]
    Newer {
        /// Of the layout.
        version: u32,
    },
    /// More than may be loaded.
    #[error("takes {size} bytes, at most {max} are read")]
    TooLarge {
        /// What it takes.
        size: u64,
        /// What it may.
        max: u64,
    },
    /// It ends before its end, or goes on after it.
    #[error("is not as long as it was written ({size} bytes are there)")]
    Torn {
        /// What is there.
        size: u64,
    },
    /// Bytes are not those that were written.
    #[error("is damaged: its checksum does not match")]
    Damaged,
    /// Of another process.
    #[error("belongs to {found}, this is {wanted}: it is set aside")]
    Foreign {
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// Whole, but not what this version writes.
    #[error("does not make sense: {0}")]
    Malformed(String),
    /// Its content may be what ends the process.
    #[error("{starts} starts with it ended too soon, so it is not used")]
    Unproven {
        /// How many.
        starts: u32,
    },
    /// All images are, and one is used all the same.
    #[error(
        "starts end too soon with every image: the newest is tried again. If it is an image that \
         ends them, remove this directory to start without"
    )]
    AllUnproven,
    /// A start that ends too soon would not be noticed.
    #[error("starts cannot be counted: {0}")]
    NotCounted(String),
}

impl Problem {
    /// Whether another program could read it.
    pub(super) fn is_somebody_elses(&self) -> bool {
        matches!(self, Self::Newer { .. } | Self::Foreign { .. })
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

pub(super) fn malformed(what: impl Into<String>) -> Problem {
    Problem::Malformed(what.into())
}

/// The same, of what another parser said.
pub(super) fn misread(error: &dyn std::error::Error) -> Problem {
    Problem::Malformed(error.to_string())
}

/// What an image says before its content.
pub(super) fn header(
    generation: u64,
    now: Timestamp,
    belongs_to: &str,
    snapshot: &Snapshot,
) -> wire::Header {
    wire::Header {
        generation,
        saved_unix_ms: now.as_millisecond(),
        belongs_to: belongs_to.to_owned(),
        position: snapshot.replica.position,
    }
}

/// Writes a whole image.
pub(super) fn write(
    out: &mut dyn Write,
    header: &wire::Header,
    snapshot: &Snapshot,
    heard: &BTreeMap<Owner, Timestamp>,
    now: Timestamp,
) -> io::Result<()> {
    let out = Hashing { out, hash: Sha256::new(), written: 0 };
    let mut out = BufWriter::with_capacity(BUFFER, out);
    out.write_all(&MAGIC)?;
    out.write_all(&FORMAT_VERSION.to_le_bytes())?;
    let mut parts = Parts { out: &mut out, buffer: Vec::new() };
    parts.message(header, MAX_HEADER)?;
    for (owner, holding) in snapshot.replica.owners() {
        let heard = heard_at(holding, now).or_else(|| heard.get(owner).copied());
        parts.part(Content::Owner(owner_part(owner, holding, heard)))?;
        for (key, entry) in holding.records().filter(|(key, _)| key.kind != Kind::Beacon) {
            parts.part(Content::Record(record_part(key, entry)))?;
        }
    }
    for (name, value) in &snapshot.extra {
        let (name, value) = (name.clone(), value.clone());
        parts.part(Content::Extra(wire::Extra { name, value }))?;
    }
    out.flush()?;
    out.into_parts().0.finish()
}

fn heard_at(holding: &Holding, now: Timestamp) -> Option<Timestamp> {
    let age = Instant::now().saturating_duration_since(holding.beacon_changed()?);
    now.checked_sub(age).ok()
}

fn owner_part(owner: &Owner, holding: &Holding, heard: Option<Timestamp>) -> wire::Owner {
    let complete = holding.complete().iter().map(|(kind, epoch)| wire::Complete {
        kind: kind.to_string(),
        epoch_id: epoch.id.clone(),
        epoch_count: epoch.count,
    });
    wire::Owner {
        owner: owner.to_string(),
        heard_unix_ms: heard.map(Timestamp::as_millisecond),
        complete: complete.collect(),
        newest: holding.newest().map(|newest| wire::Newest {
            epoch_id: newest.epoch.id.clone(),
            epoch_count: newest.epoch.count,
            sequence: newest.sequence,
        }),
    }
}

fn record_part(key: &Key, entry: &Entry) -> wire::Record {
    wire::Record { key: key.to_string(), value: entry.value.clone(), good: entry.good.clone() }
}

/// Messages behind their lengths, through one buffer.
struct Parts<'a, W> {
    out: &'a mut W,
    buffer: Vec<u8>,
}

impl<W: Write> Parts<'_, W> {
    fn part(&mut self, content: Content) -> io::Result<()> {
        self.message(&wire::Part { part: Some(content) }, MAX_PART)
    }

    fn message(&mut self, message: &impl prost::Message, max: u32) -> io::Result<()> {
        self.buffer.clear();
        message.encode(&mut self.buffer).map_err(io::Error::other)?;
        let length = u32::try_from(self.buffer.len()).ok().filter(|length| *length <= max);
        // A reader would refuse all of it.
        let length = length.ok_or(io::ErrorKind::FileTooLarge)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.buffer)
    }
}

struct Hashing<'a> {
    out: &'a mut dyn Write,
    hash: Sha256,
    written: u64,
}

impl Hashing<'_> {
    fn finish(mut self) -> io::Result<()> {
        let length = self.written.to_le_bytes();
        self.write_all(&length)?;
        self.out.write_all(&self.hash.finalize())
    }
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// An image whose checksum is right, and which is ours; its content was not looked at.
#[derive(Debug)]
pub(super) struct Verified {
    parts: BufReader<io::Take<File>>,
    header: wire::Header,
}

/// Goes over the file at `path`; `None` if there is none.
pub(super) fn verify(path: &Path, wanted: &str, max: u64) -> Result<Option<Verified>, Problem> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        // To open a pipe would wait for its other end.
        Ok(_) => return Err(Problem::NotAnImage),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > max {
        return Err(Problem::TooLarge { size, max });
    }
    check_head(&mut file, size)?;
    file.seek(SeekFrom::Start(0))?;
    check_sum(&mut file, size)?;
    file.seek(SeekFrom::Start(HEAD - 4))?;
    let mut parts = BufReader::with_capacity(BUFFER, file.take(size - TAIL - (HEAD - 4)));
    let header = next(&mut parts, MAX_HEADER, &mut Vec::new())?;
    let header: wire::Header = header.ok_or_else(|| malformed("there is no header"))?;
    if header.belongs_to != wanted {
        let found = header.belongs_to.chars().take(300).collect();
        return Err(Problem::Foreign { found, wanted: wanted.to_owned() });
    }
    Ok(Some(Verified { parts, header }))
}

fn check_head(file: &mut File, size: u64) -> Result<(), Problem> {
    let (mut magic, mut version) = ([0; 8], [0; 4]);
    if size < HEAD + TAIL {
        return Err(Problem::Torn { size });
    }
    file.read_exact(&mut magic)?;
    file.read_exact(&mut version)?;
    match u32::from_le_bytes(version) {
        _ if magic != MAGIC => Err(Problem::NotAnImage),
        0 => Err(Problem::Damaged),
        version if version > FORMAT_VERSION => Err(Problem::Newer { version }),
        _ => Ok(()),
    }
}

fn check_sum(file: &mut File, size: u64) -> Result<(), Problem> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut left = size - TAIL;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        file.read_exact(&mut buffer[..wanted])?;
        hash.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    let (mut length, mut sum) = ([0; 8], [0; 32]);
    file.read_exact(&mut length)?;
    file.read_exact(&mut sum)?;
    if u64::from_le_bytes(length) != size - TAIL {
        return Err(Problem::Torn { size });
    }
    hash.update(length);
    if hash.finalize()[..] != sum {
        return Err(Problem::Damaged);
    }
    Ok(())
}

/// The next message, or `None` at the end. Memory grows with what is read, not with what is said.
fn next<M: prost::Message + Default>(
    parts: &mut impl Read,
    max: u32,
    buffer: &mut Vec<u8>,
) -> Result<Option<M>, Problem> {
    buffer.clear();
    parts.take(4).read_to_end(buffer)?;
    if buffer.is_empty() {
        return Ok(None);
    }
    let length: [u8; 4] = buffer[..].try_into().map_err(|_| malformed("a length is cut off"))?;
    let length = u32::from_le_bytes(length);
    if length > max {
        return Err(malformed(format!("a part of {length} bytes, at most {max} are possible")));
    }
    buffer.clear();
    parts.take(u64::from(length)).read_to_end(buffer)?;
    if buffer.len() as u64 != u64::from(length) {
        return Err(malformed("a part is cut off"));
    }
    M::decode(&buffer[..]).map(Some).map_err(|error| misread(&error))
}

impl Verified {
    pub(super) fn generation(&self) -> u64 {
        self.header.generation
    }

    /// Reads all of it.
    pub(super) fn read(mut self) -> Result<Image, Problem> {
        let saved_at = Timestamp::from_millisecond(self.header.saved_unix_ms);
        let saved_at = saved_at.map_err(|error| misread(&error))?;
        let mut image = Image::new(self.header.generation, saved_at, self.header.position);
        let mut owner = None;
        let mut buffer = Vec::new();
        while let Some(part) = next::<wire::Part>(&mut self.parts, MAX_PART, &mut buffer)? {
            match part.part {
                // Of a newer version, that one like us may leave out.
                None => {}
                Some(Content::Owner(part)) => owner = Some(image.add_owner(part)?),
                Some(Content::Record(part)) => {
                    let owner = owner.as_ref().ok_or_else(|| malformed("a record of nobody"))?;
                    image.add_record(owner, part)?;
                }
                Some(Content::Extra(part)) => _ = image.extra.insert(part.name, part.value),
            }
        }
        Ok(image)
    }
}
