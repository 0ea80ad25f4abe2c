//! The bytes of requests and answers: protobuf messages inside gRPC frames, written and read without building messages.
//!
//! A generated client would cost more than the server it measures. So requests are written straight into the buffer that is sent, and of an
//! answer only what proves it right is looked at: the key and the value's length and mark of a Get, the version of a Put, the
//! number and beginning of a range. What a message is made of is in `protobuf.rs`, what it travels in in `frames.rs`.

mod frames;
mod protobuf;
#[cfg(test)]
mod tests;

use bytes::{BufMut as _, BytesMut};

pub(super) use self::frames::{Frames, write_frame_head};
use self::protobuf::{Content, field_bytes, fields, varint_bytes, write_head, write_number};

/// Every key begins so.
pub(super) const KEY_PREFIX: &str = "bench";

/// Bytes of a value that tell which key it belongs to.
const MARK_BYTES: usize = 16;

/// Text that values are cut from. Long, so that compression finds little in it.
const NOISE_BYTES: usize = 64 << 10;

/// What one operation, or one half of it, asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Get { key: u64 },
    Put { key: u64, revision: u64, if_version: Option<u64> },
    Range { first: u64, limit: u32, least: u32 },
}

/// Whom it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The operation itself.
    Product,
    /// The no-op that sends back what it gets.
    Echo,
}

/// Why an answer is not the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) &'static str);

type Read<T> = Result<T, Wrong>;

/// Writes requests and checks answers, for keys and values of fixed sizes.
#[derive(Debug)]
pub(super) struct Messages {
    key_bytes: usize,
    value_bytes: usize,
    noise: Box<[u8]>,
}

impl Messages {
    /// `key_bytes` must have room for the prefix and all numbers of keys; `value_bytes` is at least 1.
    pub(super) fn new(key_bytes: usize, value_bytes: usize) -> Self {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ALPHABET[(state >> 58) as usize]
        };
        Self { key_bytes, value_bytes, noise: (0..NOISE_BYTES).map(|_| draw()).collect() }
    }

    /// Most keys that have a text of this size.
    pub(super) fn keys_max(key_bytes: usize) -> u64 {
        let digits = key_bytes.saturating_sub(KEY_PREFIX.len()).min(19);
        10_u64.saturating_pow(u32::try_from(digits).unwrap_or(u32::MAX)) * u64::from(digits > 0)
    }

    /// Bytes that an echo carries: as many as a Get's answer or a Put's request.
    pub(super) fn payload_bytes(&self) -> usize {
        self.key_bytes + self.value_bytes
    }

    pub(super) fn key_bytes(&self) -> usize {
        self.key_bytes
    }

    pub(super) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Writes the text of a key: the prefix and its number with leading zeros.
    pub(super) fn write_key(&self, mut key: u64, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(KEY_PREFIX.as_bytes());
        out.put_bytes(b'0', self.key_bytes - KEY_PREFIX.len());
        for digit in out[start + KEY_PREFIX.len()..].iter_mut().rev() {
            if key == 0 {
                break;
            }
            *digit = b'0' + u8::try_from(key % 10).expect("a digit");
            key /= 10;
        }
    }

    /// Whether `text` is that key's.
    fn is_key(&self, key: u64, text: &[u8]) -> bool {
        if text.len() != self.key_bytes || !text.starts_with(KEY_PREFIX.as_bytes()) {
            return false;
        }
        let digits = &text[KEY_PREFIX.len()..];
        digits.iter().try_fold(0_u64, |number, &digit| {
            number.checked_mul(10)?.checked_add(u64::from(digit.wrapping_sub(b'0')))
        }) == Some(key)
    }

    /// Writes a value of exactly the size asked for: a JSON string that begins with the key's mark, or one digit.
    pub(super) fn write_value(&self, key: u64, revision: u64, out: &mut BytesMut) {
        let Some(inside) = self.value_bytes.checked_sub(2) else {
            out.put_bytes(b'1', self.value_bytes);
            return;
        };
        out.put_u8(b'"');
        let mark = mark(key);
        let marked = inside.min(MARK_BYTES);
        out.put_slice(&mark[..marked]);
        let mut left = inside - marked;
        let mixed = key.wrapping_mul(31).wrapping_add(revision.wrapping_mul(8191));
        let mut from = usize::try_from(mixed % NOISE_BYTES as u64).expect("below 64 KiB");
        while left > 0 {
            let part = &self.noise[from..(from + left).min(NOISE_BYTES)];
            out.put_slice(part);
            left -= part.len();
            from = 0;
        }
        out.put_u8(b'"');
    }

    fn is_value(&self, key: u64, value: &[u8]) -> bool {
        let marked = self.value_bytes.saturating_sub(2).min(MARK_BYTES);
        value.len() == self.value_bytes
            && (marked == 0 || value.get(1..=marked) == Some(&mark(key)[..marked]))
    }

    /// Bytes of the message of `ask`.
    fn ask_bytes(&self, ask: &Ask) -> usize {
        let key = field_bytes(self.key_bytes);
        match ask {
            Ask::Get { .. } => key,
            Ask::Put { if_version, .. } => {
                let condition = if_version.map_or(0, |version| 1 + varint_bytes(version));
                key + field_bytes(self.value_bytes) + condition
            }
            Ask::Range { limit, .. } => {
                key + field_bytes(KEY_PREFIX.len()) + 1 + varint_bytes(u64::from(*limit))
            }
        }
    }

    fn write_ask(&self, ask: &Ask, out: &mut BytesMut) {
        match *ask {
            Ask::Get { key } => {
                write_head(1, self.key_bytes, out);
                self.write_key(key, out);
            }
            Ask::Put { key, revision, if_version } => {
                write_head(1, self.key_bytes, out);
                self.write_key(key, out);
                write_head(2, self.value_bytes, out);
                self.write_value(key, revision, out);
                if let Some(version) = if_version {
                    write_number(5, version, out);
                }
            }
            Ask::Range { first, limit, .. } => {
                write_head(1, self.key_bytes, out);
                self.write_key(first, out);
                write_head(3, KEY_PREFIX.len(), out);
                out.put_slice(KEY_PREFIX.as_bytes());
                write_number(4, u64::from(limit), out);
            }
        }
    }

    /// Writes the frame of a unary call.
    pub(super) fn write_call(&self, target: Target, ask: &Ask, out: &mut BytesMut) {
        match target {
            Target::Product => {
                write_frame_head(self.ask_bytes(ask), out);
                self.write_ask(ask, out);
            }
            Target::Echo => {
                write_frame_head(field_bytes(self.payload_bytes()), out);
                self.write_payload(1, out);
            }
        }
    }

    /// Writes the frame of an operation of a stream.
    pub(super) fn write_operation(&self, target: Target, id: u64, ask: &Ask, out: &mut BytesMut) {
        let id_bytes = 1 + varint_bytes(id);
        match target {
            Target::Product => {
                let bytes = self.ask_bytes(ask);
                write_frame_head(id_bytes + field_bytes(bytes), out);
                write_number(1, id, out);
                let operation = match ask {
                    Ask::Get { .. } => 2,
                    Ask::Put { .. } => 3,
                    Ask::Range { .. } => 7,
                };
                write_head(operation, bytes, out);
                self.write_ask(ask, out);
            }
            Target::Echo => {
                write_frame_head(id_bytes + field_bytes(self.payload_bytes()), out);
                write_number(1, id, out);
                self.write_payload(2, out);
            }
        }
    }

    fn write_payload(&self, field: u32, out: &mut BytesMut) {
        write_head(field, self.payload_bytes(), out);
        let mut left = self.payload_bytes();
        while left > 0 {
            let part = &self.noise[..left.min(NOISE_BYTES)];
            out.put_slice(part);
            left -= part.len();
        }
    }

    /// Checks the message that answers a unary call; the version that it tells, 0 where it tells none.
    pub(super) fn check(&self, target: Target, ask: &Ask, message: &[u8]) -> Read<u64> {
        if target == Target::Echo {
            return match fields(message).next() {
                Some(Ok((1, Content::Bytes(payload)))) => self.check_payload(payload),
                _ => Err(Wrong("an echo without its payload")),
            };
        }
        match *ask {
            Ask::Get { key } => self.check_item(key, message),
            Ask::Put { .. } => check_version(message),
            Ask::Range { first, limit, least } => self.check_range(first, limit, least, message),
        }
    }

    /// As [`Self::check`], for the content of a stream's answer.
    pub(super) fn check_operation(&self, target: Target, ask: &Ask, content: &[u8]) -> Read<u64> {
        match target {
            Target::Product => self.check(target, ask, content),
            Target::Echo => self.check_payload(content),
        }
    }

    fn check_payload(&self, payload: &[u8]) -> Read<u64> {
        let right = payload.len() == self.payload_bytes() && payload.first() == self.noise.first();
        if right { Ok(0) } else { Err(Wrong("an echo of something else")) }
    }

    fn check_item(&self, key: u64, message: &[u8]) -> Read<u64> {
        let (mut key_is_right, mut value_is_right, mut version) = (false, false, 0);
        for field in fields(message) {
            match field? {
                (1, Content::Bytes(text)) => key_is_right = self.is_key(key, text),
                (2, Content::Bytes(value)) => value_is_right = self.is_value(key, value),
                (4, Content::Number(number)) => version = number,
                _ => {}
            }
        }
        match (key_is_right, value_is_right, version) {
            (false, _, _) => Err(Wrong("the answer has another key")),
            (_, false, _) => Err(Wrong("the value has another length or belongs to another key")),
            (_, _, 0) => Err(Wrong("the answer has no version")),
            _ => Ok(version),
        }
    }

    fn check_range(&self, first: u64, limit: u32, least: u32, message: &[u8]) -> Read<u64> {
        let mut count = 0;
        for field in fields(message) {
            if let (1, Content::Bytes(item)) = field? {
                if count == 0 {
                    self.check_item(first, item)?;
                }
                count += 1;
            }
        }
        check_count(count, limit, least)
    }

    /// Checks JSON that a REST read answered with: one item.
    pub(super) fn check_text(&self, key: u64, key_text: &str, value: &str) -> Read<()> {
        if !self.is_key(key, key_text.as_bytes()) {
            return Err(Wrong("the answer has another key"));
        }
        if !self.is_value(key, value.as_bytes()) {
            return Err(Wrong("the value has another length or belongs to another key"));
        }
        Ok(())
    }
}

/// The answer to an operation of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    pub(super) id: u64,
    pub(super) body: AnswerBody<'a>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AnswerBody<'a> {
    /// The message of the operation's kind, still to be checked.
    Message(&'a [u8]),
    /// Code and text of a refusal.
    Status(i32, &'a [u8]),
}

/// Reads a message of a stream.
pub(super) fn read_answer(target: Target, message: &[u8]) -> Read<Answer<'_>> {
    let (mut id, mut body) = (0, None);
    for field in fields(message) {
        match field? {
            (1, Content::Number(number)) => id = number,
            (8, Content::Bytes(status)) if target == Target::Product => {
                body = Some(read_status(status)?);
            }
            (2..=7, Content::Bytes(bytes)) => body = Some(AnswerBody::Message(bytes)),
            _ => {}
        }
    }
    body.map(|body| Answer { id, body }).ok_or(Wrong("an answer of a stream without result"))
}

fn read_status(message: &[u8]) -> Read<AnswerBody<'_>> {
    let (mut code, mut text) = (0, &b""[..]);
    for field in fields(message) {
        match field? {
            (1, Content::Number(number)) => code = i32::try_from(number).unwrap_or(i32::MAX),
            (2, Content::Bytes(bytes)) => text = bytes,
            _ => {}
        }
    }
    Ok(AnswerBody::Status(code, text))
}

fn check_version(message: &[u8]) -> Read<u64> {
    match fields(message).next() {
        Some(Ok((1, Content::Number(version)))) if version > 0 => Ok(version),
        _ => Err(Wrong("the answer has no version")),
    }
}

/// Checks the number of items of a range.
pub(super) fn check_count(count: u32, limit: u32, least: u32) -> Read<u64> {
    if count < least {
        return Err(Wrong("a range leaves keys out"));
    }
    if count > limit {
        return Err(Wrong("a range has more items than asked for"));
    }
    Ok(0)
}

/// `count` of a BatchPutResponse.
pub(super) fn read_count(message: &[u8]) -> Read<u64> {
    match fields(message).next() {
        Some(Ok((1, Content::Number(count)))) => Ok(count),
        _ => Err(Wrong("the answer to a batch has no count")),
    }
}

/// Writes one entry of a BatchPutRequest; the bytes that this takes.
pub(super) fn write_entry(messages: &Messages, key: u64, out: &mut BytesMut) {
    let bytes = field_bytes(messages.key_bytes) + field_bytes(messages.value_bytes);
    write_head(1, bytes, out);
    write_head(1, messages.key_bytes, out);
    messages.write_key(key, out);
    write_head(2, messages.value_bytes, out);
    messages.write_value(key, 0, out);
}

/// Sixteen hexadecimal digits of a key's number, the lowest first, so that few of them tell keys apart.
fn mark(key: u64) -> [u8; MARK_BYTES] {
    std::array::from_fn(|digit| b"0123456789abcdef"[((key >> (4 * digit)) & 15) as usize])
}
