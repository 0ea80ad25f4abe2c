//! Tokens that handshakes gave out. Each opens one stream or allows one call, once and soon, and says who is at its other end.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::handshake::{Claim, check, random_bytes};
use super::refusal::{Reason, Refusal};
use crate::cluster::{Incarnation, NodeName, Standing};

/// Most tokens that wait to be used; the oldest goes. Only who knows the secret is given any.
const TOKENS_MAX: usize = 256;

/// How long a token waits to be used.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(10);

/// Who proved to be at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) node: NodeName,
    pub(super) incarnation: Incarnation,
    /// What it said it is to the cluster.
    pub(super) claim: Claim,
    /// Whether it meant this node; if not, it may only ask to be put on the list of members.
    pub(super) addressed: bool,
}

impl Session {
    /// Whether it may be what it claims, as things are now.
    pub(super) fn check(&self, standing: &Standing) -> Result<(), Refusal> {
        match standing {
            Standing::Formed(ours) => check(ours, &self.node, self.incarnation, self.claim),
            // Sessions begin when the cluster is formed, and a cluster that is formed stays so.
            Standing::Forming(_) | Standing::Joining => {
                Err(Refusal::new(Reason::NotReady, "no cluster is formed"))
            }
        }
    }
}

/// Tokens that were not used yet.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Bytes, (Session, Instant)>>);

impl Sessions {
    /// A token for one stream or call of `session`.
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
        self.take(token)
            .filter(|session| session.addressed)
            .ok_or_else(|| no_session("no handshake allowed this stream"))
    }

    /// Who asks with `token` to be put on the list of members. It allows nothing else.
    pub(super) fn admit(&self, token: &[u8]) -> Result<Session, Refusal> {
        self.take(token).ok_or_else(|| no_session("no handshake allowed this call"))
    }

    fn take(&self, token: &[u8]) -> Option<Session> {
        let (session, since) = self.0.lock().remove(token)?;
        (since.elapsed() < TOKEN_AGE_MAX).then_some(session)
    }
}

fn no_session(why: &str) -> Refusal {
    Refusal::new(Reason::NoSession, format!("only peers are served here: {why}"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn session(number: u128) -> Session {
        Session {
            node: NodeName(format!("n{number}")),
            incarnation: Incarnation(Uuid::from_u128(number)),
            claim: Claim::Member { revision: 0 },
            addressed: true,
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
    async fn who_meant_nobody_may_ask_to_be_a_member_and_no_more() {
        let sessions = Sessions::default();
        let anyone = Session { addressed: false, ..session(1) };
        let token = sessions.begin(anyone.clone());
        assert_eq!(sessions.open(&token).expect_err("no stream").reason, Reason::NoSession);
        let token = sessions.begin(anyone.clone());
        assert_eq!(sessions.admit(&token), Ok(anyone));
        assert_eq!(sessions.admit(&token).expect_err("used").reason, Reason::NoSession);
        let token = sessions.begin(session(2));
        assert_eq!(sessions.admit(&token), Ok(session(2)));
        let token = sessions.begin(session(3));
        tokio::time::advance(TOKEN_AGE_MAX).await;
        assert_eq!(sessions.admit(&token).expect_err("old").reason, Reason::NoSession);
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
