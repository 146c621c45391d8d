//! One answer under way in the embedded engine: from the tokens that were chosen to the events that the exchange hears.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mistralrs_core::Response;
use retune_wire::TokenLogprob;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::model::Handle;
use super::sampling::Chosen;
use super::text::{Decoder, StopScanner};
use super::vocabulary::Vocabulary;
use super::{Event, Finish};
use crate::error::Error;

/// One running answer: from tokens to events.
pub(super) struct Answer {
    pub(super) decoder: Decoder,
    pub(super) scanner: StopScanner,
    pub(super) end_of_turn: Arc<[u32]>,
    /// There if probabilities are wanted.
    pub(super) vocabulary: Option<Arc<Vocabulary>>,
    pub(super) max_tokens: usize,
    pub(super) count: usize,
    /// Tells the [`Chooser`](super::sampling::Chooser) to end the sequence.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    /// Tells whether the engine still lives.
    pub(super) model: Handle,
    /// Keeps the next request waiting.
    pub(super) _turn: OwnedSemaphorePermit,
    /// Keeps the adapter loaded.
    pub(super) _request: TaskTrackerToken,
}

impl Answer {
    /// Ends when the engine has let go of the request, which may be a token after the last event, or has broken down.
    pub(super) async fn run(
        mut self,
        mut tokens: mpsc::UnboundedReceiver<Result<Chosen, String>>,
        mut responses: mpsc::Receiver<Response>,
    ) {
        let engine = self.model.engine.clone();
        // What the engine's thread held is not always given back when it unwinds: channels may stay open.
        let ended = engine.closed();
        tokio::pin!(ended);
        let mut done = false;
        loop {
            tokio::select! {
                biased;
                token = tokens.recv() => match token {
                    Some(token) if !done => done = self.token(token),
                    Some(_) => {}
                    None => break,
                },
                () = self.events.closed(), if !self.stop.load(Ordering::Relaxed) => self.stop.store(true, Ordering::Relaxed),
                () = &mut ended => break,
            }
        }
        // Read to the end, so that the engine always has somebody to answer; what it says matters only if it failed.
        let mut failure = None;
        loop {
            let response = tokio::select! {
                biased;
                response = responses.recv() => response,
                () = engine.closed() => None,
            };
            failure = Some(match response {
                Some(Response::InternalError(e) | Response::ValidationError(e)) => e.to_string(),
                Some(Response::CompletionModelError(message, _)) => message,
                Some(_) => "the engine gave up the request".to_owned(),
                None => break,
            });
        }
        if !done {
            // An engine that lives says why it ends an answer.
            let failure = failure.map_or_else(|| self.model.broken(), Error::Engine);
            self.send(Event::Failed(failure));
        }
    }

    /// Takes the next token in; true if it was the last.
    fn token(&mut self, chosen: Result<Chosen, String>) -> bool {
        self.count += 1;
        let taken = chosen.map_err(Error::Engine).and_then(|chosen| {
            let (text, finish) = self.text_of(chosen.token)?;
            Ok((text, finish, self.logprobs(&chosen)))
        });
        match taken {
            Ok((text, finish, logprobs)) => {
                if !text.is_empty() || !logprobs.is_empty() {
                    self.send(Event::Text {
                        text,
                        tokens: self.count,
                        logprobs,
                    });
                }
                if let Some(finish) = finish {
                    self.stop.store(true, Ordering::Relaxed);
                    self.send(Event::Done {
                        finish,
                        tokens: self.count,
                        prompt_tokens: None,
                    });
                }
                finish.is_some()
            }
            Err(e) => {
                self.stop.store(true, Ordering::Relaxed);
                self.send(Event::Failed(e));
                true
            }
        }
    }

    /// The token's probabilities, if they are wanted. The end of the turn is no part of the answer.
    fn logprobs(&self, chosen: &Chosen) -> Vec<TokenLogprob> {
        let (Some(vocabulary), Some((logprob, top))) = (&self.vocabulary, &chosen.logprobs) else {
            return Vec::new();
        };
        if self.end_of_turn.contains(&chosen.token) {
            return Vec::new();
        }
        let bytes = |token: u32| vocabulary.bytes(token);
        vec![TokenLogprob {
            bytes: bytes(chosen.token),
            logprob: *logprob,
            top: top.iter().map(|&(token, lp)| (bytes(token), lp)).collect(),
        }]
    }

    fn text_of(&mut self, token: u32) -> Result<(String, Option<Finish>), Error> {
        let (piece, finish) = if self.end_of_turn.contains(&token) {
            (self.decoder.finish()?, Some(Finish::Stop))
        } else {
            let mut piece = self.decoder.push(token)?;
            let last = self.count >= self.max_tokens;
            if last {
                piece.push_str(&self.decoder.finish()?);
            }
            (piece, last.then_some(Finish::Length))
        };
        let (mut text, stopped) = self.scanner.push(&piece);
        if stopped {
            return Ok((text, Some(Finish::Stop)));
        }
        if finish.is_some() {
            text.push_str(&self.scanner.finish());
        }
        Ok((text, finish))
    }

    /// A reader that left is noticed in [`Self::run`].
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}
