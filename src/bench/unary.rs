//! One gRPC call for each operation.

use std::cell::RefCell;

use bytes::BytesMut;

use super::Error;
use super::http2::{Connection, Method};
use super::lanes::Caller;
use super::tally::Failure;
use super::wire::{Ask, Frames, Messages, Target, Wrong};

/// Calls over one connection.
pub(super) struct Unary<'a> {
    target: Target,
    messages: &'a Messages,
    get: Method,
    put: Method,
    range: Method,
    echo: Method,
    /// Frames are cut from it; what was sent is used again.
    buffer: RefCell<BytesMut>,
}

impl<'a> Unary<'a> {
    /// Over `connection`, after checking that it takes `window` calls at a time.
    pub(super) async fn new(
        connection: &Connection,
        target: Target,
        messages: &'a Messages,
        window: usize,
    ) -> Result<Self, Error> {
        let unary = Self {
            target,
            messages,
            get: connection.method("/kvstore.v1.KvService/Get"),
            put: connection.method("/kvstore.v1.KvService/Put"),
            range: connection.method("/kvstore.v1.KvService/Range"),
            echo: connection.method("/kvstore.admin.v1.AdminService/Echo"),
            buffer: RefCell::new(BytesMut::new()),
        };
        // The server's settings have come when its first answer is there. Any answer will do.
        match unary.call(Ask::Get { key: 0 }).await {
            Err(failure @ (Failure::Transport(_) | Failure::Http(..))) => {
                return Err(Error::Server(format!("the first call failed: {failure:?}")));
            }
            _ => connection.check_streams(window)?,
        }
        Ok(unary)
    }
}

impl Caller for Unary<'_> {
    async fn call(&self, ask: Ask) -> Result<u64, Failure> {
        let method = match (self.target, &ask) {
            (Target::Echo, _) => &self.echo,
            (_, Ask::Get { .. }) => &self.get,
            (_, Ask::Put { .. }) => &self.put,
            (_, Ask::Range { .. }) => &self.range,
        };
        let frame = {
            let mut buffer = self.buffer.borrow_mut();
            self.messages.write_call(self.target, &ask, &mut buffer);
            buffer.split().freeze()
        };
        let answer = method.call(frame).await?;
        let mut frames = Frames::default();
        let mut version = Err(Wrong("an answer without a message"));
        frames.feed(&answer, |message| {
            version = Ok(self.messages.check(self.target, &ask, message)?);
            Ok(())
        })?;
        Ok(version?)
    }
}
