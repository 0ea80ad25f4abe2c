//! The fields of a protobuf message: a varint of `number << 3 | kind` and the content. Kinds 0 (a varint) and 2 (length and bytes) are all that occurs.

use bytes::{BufMut as _, BytesMut};

use super::{Read, Wrong};

pub(super) fn write_head(field: u32, bytes: usize, out: &mut BytesMut) {
    write_varint(u64::from(field << 3 | 2), out);
    write_varint(bytes as u64, out);
}

pub(super) fn write_number(field: u32, number: u64, out: &mut BytesMut) {
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

pub(super) const fn varint_bytes(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

/// Bytes of a field with a number below 16 and `bytes` of content.
pub(super) const fn field_bytes(bytes: usize) -> usize {
    1 + varint_bytes(bytes as u64) + bytes
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message in order; ends after the first that is malformed.
pub(super) fn fields(mut rest: &[u8]) -> impl Iterator<Item = Read<(u64, Content<'_>)>> {
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
