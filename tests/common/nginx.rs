//! nginx as a reverse proxy with TLS.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{PATIENCE, certificates::CertificateFiles, left_out, procs, temp, wait_until};

/// The path below which the services are, besides `/`.
pub const PREFIX: &str = "/tools/cc";

/// A running nginx. It is killed when dropped.
pub struct Nginx {
    child: Child,
    directory: PathBuf,
    /// The address of each certificate, in their order.
    pub addresses: Vec<SocketAddr>,
}

impl Nginx {
    /// nginx in front of a service, with TLS at one address for each of these certificates. `None` where there is no
    /// nginx; then `what` is reported as left out.
    pub fn start(what: &str, service: SocketAddr, certificates: &[CertificateFiles]) -> Option<Nginx> {
        if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
            left_out(what, "no nginx (Debian's nginx-light)");
            return None;
        }
        // nginx cannot take a port that the system chooses, so a free one may be taken meanwhile.
        Some((0..5).find_map(|_| Self::try_start(service, certificates)).expect("nginx starts"))
    }

    fn try_start(service: SocketAddr, certificates: &[CertificateFiles]) -> Option<Nginx> {
        let directory = temp::directory("nginx");
        let listeners: Vec<_> = certificates.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        drop(listeners);
        let config = directory.join("nginx.conf");
        fs::write(&config, configuration(&directory, service, certificates, &addresses)).unwrap();
        let errors = File::create(directory.join("stderr")).unwrap();
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&config)
            .args(["-e", "stderr", "-p"])
            .arg(&directory)
            .stdin(Stdio::null())
            .stderr(errors)
            .spawn()
            .expect("it was there before");
        let mut nginx = Nginx { child, directory, addresses };
        let mut has_exited = false;
        wait_until("nginx listens", PATIENCE, || {
            has_exited = nginx.child.try_wait().unwrap().is_some();
            has_exited || nginx.addresses.iter().all(|address| TcpStream::connect(address).is_ok())
        });
        (!has_exited).then_some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn configuration(
    directory: &Path,
    service: SocketAddr,
    certificates: &[CertificateFiles],
    addresses: &[SocketAddr],
) -> String {
    let directory = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"))
        .collect();
    let servers: String = certificates
        .iter()
        .zip(addresses)
        .map(|(files, address)| {
            let CertificateFiles { certificate, key } = files;
            format!(
                "server {{ listen {address} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
                   location /moved/ {{ return 302 https://{address}/; }}
                   location / {{ proxy_pass http://{service}; }}
                   location {PREFIX}/ {{ proxy_pass http://{service}/; }} }}\n"
            )
        })
        .collect();
    format!(
        "daemon off; master_process off; pid {directory}/{}.pid;
         events {{ worker_connections 256; }}
         http {{ access_log off; {temporary}
           map $http_upgrade $to_upgrade {{ default upgrade; '' ''; }}
           proxy_http_version 1.1; proxy_buffering off; proxy_read_timeout 600s; client_max_body_size 0;
           proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $to_upgrade;
           {servers} }}\n",
        procs::mark()
    )
}
