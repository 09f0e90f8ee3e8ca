//! Allocation traces: read, unpacked and checked record by record before anything is built or run.
//!
//! *Format* (`xtask/traces/README.md`): little endian; 24 bytes of header, then 12 bytes an event. A file may be
//! plain or zstd-compressed, told apart by its first bytes and not by its name. The worker gets the plain bytes.
//!
//! *Why check everything here.* The worker replays records with raw pointers into tables of the header's size,
//! inside the measured loop. It must be able to trust them.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::cargo::Failure;

// By their paths, for the fuzzer includes this file from elsewhere.
#[cfg(test)]
#[path = "trace/tests.rs"]
mod tests;
#[path = "trace/zstd.rs"]
mod zstd;

const MAGIC: [u8; 4] = *b"ATRC";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 12;

/// A checked trace, ready for a worker.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// What the rows call it: the file's name up to the first dot.
    pub(crate) name: String,
    /// The uncompressed copy under the target directory.
    pub(crate) plain: PathBuf,
    /// How many threads the recorded program had.
    pub(crate) threads: u32,
}

/// Checks the trace at `path` and leaves its plain bytes as `NAME.atrc` in `directory`. No such file is left there
/// when the trace turns out to be bad.
pub(crate) fn prepare(path: &Path, directory: &Path) -> Result<Trace, Failure> {
    let about = |what: &dyn fmt::Display| Failure::Usage(format!("{}: {what}", path.display()));
    let source = open(path).map_err(|fault| about(&fault))?;
    let name = name_of(path);
    let plain = directory.join(format!("{name}.atrc"));
    let draft = directory.join(format!(".{name}.atrc.{}", std::process::id()));
    let cannot_write =
        |error: io::Error| Failure::Run(format!("cannot write {}: {error}", draft.display()));
    fs::create_dir_all(directory).map_err(cannot_write)?;
    let mut sink = BufWriter::new(File::create(&draft).map_err(cannot_write)?);
    let header = match copy_checked(source, &mut sink) {
        Ok(header) => header,
        Err(stop) => {
            drop(sink);
            // The draft is ours; that it cannot be removed is not the user's first worry.
            let _ = fs::remove_file(&draft);
            return Err(match stop {
                Stop::Fault(fault) => about(&fault),
                Stop::Sink(error) => cannot_write(error),
            });
        }
    };
    drop(sink);
    fs::rename(&draft, &plain).map_err(cannot_write)?;
    Ok(Trace {
        name,
        plain,
        threads: header.threads,
    })
}

fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name = file.split('.').find(|part| !part.is_empty());
    name.unwrap_or("trace").to_owned()
}

/// What is wrong with a trace, and where. Records are counted from 0; offsets are into the plain bytes.
#[derive(Debug)]
enum Fault {
    File(String),
    Header(String),
    Record(u64, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(what) => f.write_str(what),
            Self::Header(what) => write!(f, "header: {what}"),
            Self::Record(index, what) => {
                let offset = HEADER_BYTES as u64 + index * RECORD_BYTES as u64;
                write!(
                    f,
                    "record {index} (counted from 0, byte offset {offset}): {what}"
                )
            }
        }
    }
}

/// Why the copy stopped: the trace is at fault, or the disk.
#[derive(Debug)]
enum Stop {
    Fault(Fault),
    Sink(io::Error),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn open(path: &Path) -> Result<Box<dyn Read>, Fault> {
    let unreadable = |error: io::Error| Fault::File(format!("cannot read the trace: {error}"));
    if path.is_dir() {
        return Err(Fault::File("is a directory, not a trace".to_owned()));
    }
    let file = File::open(path).map_err(unreadable)?;
    unpack(BufReader::with_capacity(1 << 16, file)).map_err(unreadable)
}

/// Puts a decoder in front of compressed input.
fn unpack(mut file: impl BufRead + 'static) -> io::Result<Box<dyn Read>> {
    let first = file.fill_buf()?;
    Ok(if zstd::starts_frame(first) {
        Box::new(zstd::Frames::new(file))
    } else {
        Box::new(file)
    })
}

/// Reads a trace from memory.
#[cfg(any(test, fuzzing))]
fn read(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    let source = unpack(io::Cursor::new(bytes)).map_err(|error| error.to_string())?;
    match copy_checked(source, &mut plain) {
        Ok(_) => Ok(plain),
        Err(Stop::Fault(fault)) => Err(fault.to_string()),
        Err(Stop::Sink(error)) => panic!("a vector took no bytes: {error}"),
    }
}

/// For any bytes: a refusal is one line, and what passes is a trace that passes unchanged.
#[cfg(any(test, fuzzing))]
pub(crate) fn accepts_only_what_it_passes_on(bytes: &[u8]) {
    match read(bytes.to_vec()) {
        Err(complaint) => assert!(
            !complaint.is_empty() && !complaint.contains('\n'),
            "{complaint}"
        ),
        Ok(plain) => {
            assert!(plain.starts_with(&MAGIC));
            assert_eq!(read(plain.clone()), Ok(plain));
        }
    }
}

struct Header {
    objects: u32,
    threads: u32,
    events: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Fault> {
        let wrong = |what: String| Err(Fault::Header(what));
        if bytes[..4] != MAGIC {
            return wrong("not an allocation trace (no ATRC at its start)".to_owned());
        }
        let version = u32_at(bytes, 4);
        let header = Self {
            objects: u32_at(bytes, 8),
            threads: u32_at(bytes, 12),
            events: u64::from(u32_at(bytes, 16)) | u64::from(u32_at(bytes, 20)) << 32,
        };
        let Self {
            objects,
            threads,
            events,
        } = header;
        if version != VERSION {
            return wrong(format!("version {version}, only {VERSION} is known"));
        }
        if events == 0 || objects == 0 {
            return wrong(format!(
                "{objects} objects and {events} events: nothing to replay"
            ));
        }
        if u64::from(objects) > events {
            return wrong(format!(
                "{objects} objects in {events} events: each takes at least one"
            ));
        }
        if events > 2 * u64::from(objects) {
            return wrong(format!(
                "{events} events for {objects} objects: each takes at most two"
            ));
        }
        if threads == 0 || threads > 1 << 16 {
            return wrong(format!("{threads} threads, must be 1 to 65536"));
        }
        Ok(header)
    }
}

/// What has become of each object: two bits each. Memory is taken as numbers turn up, so that a wild count in a
/// header costs nothing.
struct Lives {
    words: Vec<u64>,
    born: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Unborn = 0,
    Live = 1,
    Freed = 2,
}

impl Lives {
    fn get(&self, object: u32) -> Life {
        let word = self.words.get(object as usize / 32).copied().unwrap_or(0);
        match word >> (object % 32 * 2) & 3 {
            0 => Life::Unborn,
            1 => Life::Live,
            _ => Life::Freed,
        }
    }

    fn set(&mut self, object: u32, life: Life) {
        let index = object as usize / 32;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        let shift = object % 32 * 2;
        let word = &mut self.words[index];
        *word = *word & !(3 << shift) | (life as u64) << shift;
    }

    /// Lets one event happen, if it may.
    fn event(&mut self, object: u32, size: u32) -> Result<(), String> {
        match (self.get(object), size) {
            (Life::Unborn, 0) => Err(format!("frees object {object}, which was never allocated")),
            (Life::Freed, 0) => Err(format!("frees object {object} a second time")),
            (Life::Live, 0) => {
                self.set(object, Life::Freed);
                Ok(())
            }
            (Life::Unborn, _) => {
                self.born += 1;
                self.set(object, Life::Live);
                Ok(())
            }
            (Life::Live, _) => Err(format!("allocates object {object}, which is live")),
            (Life::Freed, _) => Err(format!(
                "allocates object {object} again; a number is used once"
            )),
        }
    }
}

/// Copies a whole trace and checks all of it on the way.
fn copy_checked(mut source: impl Read, sink: &mut impl Write) -> Result<Header, Stop> {
    let mut bytes = [0; HEADER_BYTES];
    let got = fill(&mut source, &mut bytes).map_err(|error| Fault::Header(error.to_string()))?;
    if got < HEADER_BYTES {
        let what = match &bytes[..got] {
            [] => "the file is empty".to_owned(),
            start if start.starts_with(&MAGIC) => format!("ends after {got} of 24 bytes"),
            _ => "not an allocation trace (no ATRC at its start)".to_owned(),
        };
        return Err(Fault::Header(what).into());
    }
    let header = Header::parse(&bytes)?;
    sink.write_all(&bytes).map_err(Stop::Sink)?;

    let mut lives = Lives {
        words: Vec::new(),
        born: 0,
    };
    let mut bytes = [0; RECORD_BYTES];
    for index in 0..header.events {
        let wrong = |what: String| Stop::Fault(Fault::Record(index, what));
        match fill(&mut source, &mut bytes).map_err(|error| wrong(error.to_string()))? {
            RECORD_BYTES => {}
            0 => {
                return Err(wrong(format!(
                    "missing: the file ends after {index} of {} records",
                    header.events
                )));
            }
            got => return Err(wrong(format!("truncated: {got} of 12 bytes"))),
        }
        check_record(&header, &mut lives, &bytes).map_err(wrong)?;
        sink.write_all(&bytes).map_err(Stop::Sink)?;
    }
    let past_the_end = |what: String| Stop::Fault(Fault::Record(header.events, what));
    match fill(&mut source, &mut bytes).map_err(|error| past_the_end(error.to_string()))? {
        0 => {}
        _ => {
            return Err(past_the_end(format!(
                "bytes after the last of {} records",
                header.events
            )));
        }
    }
    if lives.born != u64::from(header.objects) {
        return Err(Fault::Header(format!(
            "{} objects, but the records allocate {}",
            header.objects, lives.born
        ))
        .into());
    }
    sink.flush().map_err(Stop::Sink)?;
    Ok(header)
}

fn check_record(
    header: &Header,
    lives: &mut Lives,
    bytes: &[u8; RECORD_BYTES],
) -> Result<(), String> {
    let object = u32_at(bytes, 0);
    let size = u32_at(bytes, 4);
    let thread = u16::from_le_bytes([bytes[8], bytes[9]]);
    let zero = u16::from_le_bytes([bytes[10], bytes[11]]);
    if object >= header.objects {
        return Err(format!(
            "object {object}, but the header has {}",
            header.objects
        ));
    }
    if u32::from(thread) >= header.threads {
        return Err(format!(
            "thread {thread}, but the header has {}",
            header.threads
        ));
    }
    if zero != 0 {
        return Err(format!("its last field is {zero}, not zero"));
    }
    lives.event(object, size)
}

/// Reads until `buffer` is full or the source ends; returns how much there was.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
