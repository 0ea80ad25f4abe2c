//! Against the generated code: what it reads of requests, and what is read of its answers.

use prost::Message as _;

use super::*;
use crate::proto::admin::{EchoRequest, EchoResponse, EchoStreamRequest, EchoStreamResponse};
use crate::proto::v1::session_request::Operation;
use crate::proto::v1::{
    self, BatchPutRequest, GetRequest, GetResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, SessionRequest, SessionResponse, get_response, put_request, session_response,
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
        assert!(matches!(one.operation, Some(Operation::Put(put)) if put.if_version == Some(300)));
        let one: SessionRequest = operation(Target::Product, id, &RANGE);
        assert!(matches!(one.operation, Some(Operation::Range(range)) if range.limit == Some(200)));
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
    assert_eq!(read, Answer { id: 300, body: AnswerBody::Message(get.encode_to_vec().as_slice()) });
    let status = tonic_types::Status { code: 8, message: "full".to_owned(), details: vec![] };
    let answer = SessionResponse { id: 0, result: Some(session_response::Result::Status(status)) };
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
