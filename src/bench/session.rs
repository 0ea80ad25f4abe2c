//! Many operations on one gRPC stream.
//!
//! A lane is a loop over what the stream brings: every answer frees its slot, and all free slots are filled and sent as one piece. So a
//! busy stream costs a system call for many operations, as it does for the server.

use std::cell::RefCell;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::Error;
use super::http2::{self, Connection};
use super::lanes::{GRACE, record_unsent};
use super::schedule::Timer;
use super::tally::{Failure, Tally};
use super::wire::{AnswerBody, Frames, Messages, Target, Wrong, read_answer};
use super::workload::{Job, Next, Source};

/// An open stream.
pub(super) struct Session<'a> {
    target: Target,
    messages: &'a Messages,
    requests: h2::SendStream<Bytes>,
    answers: h2::RecvStream,
}

impl<'a> Session<'a> {
    /// Opens a stream over `connection`.
    pub(super) async fn new(
        connection: &Connection,
        target: Target,
        messages: &'a Messages,
    ) -> Result<Self, Error> {
        let path = match target {
            Target::Product => "/kvstore.v1.KvService/Session",
            Target::Echo => "/kvstore.admin.v1.AdminService/EchoStream",
        };
        let failed =
            |failure: Failure| Error::Server(format!("the stream was refused: {failure:?}"));
        let (response, requests) = connection.method(path).open().map_err(failed)?;
        let response = response.await.map_err(|error| failed(error.into()))?;
        let answers = http2::accept(response).map_err(failed)?;
        Ok(Self { target, messages, requests, answers })
    }

    /// Runs a lane to the end of its schedule, until everything is answered and the stream has ended well.
    pub(super) async fn drive(
        mut self,
        source: Source<'_>,
        window: usize,
        timer: &Timer,
        tally: &RefCell<Tally>,
    ) {
        let mut slots = Slots::new(window, source);
        let outcome = self.exchange(&mut slots, timer, tally).await;
        let ended = match outcome {
            Ok(()) => self.end().await,
            Err(failure) => Err(failure),
        };
        let mut counted = tally.borrow_mut();
        for _ in 0..slots.in_flight().max(usize::from(ended.is_err())) {
            counted.fail(ended.as_ref().err().unwrap_or(&Failure::Unanswered));
        }
        drop(counted);
        record_unsent(&slots.source, tally);
    }

    async fn exchange(
        &mut self,
        slots: &mut Slots<'_>,
        timer: &Timer,
        tally: &RefCell<Tally>,
    ) -> Result<(), Failure> {
        let mut frames = Frames::default();
        let mut out = BytesMut::new();
        let last = slots.source.schedule.ends() + GRACE;
        loop {
            let wake = slots.fill(self.target, self.messages, &mut out);
            if !out.is_empty() {
                // What is in flight is bounded by the slots, so this queue is too.
                self.requests.send_data(out.split().freeze(), false)?;
            }
            if slots.over && slots.in_flight() == 0 {
                return Ok(());
            }
            let chunk = tokio::select! {
                biased;
                chunk = self.answers.data() => chunk,
                () = timer.until(wake.unwrap_or(last)), if wake.is_some() => continue,
                () = tokio::time::sleep_until(last.into()), if slots.over => return Ok(()),
            };
            let Some(chunk) = chunk else {
                http2::finish(self.answers.trailers().await?.as_ref())?;
                return Err(Failure::Transport("the stream ended before its answers".to_owned()));
            };
            let chunk = chunk?;
            self.answers.flow_control().release_capacity(chunk.len())?;
            let (now, mut tally) = (Instant::now(), tally.borrow_mut());
            frames.feed(&chunk, |message| {
                slots.answer(self.target, self.messages, message, now, &mut out, &mut tally)
            })?;
        }
    }

    /// Closes this half and waits for the server's.
    async fn end(&mut self) -> Result<(), Failure> {
        self.requests.send_data(Bytes::new(), true)?;
        let rest = async {
            while let Some(chunk) = self.answers.data().await {
                chunk?;
            }
            http2::finish(self.answers.trailers().await?.as_ref())
        };
        tokio::time::timeout(GRACE, rest).await.unwrap_or(Err(Failure::Unanswered))
    }
}

/// The operations of a stream in flight; the number of its slot is the id of an operation.
struct Slots<'a> {
    source: Source<'a>,
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    over: bool,
    /// Read before each batch and good for all of it: a clock costs more than an operation's other work.
    now: Instant,
}

impl<'a> Slots<'a> {
    fn new(window: usize, source: Source<'a>) -> Self {
        Self {
            source,
            jobs: vec![None; window],
            free: (0..window).rev().collect(),
            over: false,
            now: Instant::now(),
        }
    }

    fn in_flight(&self) -> usize {
        self.jobs.len() - self.free.len()
    }

    /// Starts what is due; until when nothing more is.
    fn fill(&mut self, target: Target, messages: &Messages, out: &mut BytesMut) -> Option<Instant> {
        self.now = Instant::now();
        while !self.over
            && let Some(&slot) = self.free.last()
        {
            match self.source.next(self.now) {
                Next::Job(job) => {
                    messages.write_operation(target, slot as u64, &job.ask, out);
                    self.jobs[slot] = Some(job);
                    self.free.pop();
                }
                Next::At(at) => return Some(at),
                Next::Over => self.over = true,
            }
        }
        None
    }

    /// Takes an answer; writes the second half of an operation that has one.
    fn answer(
        &mut self,
        target: Target,
        messages: &Messages,
        message: &[u8],
        now: Instant,
        out: &mut BytesMut,
        tally: &mut Tally,
    ) -> Result<(), Wrong> {
        let answer = read_answer(target, message)?;
        let slot = usize::try_from(answer.id).unwrap_or(usize::MAX);
        let Some(place @ Some(_)) = self.jobs.get_mut(slot) else {
            return Err(Wrong("an answer to an operation that is not in flight"));
        };
        let mut job = place.take().expect("it was just seen");
        let outcome = match answer.body {
            AnswerBody::Status(code, text) => {
                Err(Failure::Status(code, String::from_utf8_lossy(text).into_owned()))
            }
            AnswerBody::Message(content) => {
                let checked = messages.check_operation(target, &job.ask, content);
                match (checked, job.then.take()) {
                    (Ok(version), Some(then)) => {
                        job.ask = then.ask(version);
                        messages.write_operation(target, answer.id, &job.ask, out);
                        *place = Some(job);
                        return Ok(());
                    }
                    (checked, _) => checked.map(|_| ()).map_err(Failure::from),
                }
            }
        };
        self.free.push(slot);
        self.source.ended(&job);
        tally.record(job.kind, now.saturating_duration_since(job.due), outcome);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use prost::Message as _;

    use super::super::args::Plan;
    use super::super::schedule::Schedule;
    use super::super::workload::KnownKeys;
    use super::*;
    use crate::proto::v1::session_request::Operation;
    use crate::proto::v1::{
        GetResponse, PutResponse, SessionRequest, SessionResponse, get_response, session_response,
    };

    fn plan(workload: &str) -> Plan {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            args: super::super::Args,
        }
        let words = ["bench", "--seed", "1", "--if-version", "--workload", workload];
        let program = <Program as clap::Parser>::try_parse_from(words).expect("legal");
        program.args.plan().expect("legal")
    }

    fn requests(out: &mut BytesMut) -> Vec<SessionRequest> {
        let mut requests = Vec::new();
        let each = |message: &[u8]| {
            requests.push(SessionRequest::decode(message).expect("protobuf"));
            Ok(())
        };
        Frames::default().feed(&out.split(), each).expect("frames");
        requests
    }

    fn got(messages: &Messages, id: u64, key: &str) -> Vec<u8> {
        let mut value = BytesMut::new();
        let number = key[super::super::wire::KEY_PREFIX.len()..].parse().expect("a number");
        messages.write_value(number, 0, &mut value);
        let content =
            get_response::Content::Value(String::from_utf8(value.to_vec()).expect("text"));
        let get =
            GetResponse { key: key.to_owned(), content: Some(content), version: 77, ttl: None };
        SessionResponse { id, result: Some(session_response::Result::Get(get)) }.encode_to_vec()
    }

    #[test]
    fn a_window_is_filled_and_each_answer_frees_its_slot() {
        let plan = plan("ycsb-f");
        let known = KnownKeys::new(plan.keys, plan.keys_max);
        let stop = AtomicBool::new(false);
        let schedule = Schedule::new(Instant::now(), Duration::from_hours(1), None, &stop);
        let mut slots = Slots::new(16, Source::new(&plan, &known, schedule, 1, 0, 1));
        let messages = Messages::new(plan.key_bytes, plan.value_bytes);
        let (mut out, mut tally) = (BytesMut::new(), Tally::default());
        assert_eq!(slots.fill(Target::Product, &messages, &mut out), None);
        let first = requests(&mut out);
        assert_eq!((first.len(), slots.in_flight()), (16, 16));

        // Every read is answered; the reads of read-modify-writes go on as conditional writes under the same id.
        let mut answer = |slots: &mut Slots<'_>, message: &[u8], out: &mut BytesMut| {
            slots.answer(Target::Product, &messages, message, Instant::now(), out, &mut tally)
        };
        for request in &first {
            let Some(Operation::Get(get)) = &request.operation else { panic!("reads come first") };
            let message = got(&messages, request.id, &get.key);
            answer(&mut slots, &message, &mut out).expect("right");
        }
        let second = requests(&mut out);
        assert!(!second.is_empty() && second.len() == slots.in_flight());
        for request in &second {
            let Some(Operation::Put(put)) = &request.operation else { panic!("a write") };
            assert_eq!(put.if_version, Some(77));
            let result = Some(session_response::Result::Put(PutResponse { version: 78 }));
            let message = SessionResponse { id: request.id, result }.encode_to_vec();
            answer(&mut slots, &message, &mut out).expect("right");
        }
        assert_eq!(slots.in_flight(), 0);
        // An answer that nobody waits for is no answer.
        let late = got(&messages, 0, "bench00000000001");
        assert!(answer(&mut slots, &late, &mut out).is_err());
        assert!(answer(&mut slots, &got(&messages, 99, "bench00000000001"), &mut out).is_err());
        assert_eq!((tally.operations(), tally.errors()), (16, 0));
    }
}
