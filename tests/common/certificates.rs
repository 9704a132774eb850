//! A CA of one test, and certificates that it signs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::temp;

/// A CA with a directory for its files.
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

/// The files of a certificate and its key, in PEM form.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    pub certificate: String,
    pub key: String,
}

impl TestCa {
    pub fn new(name: &str) -> TestCa {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = temp::directory(name);
        fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
        TestCa { issuer, directory }
    }

    /// Its own certificate, for `--ca-file`.
    pub fn file(&self) -> String {
        self.directory.join("ca.pem").to_str().unwrap().to_owned()
    }

    /// A certificate for these names and addresses.
    pub fn certificate(&self, names: &[&str]) -> CertificateFiles {
        self.sign(names, false)
    }

    /// The same, expired.
    pub fn expired_certificate(&self, names: &[&str]) -> CertificateFiles {
        self.sign(names, true)
    }

    fn sign(&self, names: &[&str], expired: bool) -> CertificateFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "a service of a test");
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |name: &str| self.directory.join(format!("{}-{name}.pem", super::procs::mark()));
        let (of_certificate, of_key) = (path("certificate"), path("key"));
        fs::write(&of_certificate, certificate.pem()).unwrap();
        fs::write(&of_key, key.serialize_pem()).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        CertificateFiles { certificate: text(&of_certificate), key: text(&of_key) }
    }
}

impl Drop for TestCa {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
