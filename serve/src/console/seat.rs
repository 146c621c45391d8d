//! Who sits at the console: read from the cookie, and put beside the request by the guard.

use actix_web::dev::ServiceRequest;
use actix_web::http::header::COOKIE as COOKIE_HEADER;
use chrono::Utc;
use rand::Rng;
use retune_console::session::{COOKIE, HOURS, Session};

use crate::error::Error;
use crate::keys::{Caller, Keys};
use crate::state::App;

/// A browser's place: its session, and whose it is.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) session: Session,
    /// None: nobody who may see anything.
    pub(crate) caller: Option<Caller>,
    /// What the browser is to keep, where it has nothing that is good.
    cookie: Option<String>,
    /// It came over TLS: so must its cookie.
    is_secure: bool,
}

impl Seat {
    /// Whose cookie a request brought; one without a good one gets a session that nobody has signed in to, so that its forms have a token.
    pub(crate) fn take(request: &ServiceRequest, app: &App, keys: &Keys) -> Result<Self, Error> {
        from_elsewhere(request)?;
        let seal = |text: &str| app.ledger.seal(text);
        let now = Utc::now();
        let sent = request.headers().get_all(COOKIE_HEADER);
        let sent = sent.filter_map(|header| header.to_str().ok());
        let sent = sent.flat_map(|header| header.split(';'));
        let mut sent = sent.filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        let session = sent.find_map(|value| Session::read(value, now, &seal));
        if !keys.required() {
            let had = session.filter(|session| session.key_id.is_none());
            return Ok(Self::of(had, Some(Caller::anybody()), request, app));
        }
        let caller = session.as_ref().and_then(|session| {
            let id = session.key_id.clone()?;
            let role = keys.role_of(&id)?;
            Some(Caller {
                key_id: Some(id),
                role,
            })
        });
        let had = session.filter(|session| session.key_id.is_none() || caller.is_some());
        Ok(Self::of(had, caller, request, app))
    }

    fn of(had: Option<Session>, caller: Option<Caller>, http: &ServiceRequest, app: &App) -> Self {
        let is_new = had.is_none();
        let session = had.unwrap_or_else(|| begin(None));
        let is_secure = app.config.server.tls.is_some() || came_encrypted(http);
        let cookie = is_new.then(|| cookie(&session, app, is_secure));
        Self {
            session,
            caller,
            cookie,
            is_secure,
        }
    }

    /// What the browser is to keep from now on.
    pub(crate) fn new_cookie(&self) -> Option<&str> {
        self.cookie.as_deref()
    }

    /// Somebody has shown this key.
    pub(crate) fn signed_in(&mut self, key_id: String, app: &App) {
        self.session = begin(Some(key_id));
        self.cookie = Some(cookie(&self.session, app, self.is_secure));
    }

    /// They have left.
    pub(crate) fn signed_out(&mut self) {
        self.session = begin(None);
        self.cookie = Some(format!(
            "{COOKIE}=; Path=/console; HttpOnly; SameSite=Lax; Max-Age=0"
        ));
    }
}

fn begin(key_id: Option<String>) -> Session {
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    Session::begin(key_id, nonce, Utc::now())
}

fn cookie(session: &Session, app: &App, is_secure: bool) -> String {
    let value = session.cookie(&|text| app.ledger.seal(text));
    let secure = if is_secure { "; Secure" } else { "" };
    let age = HOURS * 3_600;
    format!("{COOKIE}={value}; Path=/console; HttpOnly; SameSite=Lax; Max-Age={age}{secure}")
}

/// Whether the browser says that it came over TLS, to this server or to a proxy in front of it.
fn came_encrypted(http: &ServiceRequest) -> bool {
    let proxy = http.headers().get("x-forwarded-proto");
    proxy.is_some_and(|proto| proto.as_bytes() == b"https")
}

/// Refuses what another site's page sends. Browsers say whose page it was; a form's token holds where they do not.
fn from_elsewhere(request: &ServiceRequest) -> Result<(), Error> {
    let is_read = matches!(request.method().as_str(), "GET" | "HEAD");
    let site = request.headers().get("sec-fetch-site");
    match site.map(|site| site.as_bytes()) {
        Some(b"same-origin" | b"none") | None => Ok(()),
        Some(_) if is_read => Ok(()),
        Some(_) => Err(Error::Forbidden(
            "This form came from another site's page, and was not taken.".to_owned(),
        )),
    }
}
