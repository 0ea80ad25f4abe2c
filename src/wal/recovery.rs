//! Opening a log: find the segments, replay them in order, judge the place where they end, make the disk agree with
//! what was replayed, begin a new segment.
//!
//! 1. Every segment is opened and its header checked. Nothing changes on disk before 5.
//! 2. The segments must form a chain: each begins with a record that names the one before. A gap is damage.
//! 3. Records are handed to the visitor, segment by segment, as long as each ends where the next says that it does. A
//!    segment that names a next one must be followed by it, or by what an earlier opening put in its place.
//! 4. Where that ends, [`super::tail`] tells a torn tail from damage, which is refused.
//! 5. The next segment is made, with a number above all that were ever used: positions of lost records never come back.
//! 6. Files that were not finished are removed, and the segments beyond the end, newest first, each durably before the
//!    next.
//! 7. What was replayed is synced: it has been shown to somebody now.
//! 8. The new segment begins: a record, synced, says where the one before ends. From then on all that was replayed is
//!    vouched for.
//! 9. The last segment replayed is cut there. Only to give back the space: what its end is has been said.
//!
//! **A second crash** at any point leaves a log that opens to the same records. After 5: one more empty segment,
//! removed like the others. Within 6: fewer of the segments that are to go, without a gap. Before 8 is synced, the new
//! segment counts as empty; after it, the end of the old one is stated and durable, cut or not. Recovered segments are
//! never appended to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::callbacks::Callbacks;
use super::commit::{Turn, Turnstile};
use super::error::{Error, Result};
use super::files::salt;
use super::owners::Owners;
use super::record::{Begin, KIND_BEGIN, KIND_MARK, KIND_NEXT, RecordHeader};
use super::segment::{
    SEGMENT_HEADER_BYTES, Segment, TEMPORARY_SUFFIX, segment_name, segment_number,
};
use super::state::{Shared, State, segment_bytes_for};
use super::status::Counts;
use super::sync::{Condvar, Mutex};
use super::tail::{Stop, judge, promise};
use super::window::Window;
use super::{Kind, Level, Options, Owner, Position, RecordRef};
use crate::util::fs::FileSystem;

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records that were handed to the visitor.
    pub records: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// Segments that were replayed.
    pub segments: usize,
    /// Whose they are, by owner.
    pub owners: Vec<OwnerSummary>,
    /// What was cut, if the log did not end cleanly.
    pub torn: Option<TornTail>,
}

/// What one owner has in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerSummary {
    /// Whose records.
    pub owner: Owner,
    /// How many.
    pub records: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// The first.
    pub first: Position,
    /// The last.
    pub last: Position,
}

/// The end of a log that a crash has torn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment that was cut.
    pub file: PathBuf,
    /// Where.
    pub offset: u64,
    /// Why there is no record.
    pub reason: String,
}

/// A segment as it was found.
struct Found {
    segment: Segment,
    /// What its first record says, or why there is none: then it was never used, or its beginning is torn.
    begin: Result<Begin, String>,
}

/// What is in the directory.
struct Files {
    /// By number.
    found: Vec<Found>,
    /// Names of files that were not finished.
    temporary: Vec<String>,
}

impl Files {
    /// The highest number that was ever used.
    fn newest(&self) -> u32 {
        let temporary = self.temporary.iter().filter_map(|name| number_held(name));
        let found = self.found.iter().map(|found| found.segment.number);
        found.chain(temporary).max().unwrap_or(0)
    }
}

/// Where replay came to.
#[derive(Debug, Default)]
struct Replayed {
    /// How many segments have records, and where the last of these ends.
    kept: usize,
    end: u32,
    stop: Stop,
    /// Nothing but zeros and segments without records beyond the stop.
    clean: bool,
    /// The highest place that a record vouches for.
    vouched: Position,
    summaries: BTreeMap<Owner, OwnerSummary>,
    last: Position,
    /// The segment that the last record says the log goes on in.
    next: Option<u32>,
}

/// Opens the log in `dir`, which is locked.
pub(super) fn recover<E: From<Error>>(
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    options: Options,
    mut visit: impl FnMut(RecordRef<'_>) -> Result<(), E>,
) -> Result<(Shared, Recovery), E> {
    let (files, replayed) = read(&*fs, &dir, &mut visit)?;
    Ok(repair(fs, dir, options, files, &replayed)?)
}

/// Reads and judges the log in `dir` as an opening would, and changes nothing.
pub(super) fn inspect<E: From<Error>>(
    fs: &dyn FileSystem,
    dir: &Path,
    mut visit: impl FnMut(RecordRef<'_>) -> Result<(), E>,
) -> Result<Recovery, E> {
    let (files, replayed) = read(fs, dir, &mut visit)?;
    Ok(replayed.report(&files.found))
}

/// Steps 1 to 4.
fn read<E: From<Error>>(
    fs: &dyn FileSystem,
    dir: &Path,
    visit: &mut impl FnMut(RecordRef<'_>) -> Result<(), E>,
) -> Result<(Files, Replayed), E> {
    let files = find_files(fs, dir)?;
    let found = &files.found;
    check_chain(found)?;
    let replayed = replay(found, visit)?;
    check_next(dir, found, &files.temporary, &replayed)?;
    let beyond = found.iter().map(|found| &found.segment);
    let beyond: Vec<&Segment> =
        beyond.filter(|segment| segment.number >= replayed.stop.position.segment).collect();
    judge(&beyond, &replayed.stop)?;
    Ok((files, replayed))
}

/// Step 1.
fn find_files(fs: &dyn FileSystem, dir: &Path) -> Result<Files> {
    let names = fs.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let mut found = BTreeMap::new();
    let mut temporary = Vec::new();
    for name in names {
        let path = dir.join(&name);
        if name.ends_with(TEMPORARY_SUFFIX) {
            temporary.push(name);
        } else if let Some(number) = segment_number(&name) {
            let segment = Segment::open(fs, &path, number)?;
            let begin = read_begin(&segment)?;
            found.insert(number, Found { segment, begin });
        }
    }
    Ok(Files { found: found.into_values().collect(), temporary })
}

fn read_begin(segment: &Segment) -> Result<Result<Begin, String>> {
    let mut window = Window::new(segment);
    let begin = match window.record(SEGMENT_HEADER_BYTES)? {
        Ok((header, body)) if header.kind == KIND_BEGIN => Begin::decode(body),
        Ok(_) => None,
        Err(reason) => return Ok(Err(reason)),
    };
    // Sound by its checksum: no crash makes that.
    let detail = "the first record does not say what comes before";
    begin.map(Ok).ok_or_else(|| Error::corruption(&segment.path, SEGMENT_HEADER_BYTES, detail))
}

/// Step 2. Names are durable before they are used, go from the front in order, and from the back in order: a gap before
/// a segment that was used is damage.
fn check_chain(found: &[Found]) -> Result<()> {
    for pair in found.windows(2) {
        let Ok(begin) = &pair[1].begin else { continue };
        if begin.previous != pair[0].segment.number {
            let [previous, before] = [begin.previous, pair[0].segment.number].map(segment_name);
            let detail =
                format!("this segment follows {previous}, which is missing; before it is {before}");
            let path = &pair[1].segment.path;
            return Err(Error::corruption(path, SEGMENT_HEADER_BYTES, detail));
        }
    }
    Ok(())
}

/// Step 3.
fn replay<E: From<Error>>(
    found: &[Found],
    visit: &mut impl FnMut(RecordRef<'_>) -> Result<(), E>,
) -> Result<Replayed, E> {
    let mut replayed = Replayed { clean: true, ..Replayed::default() };
    for (index, Found { segment, begin }) in found.iter().enumerate() {
        let at = |offset| Position::new(segment.number, offset);
        let mut window = Window::new(segment);
        if let Err(reason) = begin {
            replayed.stop = Stop { position: at(SEGMENT_HEADER_BYTES), reason: reason.clone() };
            check_size(segment)?;
            replayed.clean &= all_unused(&found[index..])?;
            break;
        }
        let (end, reason) = replay_segment(&mut window, segment, &mut replayed, visit)?;
        (replayed.kept, replayed.end) = (index + 1, end);
        replayed.stop = Stop { position: at(end), reason };
        let next = found.get(index + 1);
        let stated = next.and_then(|next| next.begin.as_ref().ok()).map(|begin| begin.previous_end);
        match stated {
            Some(stated) if stated == end => {}
            Some(stated) if stated < end => {
                let detail = "the next segment says that this one ends here, but a record follows";
                return Err(Error::corruption(&segment.path, stated, detail).into());
            }
            Some(stated) => {
                check_size(segment)?;
                let reason = &mut replayed.stop.reason;
                *reason = format!("{reason}, where records up to offset {stated} should be");
                replayed.clean = false;
                break;
            }
            None => {
                // If there is a next one, whose beginning is not sound, it is to blame.
                check_size(segment)
                    .or_else(|error| next.map_or(Err(error), |next| Err(unsound(next))))?;
                if !window.is_zero_from(end)? {
                    replayed.clean = false;
                    break;
                }
            }
        }
    }
    Ok(replayed)
}

/// Whether what the last segment with records says to come next has come, be it that an opening gave it up.
fn check_next(
    dir: &Path,
    found: &[Found],
    temporary: &[String],
    replayed: &Replayed,
) -> Result<()> {
    let Some(next) = replayed.next else { return Ok(()) };
    let last = replayed.last.segment;
    let is_there = found.iter().any(|found| {
        let Segment { number, follows, .. } = found.segment;
        number == next || follows == last
    });
    // What an opening leaves that has no room for another segment.
    let is_held =
        || temporary.iter().filter_map(|name| number_held(name)).any(|number| number >= next);
    if is_there || is_held() {
        return Ok(());
    }
    let detail = format!("this segment is missing, segment {last} says that the log goes on in it");
    Err(Error::corruption(&dir.join(segment_name(next)), 0, detail))
}

/// The number that a file under a temporary name keeps.
fn number_held(name: &str) -> Option<u32> {
    name.strip_suffix(TEMPORARY_SUFFIX).and_then(segment_number)
}

/// A file is only ever shortened after the next one has said where it ends.
fn check_size(segment: &Segment) -> Result<()> {
    let Segment { bytes, made_bytes, path, .. } = segment;
    if bytes >= made_bytes {
        return Ok(());
    }
    let detail = format!("the file ends here; it was made with {made_bytes} bytes");
    Err(Error::corruption(path, *bytes, detail))
}

fn unsound(found: &Found) -> Error {
    let reason = found.begin.as_ref().err().map_or("", String::as_str);
    let detail = format!("{reason}; this segment had begun when the one before it was cut");
    Error::corruption(&found.segment.path, SEGMENT_HEADER_BYTES, detail)
}

/// Whether the segments were made and never written to.
fn all_unused(found: &[Found]) -> Result<bool> {
    for Found { segment, .. } in found {
        if !Window::new(segment).is_zero_from(SEGMENT_HEADER_BYTES)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Visits the records of one segment. Returns where they end and why.
fn replay_segment<E: From<Error>>(
    window: &mut Window<'_>,
    segment: &Segment,
    replayed: &mut Replayed,
    visit: &mut impl FnMut(RecordRef<'_>) -> Result<(), E>,
) -> Result<(u32, String), E> {
    let mut offset = SEGMENT_HEADER_BYTES;
    loop {
        let (header, body) = match window.record(offset)? {
            Ok(record) => record,
            Err(reason) => return Ok((offset, reason)),
        };
        let position = Position::new(segment.number, offset);
        replayed.vouched = replayed.vouched.max(promise(&header, body));
        replayed.last = position;
        replayed.next = None;
        if header.kind >= Kind::FIRST {
            replayed.count(&header, position);
            let RecordHeader { owner, kind, .. } = header;
            visit(RecordRef { position, owner, kind, body })?;
        } else if header.kind == KIND_NEXT {
            replayed.next = body.try_into().ok().map(u32::from_le_bytes);
        } else if ![KIND_BEGIN, KIND_MARK].contains(&header.kind) {
            let (file, kind) = (segment.path.display(), header.kind.0);
            return Err(Error::Invalid(format!(
                "{file} has a record of kind {kind} at offset {offset}, which this program does not know"
            ))
            .into());
        }
        offset += header.record_bytes();
    }
}

impl Replayed {
    fn count(&mut self, header: &RecordHeader, position: Position) {
        let owner = header.owner;
        let fresh =
            OwnerSummary { owner, records: 0, body_bytes: 0, first: position, last: position };
        let summary = self.summaries.entry(owner).or_insert(fresh);
        summary.records += 1;
        summary.body_bytes += u64::from(header.body_bytes);
        summary.last = position;
    }

    fn report(&self, segments: &[Found]) -> Recovery {
        let owners: Vec<_> = self.summaries.values().copied().collect();
        let torn = || {
            let Stop { position, reason } = &self.stop;
            let here = segments.iter().find(|found| found.segment.number == position.segment)?;
            let (file, offset) = (here.segment.path.clone(), u64::from(position.offset));
            Some(TornTail { file, offset, reason: reason.clone() })
        };
        Recovery {
            records: owners.iter().map(|owner| owner.records).sum(),
            body_bytes: owners.iter().map(|owner| owner.body_bytes).sum(),
            segments: self.kept,
            owners,
            torn: if self.clean { None } else { torn() },
        }
    }
}

/// Steps 5 to 9.
fn repair(
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    options: Options,
    files: Files,
    replayed: &Replayed,
) -> Result<(Shared, Recovery)> {
    let newest = files.newest();
    let number = newest
        .checked_add(1)
        .ok_or_else(|| Error::Invalid("the numbers of the segments are used up".to_owned()))?;
    let (bytes, follows) = (segment_bytes_for(0).max(options.segment_bytes), replayed.last.segment);
    let ready = match Segment::create(&*fs, &dir, number, salt(&options, number), bytes, follows) {
        Ok(segment) => Some(Arc::new(segment)),
        // The next append will say so, if there is still no room by then.
        Err(Error::DiskFull { .. }) => None,
        Err(error) => return Err(error),
    };
    let Files { mut found, temporary } = files;
    let recovery = replayed.report(&found);
    // The one that keeps the newest number stays while there is no other.
    let goes = |name: &String| ready.is_some() || number_held(name) != Some(newest);
    for name in temporary.into_iter().filter(goes) {
        remove(&*fs, &dir, &dir.join(name))?;
    }
    let mut beyond = found.split_off(replayed.kept);
    if ready.is_none() {
        hold_number(&*fs, &dir, beyond.pop())?;
    }
    // From the back, so that there is never a gap in front of a segment that was used.
    while let Some(Found { segment, .. }) = beyond.pop() {
        remove(&*fs, &dir, &segment.path)?;
    }
    let mut segments = BTreeMap::new();
    for Found { segment, .. } in found {
        // Those before are vouched for, and so were synced.
        if segment.number >= replayed.vouched.segment {
            let synced = segment.file.sync_data();
            synced.map_err(|error| Error::io("sync", &segment.path, error))?;
        }
        segments.insert(segment.number, Arc::new(segment));
    }
    let next_number = number + u32::from(ready.is_some());
    let state = recovered_state(segments, ready, next_number, replayed);
    let shared = Shared {
        fs,
        dir,
        options,
        files: Mutex::new(()),
        state: Mutex::new(state),
        writes: Turnstile::default(),
        syncs: Turnstile::default(),
        callbacks_due: Condvar::default(),
        callbacks_called: Condvar::default(),
        files_due: Condvar::default(),
    };
    let rolled = shared.state.lock().roll(0);
    if rolled {
        shared.barrier(Level::Sync)?;
        shared.cut(replayed.last.segment, replayed.end)?;
    }
    Ok((shared, recovery))
}

/// Step 6, the files.
fn remove(fs: &dyn FileSystem, dir: &Path, path: &Path) -> Result<()> {
    fs.remove(path).map_err(|error| Error::io("remove", path, error))?;
    fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))
}

/// When there was no room for the next segment, the newest one that is to go keeps its number used, as a file of no
/// size under a temporary name, which the next opening counts and removes.
fn hold_number(fs: &dyn FileSystem, dir: &Path, newest: Option<Found>) -> Result<()> {
    let Some(Found { segment, .. }) = newest else { return Ok(()) };
    let path = &segment.path;
    let holder = dir.join(format!("{}{TEMPORARY_SUFFIX}", segment_name(segment.number)));
    fs.rename(path, &holder).map_err(|error| Error::io("rename", path, error))?;
    fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
    let file = fs.open_write(&holder).map_err(|error| Error::io("open", &holder, error))?;
    file.truncate(0).map_err(|error| Error::io("truncate", &holder, error))
}

impl Shared {
    /// Step 9. The segment `number`, which ends at `end`, gives back what is behind it.
    fn cut(&self, number: u32, end: u32) -> Result<()> {
        let mut state = self.state.lock();
        let Some(segment) = state.segments.get(&number).filter(|segment| segment.bytes > end)
        else {
            return Ok(());
        };
        let Segment { salt, made_bytes, follows, ref path, .. } = **segment;
        let file = self.fs.open_write(path).map_err(|error| Error::io("open", path, error))?;
        let cut = file.truncate(u64::from(end));
        cut.map_err(|error| Error::io("truncate", path, error))?;
        let path = path.clone();
        let segment = Segment { number, salt, bytes: end, made_bytes, follows, path, file };
        state.segments.insert(number, Arc::new(segment));
        Ok(())
    }
}

fn recovered_state(
    segments: BTreeMap<u32, Arc<Segment>>,
    ready: Option<Arc<Segment>>,
    next_number: u32,
    replayed: &Replayed,
) -> State {
    let mut owners = Owners::default();
    for summary in replayed.summaries.values() {
        owners.appended(summary.owner, summary.first);
        owners.appended(summary.owner, summary.last);
    }
    let (previous, end) = (replayed.last.segment, replayed.end);
    let link = Begin { previous, previous_end: end, previous_synced: end };
    let end = Position::new(previous, end);
    State {
        active: None,
        ready,
        next_number,
        link,
        segments,
        owners,
        end,
        last: replayed.last,
        written: end,
        synced: end,
        chunks: Vec::new(),
        chunk_bytes: 0,
        spares: Vec::new(),
        dirty: Vec::new(),
        writing: Turn::default(),
        syncing: Turn::default(),
        sync_requests: 0,
        sync_asked: None,
        peers: 0,
        last_sync: Duration::ZERO,
        callbacks: Callbacks::default(),
        poison: None,
        removal: None,
        stopping: false,
        files_work: true,
        counts: Counts::default(),
    }
}
