//! How commands ask a running server: with the key from RETUNE_API_KEY, and over TLS with a trust that fits.
//!
//! A server on this machine is asked by its address, which its certificate need not name, and the certificate may be of an authority
//! that only its apps know. But the configuration says which certificate it has. So for the configuration's own addresses exactly
//! that certificate counts, whatever names and dates it has: nothing but the holder of its private key can answer. Any other server is
//! trusted as the system trusts servers.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use retune_task::Config;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

/// The variable with the key that commands send.
pub(crate) const API_KEY: &str = "RETUNE_API_KEY";

/// A client for the server at `url`, with `key` or else the environment's.
pub(crate) fn new(config: &Config, url: &str, key: Option<String>) -> Result<reqwest::Client> {
    let mut headers = HeaderMap::new();
    if let Some(key) = key.or_else(|| std::env::var(API_KEY).ok().filter(|key| !key.is_empty())) {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
            .with_context(|| format!("{API_KEY} holds no key: a key is rt-, letters and digits"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = reqwest::Client::builder().default_headers(headers);
    if is_own(config, url) {
        // Neither a key nor a text leaves this machine for a proxy's sake.
        builder = builder.no_proxy();
        if let Some(tls) = &config.server.tls {
            builder = builder.tls_backend_preconfigured(pinned(&tls.cert)?);
        }
    }
    builder.build().context("cannot make an HTTP client")
}

/// Whether `url` is where this configuration's server listens: on this machine's loopback, or at the address of `server.listen`.
fn is_own(config: &Config, url: &str) -> bool {
    let url = reqwest::Url::parse(url).ok();
    let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or("");
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback() || ip == config.server.listen.ip())
}

fn pinned(file: &Path) -> Result<ClientConfig> {
    let certificate = CertificateDer::from_pem_file(file);
    let certificate = certificate.map_err(|e| {
        anyhow::anyhow!(
            "{} (server.tls_cert): {e}; the server on this machine is known by it",
            file.display()
        )
    })?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let pin = Pin {
        certificate,
        provider: provider.clone(),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pin))
        .with_no_client_auth())
}

/// Takes one certificate and no other. That the other side holds its private key is checked as ever, by the handshake's signature.
#[derive(Debug)]
struct Pin {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A server's address as given on the command line, else the configuration's.
pub(crate) fn server(given: Option<&str>, config: &Config) -> Result<String> {
    let Some(given) = given else {
        return Ok(crate::setup::url(config, config.server.listen));
    };
    ensure!(
        given.starts_with("http://") || given.starts_with("https://"),
        "--server {given}: expected http://HOST:PORT, or https:// where the server has server.tls_cert"
    );
    Ok(given.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_configured_certificate_counts_for_this_machine_alone() {
        let listen = ("RETUNE_SERVER__LISTEN".into(), "10.0.0.5:8443".into());
        let config = Config::load(None, [listen]).unwrap();
        for (url, own) in [
            ("https://127.0.0.1:8443", true),
            ("https://[::1]:8443/v1", true),
            ("https://localhost:8443", true),
            ("https://10.0.0.5:8443", true),
            ("https://10.0.0.6:8443", false),
            ("https://localhost.example.com", false),
            ("https://127.0.0.1.example.com", false),
            ("https://example.com/127.0.0.1", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_own(&config, url), own, "{url}");
        }
    }

    #[test]
    fn no_other_certificate_is_taken() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pin = Pin {
            certificate: CertificateDer::from(vec![1, 2, 3]),
            provider,
        };
        let name = ServerName::try_from("example.com").unwrap();
        let takes = |bytes: &[u8]| {
            let certificate = CertificateDer::from(bytes.to_vec());
            pin.verify_server_cert(&certificate, &[], &name, &[], UnixTime::now())
                .is_ok()
        };
        assert!(takes(&[1, 2, 3]) && !takes(&[1, 2]) && !takes(&[]));
    }
}
