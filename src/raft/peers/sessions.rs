//! Tokens that handshakes gave out. Each opens one stream, once and soon, and says who is at its other end.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::handshake::{check_member, random_bytes};
use super::refusal::{Reason, Refusal};
use crate::cluster::{Incarnation, NodeName, Standing};

/// Most tokens that wait for their stream; the oldest goes. Only members are given any.
const TOKENS_MAX: usize = 256;

/// How long a token waits for its stream.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(10);

/// Who proved to be at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) node: NodeName,
    pub(super) incarnation: Incarnation,
}

impl Session {
    /// Whether it is that of a member, as things are now.
    pub(super) fn check(&self, standing: &Standing) -> Result<(), Refusal> {
        match standing {
            Standing::Formed(formed) => check_member(&formed.members, &self.node, self.incarnation),
            // Sessions begin when the cluster is formed, and a cluster that is formed stays so.
            Standing::Forming(_) => Err(Refusal::new(Reason::NotReady, "no cluster is formed")),
        }
    }
}

/// Tokens that were not used yet.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Bytes, (Session, Instant)>>);

impl Sessions {
    /// A token for one stream of `session`.
    pub(super) fn begin(&self, session: Session) -> Bytes {
        let token = random_bytes();
        let now = Instant::now();
        let mut waiting = self.0.lock();
        waiting.retain(|_, (_, since)| now - *since < TOKEN_AGE_MAX);
        if waiting.len() >= TOKENS_MAX {
            let oldest = waiting.iter().min_by_key(|(_, (_, since))| *since);
            if let Some(oldest) = oldest.map(|(token, _)| token.clone()) {
                waiting.remove(&oldest);
            }
        }
        waiting.insert(token.clone(), (session, now));
        token
    }

    /// Whose stream `token` opens. It opens no other.
    pub(super) fn open(&self, token: &[u8]) -> Result<Session, Refusal> {
        let found = self.0.lock().remove(token);
        match found {
            Some((session, since)) if since.elapsed() < TOKEN_AGE_MAX => Ok(session),
            _ => Err(Refusal::new(
                Reason::NoSession,
                "only peers are served here: no handshake allowed this stream",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn session(number: u128) -> Session {
        Session {
            node: NodeName(format!("n{number}")),
            incarnation: Incarnation(Uuid::from_u128(number)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_opens_one_stream_and_only_soon() {
        let sessions = Sessions::default();
        let token = sessions.begin(session(1));
        assert_eq!(sessions.open(&token), Ok(session(1)));
        assert_eq!(sessions.open(&token).expect_err("used").reason, Reason::NoSession);
        assert_eq!(sessions.open(b"guessed").expect_err("unknown").reason, Reason::NoSession);
        let token = sessions.begin(session(2));
        tokio::time::advance(TOKEN_AGE_MAX).await;
        assert_eq!(sessions.open(&token).expect_err("old").reason, Reason::NoSession);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_tokens_wait_than_allowed() {
        let sessions = Sessions::default();
        let first = sessions.begin(session(0));
        for number in 0..TOKENS_MAX {
            tokio::time::advance(Duration::from_millis(1)).await;
            sessions.begin(session(number as u128));
        }
        assert_eq!(sessions.0.lock().len(), TOKENS_MAX);
        assert_eq!(sessions.open(&first).expect_err("it went").reason, Reason::NoSession);
    }
}
