//! One simulated file: its live content and what of it would survive a power loss.
//!
//! Live content is a sparse map of sectors of [`SECTOR_BYTES`]; absent sectors read as zeros. For each sector that was
//! written since the last sync the content that is durable is kept beside it (the *before image*), so a sync is "forget the
//! before images" and a power loss is "choose, sector by sector, between before, after and a mixture".

use std::collections::BTreeMap;

use super::Random;

/// The unit in which unsynced content survives or not: the smallest a disk may tear at. Tearing also happens inside.
pub const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

const ZEROS: Sector = [0; SECTOR_BYTES];

#[derive(Debug, Clone, Default)]
pub(super) struct FileImage {
    size: u64,
    sectors: BTreeMap<u64, Sector>,
    /// Bytes that [`FileImage::allocate`] reserved, from the start of the file.
    reserved: u64,
    durable_size: u64,
    /// Before images of what the next sync makes durable.
    unsynced: BTreeMap<u64, Sector>,
    /// Before images of what a *failed* sync left behind: live, marked clean, and no later sync writes it.
    forsaken: BTreeMap<u64, Sector>,
}

impl FileImage {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Sectors of disk space it takes.
    pub(super) fn sectors_used(&self) -> u64 {
        let reserved = self.reserved.div_ceil(SECTOR_BYTES as u64);
        reserved + self.sectors.range(reserved..).count() as u64
    }

    /// Sectors of disk space that a write of `[offset, offset + length)` would add.
    pub(super) fn sectors_needed(&self, offset: u64, length: u64) -> u64 {
        let first = (offset / SECTOR_BYTES as u64).max(self.reserved.div_ceil(SECTOR_BYTES as u64));
        let end = offset.saturating_add(length).div_ceil(SECTOR_BYTES as u64);
        if end <= first {
            return 0;
        }
        end - first - self.sectors.range(first..end).count() as u64
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let available = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(available);
        for (sector, within, range) in pieces(offset, count) {
            let content = self.sectors.get(&sector).unwrap_or(&ZEROS);
            let end = within + range.len();
            buffer[range].copy_from_slice(&content[within..end]);
        }
        count
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        for (sector, within, range) in pieces(offset, bytes.len()) {
            let end = within + range.len();
            self.touch(sector)[within..end].copy_from_slice(&bytes[range]);
        }
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    pub(super) fn allocate(&mut self, len: u64) {
        self.size = self.size.max(len);
        self.reserved = self.reserved.max(len);
    }

    pub(super) fn truncate(&mut self, len: u64) {
        if len < self.size {
            let first = len / SECTOR_BYTES as u64;
            let cut: Vec<u64> = self.sectors.range(first..).map(|(&sector, _)| sector).collect();
            for sector in cut {
                let keep = len.saturating_sub(sector * SECTOR_BYTES as u64);
                let keep = usize::try_from(keep).map_or(SECTOR_BYTES, |n| n.min(SECTOR_BYTES));
                self.touch(sector)[keep..].fill(0);
                if keep == 0 {
                    self.sectors.remove(&sector);
                }
            }
            self.reserved = self.reserved.min(len);
        }
        self.size = len;
    }

    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
        self.durable_size = self.size;
    }

    /// What Linux does when writeback fails: the pages count as clean, and whether they reached the disk is unknown.
    pub(super) fn fail_sync(&mut self) {
        self.forsaken.append(&mut self.unsynced);
    }

    /// Flips the bits of `mask` in the byte at `offset`, on the disk and in memory alike.
    pub(super) fn corrupt(&mut self, offset: u64, mask: u8) {
        let (sector, within) = locate(offset);
        self.sectors.entry(sector).or_insert(ZEROS)[within] ^= mask;
        for before in [&mut self.unsynced, &mut self.forsaken] {
            if let Some(content) = before.get_mut(&sector) {
                content[within] ^= mask;
            }
        }
    }

    /// What a power loss leaves: a file whose content is durable as it is.
    ///
    /// One of four moods is drawn for the file, so that the extremes are as likely as the mixtures: all unsynced sectors
    /// kept, all lost, a prefix kept with its last sector torn, or each sector on its own kept, lost or torn.
    pub(super) fn after_power_loss(&self, random: &mut Random) -> Self {
        let mut image = Self {
            size: self.surviving_size(random),
            sectors: self.sectors.clone(),
            reserved: self.reserved,
            ..Self::default()
        };
        let mut before = self.unsynced.clone();
        before.extend(self.forsaken.iter().map(|(&sector, content)| (sector, *content)));
        let mood = random.below(4);
        let prefix = random.below(before.len() as u64 + 1);
        for (index, (sector, old)) in (0u64..).zip(before) {
            let new = self.sectors.get(&sector).unwrap_or(&ZEROS);
            let fate = match mood {
                0 => Fate::Kept,
                2 if index < prefix => Fate::Kept,
                2 if index == prefix => Fate::Torn,
                1 | 2 => Fate::Lost,
                _ => [Fate::Kept, Fate::Lost, Fate::Torn][random.index(3)],
            };
            let survivor = match fate {
                Fate::Kept => *new,
                Fate::Lost => old,
                Fate::Torn => tear(&old, new, random),
            };
            image.sectors.insert(sector, survivor);
        }
        let size = image.size;
        image.size = u64::MAX; // so that truncate clears what lies beyond
        image.truncate(size);
        image.sync();
        image
    }

    /// An unsynced change of the size is kept, lost, or caught on the way.
    fn surviving_size(&self, random: &mut Random) -> u64 {
        let (low, high) = (self.size.min(self.durable_size), self.size.max(self.durable_size));
        match random.below(3) {
            0 => self.size,
            1 => self.durable_size,
            _ => low + random.below(high - low + 1),
        }
    }

    /// The live sector, for changing; remembers its before image.
    fn touch(&mut self, sector: u64) -> &mut Sector {
        let live = self.sectors.entry(sector).or_insert(ZEROS);
        let forsaken = &mut self.forsaken;
        self.unsynced.entry(sector).or_insert_with(|| forsaken.remove(&sector).unwrap_or(*live));
        live
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Lost,
    Torn,
}

/// One run of new bytes in the old sector, or the other way round.
fn tear(old: &Sector, new: &Sector, random: &mut Random) -> Sector {
    let (below, above) = if random.below(2) == 0 { (old, new) } else { (new, old) };
    let start = random.index(SECTOR_BYTES);
    let end = start + random.index(SECTOR_BYTES - start + 1);
    let mut torn = *below;
    torn[start..end].copy_from_slice(&above[start..end]);
    torn
}

/// Cuts `[offset, offset + length)` at sector borders: sector number, first byte in it, range of the caller's bytes.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let (sector, within) = locate(offset + done as u64);
        let count = (SECTOR_BYTES - within).min(length - done);
        let piece = (sector, within, done..done + count);
        done += count;
        Some(piece)
    })
}

/// The sector that holds the byte at `offset`, and where in it.
fn locate(offset: u64) -> (u64, usize) {
    let within = usize::try_from(offset % SECTOR_BYTES as u64).expect("below SECTOR_BYTES");
    (offset / SECTOR_BYTES as u64, within)
}
