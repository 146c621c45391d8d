//! What is asked besides a user's request, that nobody waits for: the model without its constraint, and a shadow.

use std::sync::Arc;
use std::time::Instant;

use retune_ledger::Purpose;
use retune_task::Enforce;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::{Asked, Running};
use crate::routing::Route;
use crate::trace;

impl Running {
    /// Asks for its share of the requests.
    pub(super) fn ask_beside(&self) {
        let Asked { request, route, .. } = &self.asked;
        let Some(task) = &route.task else { return };
        if self.enforce == Enforce::Constrain && fraction(&self.asked.request_id) < task.probe_share
        {
            self.beside(Purpose::Probe, route.clone());
        }
        if request.model == task.name
            && let Some(shadow) = self
                .app
                .table
                .load()
                .shadow_of(&task.name, &request.sticky_key())
        {
            self.beside(Purpose::Shadow, shadow);
        }
    }

    /// Asks the same of `route`, behind everybody who waits for an answer. It is logged, and nobody sees it.
    fn beside(&self, purpose: Purpose, route: Route) {
        // A full queue drops it: the next one will do.
        let Ok(ticket) = self.app.admission.enter(true) else {
            return;
        };
        let mut asked = Asked {
            request_id: self.app.ledger.new_request_id(self.asked.request.store),
            request: self.asked.request.clone(),
            route,
            purpose,
            enforced: false,
            run_id: None,
            api_key_id: None,
            arrived: Instant::now(),
            trail: self.asked.trail.clone(),
        };
        let span = trace::beside(&mut asked, &self.asked.request_id);
        let log = asked.trail.log.clone();
        let app = Arc::clone(&self.app);
        let unseen = async move {
            let (pieces, mut receiver) = mpsc::unbounded_channel();
            let run = Running::new(&app, asked, pieces).run(ticket);
            let listen = async { while receiver.recv().await.is_some() {} };
            tokio::join!(run, listen);
        };
        let unseen = unseen.instrument(span).instrument(log);
        self.app.exchanges.spawn_on(unseen, &self.app.runtime);
    }
}

/// A request's fixed place in 0..1.
fn fraction(id: &str) -> f64 {
    let digest = Sha256::digest(id);
    let mut bytes = [0u8; 4];
    bytes.copy_from_slice(&digest[..4]);
    f64::from(u32::from_be_bytes(bytes)) / 4_294_967_296.0
}
