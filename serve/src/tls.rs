//! What `listen` is encrypted with: the files of `server.tls_cert` and `server.tls_key`, read once at the start.

use std::path::Path;
use std::sync::Arc;

use retune_task::Tls;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, ServerConfig};

use crate::error::Error;

/// Reads both files, and sees to it that they belong together.
pub(crate) fn config(tls: &Tls) -> Result<ServerConfig, Error> {
    let wrong = |path: &Path, what: String| Error::Tls {
        path: path.to_owned(),
        what,
    };
    let chain = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(&tls.cert, told(&e, "server.tls_cert", "certificate")))?;
    if chain.is_empty() {
        let what = told(&pem::Error::NoItemsFound, "server.tls_cert", "certificate");
        return Err(wrong(&tls.cert, what));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|e| wrong(&tls.key, told(&e, "server.tls_key", "private key")))?;
    // Named, since rustls takes no provider by itself where the tree has more than one.
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&tls.cert, e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key);
    config.map_err(|e| match e {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => wrong(
            &tls.key,
            format!(
                "(server.tls_key) is not the key of the first certificate in {} (server.tls_cert); name the two that belong together",
                tls.cert.display()
            ),
        ),
        rustls::Error::InvalidCertificate(e) => {
            wrong(&tls.cert, format!("(server.tls_cert): its first certificate cannot be used: {e}"))
        }
        e => wrong(&tls.key, format!("(server.tls_key) cannot be used: {e}")),
    })
}

/// What is wrong with a file; never a line of it, which could be of the key.
fn told(error: &pem::Error, key: &str, what: &str) -> String {
    match error {
        pem::Error::Io(e) => format!("({key}) cannot be read: {e}"),
        pem::Error::NoItemsFound => {
            format!("({key}) holds no {what}; expected one in PEM form (-----BEGIN …-----)")
        }
        _ => format!("({key}) is not in PEM form; expected a {what} in it (-----BEGIN …-----)"),
    }
}
