//! The bytes of requests and answers: protobuf messages inside gRPC frames, written and read without building messages.
//!
//! A generated client would cost more than the server it measures. So requests are written straight into the buffer that is sent, and of an
//! answer only what proves it right is looked at: the key and the value's length and mark of a Get, the version of a Put, the
//! number and beginning of a range.
//!
//! A gRPC frame is one byte of flags (0: not compressed), four bytes of length, big endian, and the message. A protobuf
//! field is a varint of `number << 3 | kind` and its content; kinds 0 (varint) and 2 (length and bytes) are all that occurs.

use bytes::{BufMut as _, BytesMut};

/// Every key begins so.
pub(super) const KEY_PREFIX: &str = "bench";

/// Bytes of a frame before its message.
const FRAME_HEAD_BYTES: usize = 5;

/// Longer frames are taken for garbage: no answer is that long.
const FRAME_BYTES_MAX: usize = 64 << 20;

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

/// Writes a frame's head for a message of `bytes`.
pub(super) fn write_frame_head(bytes: usize, out: &mut BytesMut) {
    out.reserve(FRAME_HEAD_BYTES + bytes);
    out.put_u8(0);
    out.put_u32(u32::try_from(bytes).expect("messages are bounded by the sizes of the arguments"));
}

fn write_head(field: u32, bytes: usize, out: &mut BytesMut) {
    write_varint(u64::from(field << 3 | 2), out);
    write_varint(bytes as u64, out);
}

fn write_number(field: u32, number: u64, out: &mut BytesMut) {
    write_varint(u64::from(field << 3), out);
    write_varint(number, out);
}

fn write_varint(mut number: u64, out: &mut BytesMut) {
    while number >= 0x80 {
        out.put_u8((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8((number & 0x7F) as u8);
}

const fn varint_bytes(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

/// Bytes of a field with a number below 16 and `bytes` of content.
const fn field_bytes(bytes: usize) -> usize {
    1 + varint_bytes(bytes as u64) + bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message in order; ends after the first that is malformed.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Read<(u64, Content<'_>)>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = read_field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or(Wrong("an answer is not protobuf")))
    })
}

fn read_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Content<'a>)> {
    let tag = read_varint(rest)?;
    let content = match tag & 7 {
        0 => Content::Number(read_varint(rest)?),
        2 => {
            let bytes = usize::try_from(read_varint(rest)?).ok()?;
            let (content, after) = rest.split_at_checked(bytes)?;
            *rest = after;
            Content::Bytes(content)
        }
        _ => return None,
    };
    Some((tag >> 3, content))
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Takes frames apart, however the network cuts them.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The beginning of a frame whose rest has not come.
    begun: BytesMut,
}

impl Frames {
    /// Hands every message that is whole with `chunk` to `each`, in order.
    pub(super) fn feed(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Read<()>,
    ) -> Read<()> {
        if self.begun.is_empty() {
            let taken = take_frames(chunk, &mut each)?;
            if taken < chunk.len() {
                self.begun.extend_from_slice(&chunk[taken..]);
            }
            return Ok(());
        }
        self.begun.extend_from_slice(chunk);
        let taken = take_frames(&self.begun, &mut each)?;
        let _ = self.begun.split_to(taken);
        Ok(())
    }

    /// Whether all that came was whole.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }
}

/// How many bytes of `bytes` are whole frames.
fn take_frames(bytes: &[u8], each: &mut impl FnMut(&[u8]) -> Read<()>) -> Read<usize> {
    let mut taken = 0;
    while let Some((head, rest)) = bytes[taken..].split_first_chunk::<FRAME_HEAD_BYTES>() {
        let [flags, length @ ..] = *head;
        if flags != 0 {
            return Err(Wrong("an answer is compressed although nobody asked for it"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(Wrong("an answer of more than 64 MiB"));
        }
        let Some(message) = rest.get(..length) else { break };
        each(message)?;
        taken += FRAME_HEAD_BYTES + length;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::admin::{EchoRequest, EchoResponse, EchoStreamRequest, EchoStreamResponse};
    use crate::proto::v1::session_request::Operation;
    use crate::proto::v1::{
        self, BatchPutRequest, GetRequest, GetResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, SessionRequest, SessionResponse, get_response, put_request,
        session_response,
    };

    const GET: Ask = Ask::Get { key: 42 };
    const PUT: Ask = Ask::Put { key: 42, revision: 1, if_version: Some(300) };
    const RANGE: Ask = Ask::Range { first: 42, limit: 200, least: 1 };

    fn messages() -> Messages {
        Messages::new(16, 100)
    }

    fn value(messages: &Messages, key: u64) -> String {
        let mut out = BytesMut::new();
        messages.write_value(key, 5, &mut out);
        String::from_utf8(out.to_vec()).expect("text")
    }

    /// The message of a frame.
    fn call<M: prost::Message + Default>(target: Target, ask: &Ask) -> M {
        let mut out = BytesMut::new();
        messages().write_call(target, ask, &mut out);
        assert_eq!(out[0], 0);
        assert_eq!(u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize, out.len() - 5);
        M::decode(&out[5..]).expect("protobuf")
    }

    fn operation<M: prost::Message + Default>(target: Target, id: u64, ask: &Ask) -> M {
        let mut out = BytesMut::new();
        messages().write_operation(target, id, ask, &mut out);
        assert_eq!(u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize, out.len() - 5);
        M::decode(&out[5..]).expect("protobuf")
    }

    #[test]
    fn requests_are_what_the_generated_code_reads() {
        let get: GetRequest = call(Target::Product, &GET);
        assert_eq!(get, GetRequest { key: "bench00000000042".to_owned(), consistency: 0 });
        let put: PutRequest = call(Target::Product, &PUT);
        assert_eq!((put.key.as_str(), put.if_version), ("bench00000000042", Some(300)));
        let Some(put_request::Content::Value(text)) = put.content else { panic!("no value") };
        assert_eq!(text.len(), 100);
        serde_json::from_str::<String>(&text).expect("JSON");
        let range: RangeRequest = call(Target::Product, &RANGE);
        assert_eq!(
            (range.start_key.as_str(), range.limit, range.prefix.as_deref()),
            ("bench00000000042", Some(200), Some("bench"))
        );
        let echo: EchoRequest = call(Target::Echo, &GET);
        assert_eq!(echo.payload.len(), 116);
    }

    #[test]
    fn operations_of_a_stream_are_what_the_generated_code_reads() {
        for id in [0, 127, 128, 1 << 40] {
            let one: SessionRequest = operation(Target::Product, id, &GET);
            assert_eq!(one.id, id);
            assert!(matches!(one.operation, Some(Operation::Get(get)) if get.key.ends_with("42")));
            let one: SessionRequest = operation(Target::Product, id, &PUT);
            assert!(
                matches!(one.operation, Some(Operation::Put(put)) if put.if_version == Some(300))
            );
            let one: SessionRequest = operation(Target::Product, id, &RANGE);
            assert!(
                matches!(one.operation, Some(Operation::Range(range)) if range.limit == Some(200))
            );
            let one: EchoStreamRequest = operation(Target::Echo, id, &GET);
            assert_eq!((one.id, one.payload.len()), (id, 116));
        }
    }

    #[test]
    fn a_batch_for_the_preload_is_what_the_generated_code_reads() {
        let messages = messages();
        let mut out = BytesMut::new();
        for key in 7..10 {
            write_entry(&messages, key, &mut out);
        }
        let batch = BatchPutRequest::decode(&out[..]).expect("protobuf");
        assert_eq!(batch.entries.len(), 3);
        assert_eq!(batch.entries["bench00000000008"].len(), 100);
        assert_eq!(read_count(&v1::BatchPutResponse { count: 3 }.encode_to_vec()), Ok(3));
    }

    #[test]
    fn values_of_every_size_are_json_of_that_size() {
        for size in [1, 2, 3, 18, 19, 100, 70_000, 200_000] {
            let messages = Messages::new(16, size);
            let text = value(&messages, 123_456_789);
            assert_eq!(text.len(), size);
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
            assert!(messages.is_value(123_456_789, text.as_bytes()), "{size}");
        }
        assert_eq!(Messages::keys_max(16), 100_000_000_000);
        assert_eq!((Messages::keys_max(6), Messages::keys_max(5)), (10, 0));
    }

    fn found(key: &str, value: String) -> GetResponse {
        let content = Some(get_response::Content::Value(value));
        GetResponse { key: key.to_owned(), content, version: 9, ttl: None }
    }

    #[test]
    fn a_right_answer_tells_its_version_and_a_wrong_one_what_is_wrong() {
        let messages = messages();
        let check = |found: GetResponse| {
            messages.check(Target::Product, &GET, &found.encode_to_vec()).map_err(|wrong| wrong.0)
        };
        let key = "bench00000000042";
        assert_eq!(check(found(key, value(&messages, 42))), Ok(9));
        assert!(check(found("bench00000000043", value(&messages, 42))).is_err());
        assert!(check(found(key, value(&messages, 43))).is_err());
        assert!(check(found(key, "\"short\"".to_owned())).is_err());
        assert!(check(GetResponse { version: 0, ..found(key, value(&messages, 42)) }).is_err());
        assert!(check(GetResponse::default()).is_err());

        let put = |version| PutResponse { version }.encode_to_vec();
        assert_eq!(messages.check(Target::Product, &PUT, &put(3)), Ok(3));
        assert!(messages.check(Target::Product, &PUT, &put(0)).is_err());

        let echo = |payload: Vec<u8>| EchoResponse { payload: payload.into() }.encode_to_vec();
        let sent: EchoRequest = call(Target::Echo, &GET);
        assert_eq!(messages.check(Target::Echo, &GET, &echo(sent.payload.to_vec())), Ok(0));
        assert!(messages.check(Target::Echo, &GET, &echo(vec![0; 116])).is_err());
        assert!(messages.check(Target::Echo, &GET, &echo(Vec::new())).is_err());
    }

    #[test]
    fn a_range_must_begin_with_its_key_and_have_all_that_is_there() {
        let messages = messages();
        let item = |key: u64| v1::Item {
            key: format!("bench{key:011}"),
            content: Some(v1::item::Content::Value(value(&messages, key))),
            version: 1,
            ttl: None,
        };
        let check = |keys: std::ops::Range<u64>, limit, least| {
            let page = RangeResponse { items: keys.map(item).collect(), ..Default::default() };
            let ask = Ask::Range { first: 42, limit, least };
            messages.check(Target::Product, &ask, &page.encode_to_vec()).is_ok()
        };
        assert!(check(42..52, 10, 10));
        assert!(check(42..45, 10, 3));
        assert!(!check(42..45, 10, 4));
        assert!(!check(42..45, 2, 1));
        assert!(!check(43..45, 10, 1));
    }

    #[test]
    fn answers_of_a_stream_carry_their_id_or_a_status() {
        let messages = messages();
        let get = found("bench00000000042", value(&messages, 42));
        let answer =
            SessionResponse { id: 300, result: Some(session_response::Result::Get(get.clone())) };
        let bytes = answer.encode_to_vec();
        let read = read_answer(Target::Product, &bytes).expect("an answer");
        assert_eq!(
            read,
            Answer { id: 300, body: AnswerBody::Message(get.encode_to_vec().as_slice()) }
        );
        let status = tonic_types::Status { code: 8, message: "full".to_owned(), details: vec![] };
        let answer =
            SessionResponse { id: 0, result: Some(session_response::Result::Status(status)) };
        let bytes = answer.encode_to_vec();
        let read = read_answer(Target::Product, &bytes).expect("an answer");
        assert_eq!(read, Answer { id: 0, body: AnswerBody::Status(8, b"full") });
        let sent: EchoStreamRequest = operation(Target::Echo, 5, &GET);
        let bytes = EchoStreamResponse { id: 5, payload: sent.payload }.encode_to_vec();
        let read = read_answer(Target::Echo, &bytes).expect("an answer");
        let AnswerBody::Message(content) = read.body else { panic!("no payload") };
        assert_eq!(messages.check_operation(Target::Echo, &GET, content), Ok(0));
        assert!(read_answer(Target::Product, &[]).is_err());
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let mut stream = Vec::new();
        let sent: Vec<Vec<u8>> = vec![vec![1; 3], vec![], vec![2; 300], vec![3]];
        for message in &sent {
            let mut head = BytesMut::new();
            write_frame_head(message.len(), &mut head);
            stream.extend_from_slice(&head);
            stream.extend_from_slice(message);
        }
        for step in 1..=stream.len() {
            let mut frames = Frames::default();
            let mut got = Vec::new();
            for chunk in stream.chunks(step) {
                let each = |message: &[u8]| {
                    got.push(message.to_vec());
                    Ok(())
                };
                frames.feed(chunk, each).expect("sound frames");
            }
            assert_eq!(got, sent, "in chunks of {step}");
            assert!(frames.is_empty());
        }
    }

    #[test]
    fn garbage_is_told_and_never_panics() {
        let mut frames = Frames::default();
        assert!(frames.feed(&[1, 0, 0, 0, 0], |_| Ok(())).is_err());
        let mut frames = Frames::default();
        assert!(frames.feed(&[0, 255, 255, 255, 255], |_| Ok(())).is_err());
        let messages = messages();
        let mut state = 1_u64;
        for length in 0..200 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            let _ = read_answer(Target::Product, &bytes);
            for ask in [GET, PUT, RANGE] {
                let _ = messages.check(Target::Product, &ask, &bytes);
            }
        }
    }
}
