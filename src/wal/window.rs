//! Reads a segment from front to back through a window of memory, record by record.

use super::error::Result;
use super::record::{RECORD_HEADER_BYTES, RecordHeader, verify};
use super::segment::Segment;

/// Bytes read at once; a longer record widens the window for itself.
const WINDOW_BYTES: u32 = 256 << 10;

/// A piece of a segment in memory.
#[derive(Debug)]
pub(super) struct Window<'a> {
    segment: &'a Segment,
    start: u32,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) const fn new(segment: &'a Segment) -> Self {
        Self { segment, start: 0, bytes: Vec::new() }
    }

    /// `count` bytes from `offset` on, or as many as there are.
    pub(super) fn bytes(&mut self, offset: u32, count: u32) -> Result<&[u8]> {
        let count = count.min(self.segment.bytes.saturating_sub(offset));
        let inside = |within: usize| within + count as usize <= self.bytes.len();
        let within = offset.checked_sub(self.start).map(|within| within as usize);
        let within = if let Some(within) = within.filter(|&within| inside(within)) {
            within
        } else {
            self.fill(offset, count)?;
            0
        };
        let end = self.bytes.len().min(within + count as usize);
        Ok(&self.bytes[within..end])
    }

    fn fill(&mut self, offset: u32, count: u32) -> Result<()> {
        let left = self.segment.bytes.saturating_sub(offset);
        let length = count.max(WINDOW_BYTES).min(left);
        self.bytes.resize(length as usize, 0);
        self.start = offset;
        let read = self.segment.read_at(&mut self.bytes, offset)?;
        self.bytes.truncate(read);
        Ok(())
    }

    /// The record at `offset`, or why there is none.
    pub(super) fn record(
        &mut self,
        offset: u32,
    ) -> Result<std::result::Result<(RecordHeader, &[u8]), String>> {
        let Segment { number, salt, bytes: size, .. } = *self.segment;
        let head = self.bytes(offset, RECORD_HEADER_BYTES)?;
        let header = match RecordHeader::plausible(head, number, offset, size) {
            Ok(header) => header,
            Err(reason) => return Ok(Err(reason)),
        };
        let whole = self.bytes(offset, header.record_bytes())?;
        let body = verify(whole, &header, salt);
        Ok(body.map(|body| (header, body)).ok_or_else(|| "the checksum does not match".to_owned()))
    }

    /// Whether all is zeros from `offset` to the end of the file.
    pub(super) fn is_zero_from(&mut self, offset: u32) -> Result<bool> {
        let mut offset = offset;
        loop {
            let bytes = self.bytes(offset, WINDOW_BYTES)?;
            if bytes.is_empty() {
                return Ok(true);
            }
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            offset += u32::try_from(bytes.len()).expect("at most a window");
        }
    }
}
