//! How much each key may ask in a minute: a token bucket for requests and one for tokens.
//!
//! A bucket holds one minute's worth and fills evenly, so that a minute's requests may come at once, and never more than that. What an
//! answer costs in tokens is known only at its end: then it is taken, below zero if need be, and the key waits until that is made up
//! for. Whoever is above a limit is told so at once, with the time to wait; nothing is queued.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use retune_ledger::Key;

use crate::error::Error;

/// What is left of each key's limits. Keys without any are not in it.
#[derive(Default)]
pub(crate) struct Rates {
    left: Mutex<HashMap<String, Left>>,
}

struct Left {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// Which limit was reached: OpenAI's word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Asked.
    Requests,
    /// Of prompts and answers.
    Tokens,
}

impl Limit {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Limit::Requests => "requests",
            Limit::Tokens => "tokens",
        }
    }
}

impl Rates {
    /// Takes up new keys and drops those that are gone. A key's limits never change: its file does not.
    pub(crate) fn follow(&self, keys: &[Key], now: Instant) {
        let mut left = self.lock();
        left.retain(|id, _| keys.iter().any(|key| key.id == *id));
        for key in keys {
            if left.contains_key(&key.id) {
                continue;
            }
            let bucket = |per_minute: Option<u32>| per_minute.map(|n| Bucket::new(n, now));
            let (requests, tokens) = (
                bucket(key.requests_per_minute),
                bucket(key.tokens_per_minute),
            );
            if requests.is_some() || tokens.is_some() {
                left.insert(key.id.clone(), Left { requests, tokens });
            }
        }
    }

    /// Takes one request off the key's limits, or says when to come back. Without a key there is no limit.
    pub(crate) fn admit(&self, key_id: Option<&str>, now: Instant) -> Result<(), Error> {
        let mut left = self.lock();
        let Some((id, left)) = key_id.and_then(|id| Some((id, left.get_mut(id)?))) else {
            return Ok(());
        };
        // Both are looked at before anything is taken.
        for (limit, bucket) in [
            (Limit::Tokens, &mut left.tokens),
            (Limit::Requests, &mut left.requests),
        ] {
            if let Some(bucket) = bucket
                && let Some(seconds) = bucket.wait(now)
            {
                return Err(Error::RateLimited {
                    key_id: id.to_owned(),
                    limit,
                    per_minute: bucket.per_minute,
                    seconds,
                });
            }
        }
        if let Some(requests) = &mut left.requests {
            requests.level -= 1.0;
        }
        Ok(())
    }

    /// Takes what an answer cost, prompt and completion together.
    pub(crate) fn spend_tokens(&self, key_id: Option<&str>, n: u64, now: Instant) {
        let mut left = self.lock();
        let tokens = key_id
            .and_then(|id| left.get_mut(id))
            .and_then(|left| left.tokens.as_mut());
        if let Some(bucket) = tokens {
            bucket.fill(now);
            bucket.level -= n as f64;
        }
    }

    /// A panic elsewhere leaves numbers that are at most one request off.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Bucket {
    per_minute: u32,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    fn new(per_minute: u32, now: Instant) -> Self {
        Self {
            per_minute,
            level: f64::from(per_minute),
            at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let most = f64::from(self.per_minute);
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + seconds * most / 60.0).min(most);
        self.at = self.at.max(now);
    }

    /// Whole seconds, at least one, until there is one in it; None if there is.
    fn wait(&mut self, now: Instant) -> Option<u64> {
        self.fill(now);
        let seconds = (1.0 - self.level) * 60.0 / f64::from(self.per_minute.max(1));
        // What rounding loses is nothing to wait for.
        (seconds > 2e-6).then(|| (seconds - 1e-6).ceil().max(1.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use std::time::Duration;

    use proptest::prelude::*;
    use retune_ledger::Role;

    use super::*;

    fn key(requests: Option<u32>, tokens: Option<u32>) -> Key {
        let (mut key, _) = Key::new("shop", Role::App).unwrap();
        key.requests_per_minute = requests;
        key.tokens_per_minute = tokens;
        key
    }

    fn rates(keys: &[Key], now: Instant) -> Rates {
        let rates = Rates::default();
        rates.follow(keys, now);
        rates
    }

    /// The limit and the seconds to wait, where there are any.
    fn refused(result: Result<(), Error>) -> Option<(Limit, u64)> {
        match result {
            Ok(()) => None,
            Err(Error::RateLimited { limit, seconds, .. }) => Some((limit, seconds)),
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn a_minute_s_requests_at_once_and_then_one_each_twenty_seconds() {
        let now = Instant::now();
        let key = key(Some(3), None);
        let rates = rates(std::slice::from_ref(&key), now);
        let admit =
            |seconds| refused(rates.admit(Some(&key.id), now + Duration::from_secs(seconds)));
        assert_eq!([admit(0), admit(0), admit(0)], [None; 3]);
        assert_eq!(admit(0), Some((Limit::Requests, 20)));
        assert_eq!(admit(19), Some((Limit::Requests, 1)));
        assert_eq!(admit(20), None);
        assert_eq!(admit(20), Some((Limit::Requests, 20)));
        // A clock that goes back gives nothing away.
        assert_eq!(admit(0), Some((Limit::Requests, 20)));
        assert_eq!([admit(999), admit(999), admit(999)], [None; 3]);
        assert!(admit(999).is_some());
    }

    #[test]
    fn tokens_are_taken_afterwards_and_made_up_for() {
        let now = Instant::now();
        let key = key(Some(100), Some(60));
        let rates = rates(std::slice::from_ref(&key), now);
        let id = Some(key.id.as_str());
        assert_eq!(refused(rates.admit(id, now)), None);
        rates.spend_tokens(id, 89, now);
        assert_eq!(refused(rates.admit(id, now)), Some((Limit::Tokens, 30)));
        let later = now + Duration::from_secs(30);
        assert_eq!(refused(rates.admit(id, later)), None);
    }

    #[test]
    fn each_key_has_its_own_and_some_have_none() {
        let now = Instant::now();
        let keys = [key(Some(1), None), key(Some(1), None), key(None, None)];
        let rates = rates(&keys, now);
        let admit = |id: Option<&str>| refused(rates.admit(id, now));
        assert_eq!(admit(Some(&keys[0].id)), None);
        assert!(admit(Some(&keys[0].id)).is_some());
        // Looking at the keys again gives nothing back.
        rates.follow(&keys, now);
        assert!(admit(Some(&keys[0].id)).is_some());
        assert_eq!(admit(Some(&keys[1].id)), None);
        for id in [Some(keys[2].id.as_str()), Some("internal"), None] {
            assert_eq!([admit(id), admit(id)], [None; 2]);
        }
        rates.follow(&[], now);
        assert_eq!(admit(Some(&keys[0].id)), None);
    }

    proptest! {
        /// Whoever waits as told gets in, and nobody gets more than a minute's worth and what has filled up since.
        #[test]
        fn never_more_than_the_limit(per_minute in 1..500_u32, pauses in proptest::collection::vec(0..40_000_u64, 1..300)) {
            let start = Instant::now();
            let key = key(Some(per_minute), None);
            let rates = rates(std::slice::from_ref(&key), start);
            let (mut now, mut admitted) = (start, 0.0);
            for pause in pauses {
                now += Duration::from_millis(pause);
                match refused(rates.admit(Some(&key.id), now)) {
                    None => admitted += 1.0,
                    Some((_, seconds)) => {
                        prop_assert!((1..=60).contains(&seconds));
                        now += Duration::from_secs(seconds);
                        prop_assert_eq!(refused(rates.admit(Some(&key.id), now)), None);
                        admitted += 1.0;
                    }
                }
                let most = f64::from(per_minute) * (1.0 + (now - start).as_secs_f64() / 60.0);
                prop_assert!(admitted <= most + 1e-3, "{admitted} of {most}");
            }
        }
    }
}
