//! The CA certificates that connections trust: the system's, and those of one more file.
//!
//! rustls-native-certs looks for the system's, and obeys `SSL_CERT_FILE` and `SSL_CERT_DIR`.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

/// The protocol that is spoken inside TLS.
const ALPN: &[u8] = b"http/1.1";

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    /// The file cannot be read.
    #[error("the CA file {path:?} cannot be read: {cause}; name a file of certificates in PEM form")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        cause: io::Error,
    },
    /// The file has no certificate, or one that is not valid.
    #[error("the CA file {path:?} has {what}; it must have certificates in PEM form (-----BEGIN CERTIFICATE-----)")]
    Invalid {
        /// The file.
        path: String,
        /// What it has.
        what: &'static str,
    },
    /// There is no certificate at all.
    #[error(
        "TLS: no CA certificates were found on this machine; install the package ca-certificates, or name a file of certificates with --ca-file"
    )]
    NoRoots,
    /// rustls refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// The configuration of TLS connections that trust the system's CAs and those of this file.
///
/// # Errors
/// The file cannot be used, or there are no certificates at all.
pub(super) fn client_config(ca_file: Option<&str>) -> Result<Arc<ClientConfig>, CaFileError> {
    let mut roots = RootCertStore::empty();
    // Some of a system's certificates may be unreadable or invalid; the others still count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        add_file(&mut roots, path)?;
    }
    if roots.is_empty() {
        return Err(CaFileError::NoRoots);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let mut config = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn add_file(roots: &mut RootCertStore, path: &str) -> Result<(), CaFileError> {
    let pem = std::fs::read(path).map_err(|cause| CaFileError::Unreadable { path: path.to_owned(), cause })?;
    let invalid = |what| CaFileError::Invalid { path: path.to_owned(), what };
    let mut n_certificates = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| invalid("a section that is not valid"))?;
        roots.add(certificate).map_err(|_| invalid("a certificate that is not valid"))?;
        n_certificates += 1;
    }
    if n_certificates == 0 { Err(invalid("no certificate")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let path = path.to_str().unwrap();
        assert!(matches!(client_config(Some(path)), Err(CaFileError::Unreadable { .. })));
        for (text, what) in [
            ("", "no certificate"),
            ("hello\n", "no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a certificate that is not valid"),
            ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "a section that is not valid"),
        ] {
            std::fs::write(path, text).unwrap();
            match client_config(Some(path)) {
                Err(CaFileError::Invalid { what: found, .. }) => assert_eq!(found, what, "{text:?}"),
                other => panic!("{text:?}: {:?}", other.map(drop)),
            }
        }
    }
}
